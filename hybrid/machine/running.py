"""One guest as its provider holds it: its process, its console, and how it came to its end.

::

    made ──▶ ready (the agent's port is open) ──▶ stopped
      └────────────────────────────────────────────▲

``stopped`` is set once, with ``ending`` saying why. libvirt and the process's pidfd both report an
end; the process's word is final, for libvirt's can be late by as long as PID 1 takes to reap an
adopted orphan.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from hybrid.machine.console import Console, printable
from hybrid.machine.evidence import command_line
from hybrid.machine.hypervisor import Ended
from hybrid.machine.provider import CONSOLE_TAIL, Origin

# How long libvirt may take to say how a dead process ended before the death alone is believed.
_LIBVIRT_LATE = 2.0
_CONSOLE_DRAIN = 0.2
_PANIC = b"Kernel panic"


class RunningGuest:
    """The provider's record of one guest, from its start until ``destroy``."""

    def __init__(
        self,
        machine_id: str,
        name: str,
        uid: int,
        gid: int,
        console: Console,
        on_end: Callable[[RunningGuest], None],
    ) -> None:
        self.id = machine_id
        self.name = name
        self.uid = uid
        self.gid = gid
        self.console = console
        self.pid: int | None = None
        self.ready = asyncio.Event()
        self.dead = asyncio.Event()
        """Its process is gone; libvirt may not have noticed yet."""
        self.stopped = asyncio.Event()
        self.ending = ""
        self.changing = asyncio.Lock()
        """Held while a device is attached or detached."""
        self.doomed = False
        """Being destroyed by us: its end is no news."""
        self.origin = Origin("boot")
        self.answering: asyncio.Task[None] | None = None
        """Waits for the agent where nothing announces it."""
        self._pidfd: int | None = None
        self._exit_signal: int | None = None
        self._concluding: asyncio.Task[None] | None = None
        self._on_end = on_end

    def __repr__(self) -> str:
        state = self.ending or ("ready" if self.ready.is_set() else "starting")
        return f"<RunningGuest {self.name} pid={self.pid} {state}>"

    def watch(self, pid: int) -> bool:
        """Learns of its process's end at once; False if ``pid`` is not its QEMU (any more)."""
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        # Checked after the descriptor is held: from here on the pid cannot come to mean another
        # process.
        if not is_qemu_of(self.name, command_line(pid)):
            self._release()
            return False
        self.pid = pid
        asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)
        return True

    def kill(self) -> bool:
        """SIGKILL to the guest's QEMU; False if it is not known or gone already."""
        if self._pidfd is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        return True

    def ended(self, how: Ended) -> None:
        """libvirt reports the end."""
        if self._concluding is None:
            self._concluding = asyncio.create_task(self._conclude(how), name=f"end of {self.name}")

    def close(self) -> None:
        """Stops watching; the guest runs on."""
        self._release()
        if self.answering is not None:
            self.answering.cancel()

    def _process_ended(self) -> None:
        self._release()
        assert self.pid is not None
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, os.WNOHANG)
            if os.WIFSIGNALED(status):
                self._exit_signal = os.WTERMSIG(status)
        self.dead.set()
        asyncio.get_running_loop().call_later(_LIBVIRT_LATE, self.ended, Ended.FAILED)

    async def _conclude(self, how: Ended) -> None:
        # What a dying kernel printed last may still be in the console's socket.
        await self.console.close(drain=_CONSOLE_DRAIN)
        self._release()
        self.ending = _ending(how, self._exit_signal, self.console.log.tail(CONSOLE_TAIL))
        self.dead.set()
        self.stopped.set()
        self._on_end(self)

    def _release(self) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


def _ending(how: Ended, exit_signal: int | None, console: bytes) -> str:
    """One line: what kind of end (shutdown, crashed, killed), and what is known about it."""
    # Five cases, the surest evidence first: the guest's own last words, then the process's, then
    # libvirt's.
    panic = next((line for line in console.splitlines() if _PANIC in line), None)
    if panic is not None:
        return f"crashed: {printable(panic[panic.index(_PANIC) :][:200], 1)}"
    if exit_signal is not None:
        return f"killed: its QEMU process got signal {exit_signal}"
    if how is Ended.SHUTDOWN:
        return "shutdown: the guest switched itself off"
    if how is Ended.CRASHED:
        return "crashed: its kernel reported a panic"
    return f"killed: {how.value}"


def is_qemu_of(name: str, arguments: list[str]) -> bool:
    """Whether ``arguments`` are the command line that libvirt gave the domain ``name``."""
    return "-name" in arguments[:-1] and any(
        part == f"guest={name}" for part in arguments[arguments.index("-name") + 1].split(",")
    )


def read_pid(file: Path) -> int | None:
    """The pid in libvirt's pid file; None if there is none."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
