"""One process of a container (or of the machine): its output journal, its input, its state.

    created ──started()──▶ running ──ended()──▶ stopped

Output is read into a ring. While a host reads it, a full ring stops the reading, so the process blocks on its pipe;
while nobody reads, the oldest output makes room. Who starts the process and learns its end is not known here.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
import time
from typing import Literal

from hybrid.agent import descriptors
from hybrid.agent.ring import Ring
from hybrid.errors import Conflict, InvalidInput, Unavailable
from hybrid.wire.journal import STDERR, STDOUT
from hybrid.wire.messages import ProcessState, StartExec
from hybrid.wire.session import Stream

Status = Literal["created", "running", "paused", "stopped"]
_READ = 1 << 16
_LAST_READS = 32  # what a pipe may still hold; more comes only from processes that were left behind
_GRACE = 2.0  # seconds that what an ended process left behind may hold its output open


class Process:
    """The agent's side of one process."""

    def __init__(self, container: str, exec_id: str, *, terminal: bool, stdin: bool) -> None:
        self.container, self.exec = container, exec_id
        self.terminal, self.wants_stdin = terminal, stdin
        self.status: Status = "created"
        self.pid = 0
        self.started_ns = self.finished_ns = 0
        self.exit_code = 0
        self.oom_killed = False
        self.error = ""
        self.ring = Ring()
        self.finished = asyncio.Event()  # the process has ended
        self._input = -1
        self._outputs: dict[int, int] = {}  # descriptor to journal stream
        self._paused: set[int] = set()
        self._reader: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._writers: set[asyncio.Task[None]] = set()
        self._input_lock = asyncio.Lock()
        self._size = (0, 0)

    @classmethod
    def asked_for(cls, request: StartExec) -> Process:
        """The process of an exec."""
        given = request.process
        process = cls(
            request.container,
            request.exec,
            terminal=bool(given.get("terminal")),
            stdin=request.stdin,
        )
        size = given.get("consoleSize") or {}
        if process.terminal and size:
            process.resize(int(size.get("height", 0)), int(size.get("width", 0)))
        return process

    def __repr__(self) -> str:
        return f"<Process {self.container[:12]}/{self.exec[:12]} {self.status} pid={self.pid} {self.ring!r}>"

    def has(self, *statuses: Status) -> bool:
        """Whether its status is one of these."""
        return self.status in statuses

    # --- life --------------------------------------------------------------------------------------------------

    def started(self, pid: int) -> None:
        """It runs from now on."""
        self.pid = pid
        self.status = "running"
        self.started_ns = time.time_ns()

    def ended(self, exit_code: int) -> None:
        """It has ended; what it left in its pipes is still read."""
        self.pid = 0
        self.status = "stopped"
        self.exit_code = exit_code
        self.finished_ns = time.time_ns()
        self.finished.set()
        self.close_input()
        for descriptor in list(self._outputs):
            for _ in range(_LAST_READS):
                if descriptor not in self._outputs or not self._take(descriptor):
                    break
        if self._outputs:
            asyncio.get_running_loop().call_later(_GRACE, self._give_up)
        self._more.set()

    def close(self) -> None:
        """Forgets it: ends readers and closes everything."""
        if self._reader is not None:
            self._reader.cancel()
        for descriptor in list(self._outputs):
            self._close_output(descriptor)
        self.close_input()

    def state(self) -> ProcessState:
        return ProcessState(
            container=self.container,
            exec=self.exec,
            status=self.status,
            pid=self.pid,
            started_ns=self.started_ns,
            finished_ns=self.finished_ns,
            exit_code=self.exit_code,
            oom_killed=self.oom_killed,
            error=self.error,
            journal_start=self.ring.start,
            journal_end=self.ring.end,
        )

    # --- stdio -------------------------------------------------------------------------------------------------

    def make_pipes(self, uid: int, gid: int) -> tuple[int, int, int]:
        """Stdio for a process of that (machine's) user; the caller closes the returned ends once it has started.

        The pipes belong to the user, or a program could not open /dev/stdout again.
        """
        if self.wants_stdin:
            stdin, self._input = descriptors.pipe()
            os.set_blocking(self._input, False)
        else:
            stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        ends = [stdin]
        for stream in (STDOUT, STDERR):
            ours, theirs = descriptors.pipe()
            self._add_output(ours, stream)
            ends.append(theirs)
        for descriptor in ends if self.wants_stdin else ends[1:]:
            os.fchown(descriptor, uid, gid)
        return ends[0], ends[1], ends[2]

    def take_terminal(self, master: int) -> None:
        """Uses the terminal whose controlling side is ``master``."""
        self._input = master
        self._add_output(master, STDOUT)
        if self._size != (0, 0):
            self.resize(*self._size)

    def resize(self, rows: int, columns: int) -> None:
        """Sets the terminal's size, now or when there is one."""
        if not self.terminal:
            raise Conflict("cannot resize: the process has no terminal")
        if not (0 <= rows < 1 << 16 and 0 <= columns < 1 << 16):
            raise InvalidInput(f"terminal size {rows}x{columns}: out of range")
        self._size = (rows, columns)
        if self._input >= 0:
            fcntl.ioctl(self._input, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close_input(self) -> None:
        """Closes stdin; of a terminal, whose descriptor is the output's too, only forgets it."""
        descriptor, self._input = self._input, -1
        if descriptor >= 0 and descriptor not in self._outputs:
            self._shut(descriptor)

    # --- the host's streams ------------------------------------------------------------------------------------

    def read_output(self, stream: Stream, offset: int) -> None:
        """Sends the journal from ``offset`` on, replacing an earlier reader."""
        if not 0 <= offset <= self.ring.end:
            raise InvalidInput(f"output offset {offset} is not within 0 … {self.ring.end}")
        if self._reader is not None:
            self._reader.cancel()
        self._reader = asyncio.create_task(self._send_output(stream, offset))

    def acknowledge(self, offset: int) -> None:
        """The host has stored the journal up to ``offset``."""
        self.ring.acknowledge(offset)
        self._resume()

    async def _send_output(self, stream: Stream, offset: int) -> None:
        try:
            async with stream:
                while True:
                    self._more.clear()
                    data, offset = self.ring.read(offset, _READ)
                    if data:
                        await stream.write(data)
                    elif self.status == "stopped" and not self._outputs:
                        return
                    else:
                        await self._more.wait()
        except Unavailable:
            pass  # the host is gone; it asks again from where it was
        finally:
            if self._reader is asyncio.current_task():
                self._reader = None
                self._resume()

    def write_input(self, stream: Stream, keep_open: bool) -> None:
        """Feeds stdin from ``stream`` until its EOF, which closes stdin unless ``keep_open``."""
        if not self.terminal and not self.wants_stdin:
            raise Conflict("the process has no stdin: it was made without one")
        task = asyncio.create_task(self._feed(stream, keep_open))
        self._writers.add(task)
        task.add_done_callback(self._writers.discard)

    async def _feed(self, stream: Stream, keep_open: bool) -> None:
        try:
            async with stream:
                while data := await stream.read(_READ):
                    async with self._input_lock:
                        if self._input < 0:
                            return
                        await descriptors.write_all(self._input, data)
                if not keep_open and not self.terminal:
                    self.close_input()
        except Unavailable:
            pass  # the host is gone, which is not the end of the input
        except OSError:  # the process closed its stdin, or ended
            self.close_input()

    # --- reading the pipes -------------------------------------------------------------------------------------

    def _add_output(self, descriptor: int, stream: int) -> None:
        os.set_blocking(descriptor, False)
        self._outputs[descriptor] = stream
        asyncio.get_running_loop().add_reader(descriptor, self._take, descriptor)

    def _take(self, descriptor: int) -> bool:
        """Moves one piece of output into the ring; False if there is none now."""
        if self._reader is not None and not self.ring.has_room:
            asyncio.get_running_loop().remove_reader(descriptor)
            self._paused.add(descriptor)
            return False
        try:
            data = os.read(descriptor, _READ)
        except BlockingIOError:
            return False
        except OSError as error:
            if not descriptors.is_end(error):
                raise
            data = b""
        if data:
            self.ring.append(self._outputs[descriptor], data)
        else:
            self._close_output(descriptor)
        self._more.set()
        return bool(data)

    def _resume(self) -> None:
        if self._reader is not None and not self.ring.has_room:
            return
        loop = asyncio.get_running_loop()
        for descriptor in self._paused:
            loop.add_reader(descriptor, self._take, descriptor)
        self._paused.clear()

    def _close_output(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        self._paused.discard(descriptor)
        del self._outputs[descriptor]
        if descriptor == self._input:
            self._input = -1
        self._shut(descriptor)
        self._more.set()

    def _shut(self, descriptor: int) -> None:
        """Closes it once no writer waits on it, so that its number cannot be reused under a waiting one."""
        waiting = self._writers - {asyncio.current_task()}
        if not waiting:
            os.close(descriptor)
            return
        for task in waiting:
            task.cancel()
        ended = asyncio.gather(*waiting, return_exceptions=True)
        ended.add_done_callback(lambda _: os.close(descriptor))

    def _give_up(self) -> None:
        if self._paused:  # the reader is slow, not the process
            asyncio.get_running_loop().call_later(_GRACE, self._give_up)
            return
        for descriptor in list(self._outputs):
            self._close_output(descriptor)
