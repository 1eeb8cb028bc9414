"""The conversation with an attached process: stdin there, output here, until its output ends.

Everything happens in one poll loop, and no write to the daemon ever waits: a process that writes
while nobody reads
its input would otherwise stop both sides for good.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

from hybrid.cli import tty as terminal
from hybrid.client.frames import STDERR, SYSTEM_ERROR, Demultiplexer
from hybrid.client.http import Hijacked
from hybrid.errors import HybridError

BLOCK = 32 << 10
SEND_BUFFER = 256 << 10
DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
FORCED_EXIT_AFTER = 3  # interrupts: the user insists, as in docker
# What a foreground `run` hands on to the container's process.
FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Ended(NamedTuple):
    """How a session ended: by itself, by detach keys, or by a signal for the client."""

    detached: bool = False
    signal: int = 0


class DetachKeys:
    """Finds the detach sequence in what is typed; keys that only began like it are given back."""

    def __init__(self, text: str = DEFAULT_DETACH_KEYS) -> None:
        self.sequence = parse_detach_keys(text)
        self._matched = 0

    def __repr__(self) -> str:
        return f"<DetachKeys {self.sequence!r} matched={self._matched}>"

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(bytes for the container, whether the sequence is complete)."""
        if not self.sequence:
            return data, False
        passed = bytearray()
        for byte in data:
            if byte == self.sequence[self._matched]:
                self._matched += 1
                if self._matched == len(self.sequence):
                    self._matched = 0
                    return bytes(passed), True
                continue
            passed += self.sequence[: self._matched]
            self._matched = 1 if byte == self.sequence[0] else 0
            if not self._matched:
                passed.append(byte)
        return bytes(passed), False


def parse_detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` as bytes; "" means none. ValueError for what is no key."""
    result = bytearray()
    for key in filter(None, text.split(",")):
        name = key.lower()
        if len(key) == 1:
            result += key.encode()
        elif name.startswith("ctrl-") and len(name) == 6 and "@" <= name[5].upper() <= "_":
            result.append(ord(name[5].upper()) & 0x1F)
        else:
            raise ValueError(
                f"invalid detach keys {text!r}: {key!r} is no key (such as a or ctrl-p)"
            )
    return bytes(result)


class Session:
    """One attached process. ``resize`` and ``forward`` reach it beside the stream."""

    def __init__(
        self,
        stream: Hijacked,
        *,
        tty: bool,
        stdin: bool,
        resize: Callable[[int, int], None] | None = None,
        forward: Callable[[str], None] | None = None,
        keys: DetachKeys | None = None,
    ) -> None:
        self._stream = stream
        self._tty = tty
        self._stdin = stdin
        self._resize = resize if tty else None
        self._forward = forward if not tty else None
        self._keys = keys if tty else None
        self._frames = Demultiplexer()
        self._unsent = b""
        self._end_of_input = False
        self._interrupts = 0

    def __repr__(self) -> str:
        return f"<Session tty={self._tty} stdin={self._stdin} unsent={len(self._unsent)}>"

    def run(self) -> Ended:
        """Runs the conversation to its end; the terminal is left as it was found."""
        wanted = [signal.SIGWINCH] if self._resize else []
        if self._forward:
            wanted += FORWARDED
        elif self._tty:
            wanted += [signal.SIGTERM, signal.SIGHUP]
        with terminal.signals(wanted) as incoming:
            if self._tty and self._stdin and os.isatty(terminal.STDIN):
                with terminal.raw():
                    return self._loop(incoming)
            return self._loop(incoming)

    def _loop(self, incoming: int) -> Ended:
        self._tell_size()
        poll = select.poll()
        poll.register(incoming, select.POLLIN)
        while True:
            self._watch(poll)
            ready = dict(poll.poll(0 if self._stream.pending else None))
            if incoming in ready and (ended := self._signals(os.read(incoming, 64))):
                return ended
            if terminal.STDIN in ready and (ended := self._read_input()):
                return ended
            if self._unsent and ready.get(self._stream.fileno(), 0) & select.POLLOUT:
                self._send()
            if self._stream.pending or ready.get(self._stream.fileno(), 0) & ~select.POLLOUT:
                data = self._stream.receive()
                if not data:
                    return Ended()
                self._show(data)

    def _watch(self, poll: select.poll) -> None:
        """Input is read only while there is room for it; writing is watched only when there is
        something."""
        poll.register(
            self._stream.fileno(), select.POLLIN | (select.POLLOUT if self._unsent else 0)
        )
        if self._stdin and not self._end_of_input and len(self._unsent) < SEND_BUFFER:
            poll.register(terminal.STDIN, select.POLLIN)
        elif self._stdin:
            try:
                poll.unregister(terminal.STDIN)
            except KeyError:
                return

    def _read_input(self) -> Ended | None:
        data = os.read(terminal.STDIN, BLOCK)
        if not data:
            self._end_of_input = True
            if not self._unsent:
                self._stream.close_write()
            return None
        if self._keys:
            data, detach = self._keys.feed(data)
            if detach:
                return Ended(detached=True)
        self._unsent += data
        self._send()
        return None

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._stream.send_some(self._unsent) :]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._unsent, self._end_of_input = b"", True  # nobody reads it any more
            return
        if self._end_of_input:
            self._stream.close_write()

    def _show(self, data: bytes) -> None:
        if self._tty:
            write(terminal.STDOUT, data)
            return
        for stream, piece in self._frames.receive(data):
            write(2 if stream in (STDERR, SYSTEM_ERROR) else terminal.STDOUT, piece)

    def _signals(self, numbers: bytes) -> Ended | None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._tell_size()
            elif self._forward is None:
                return Ended(signal=number)
            else:
                self._interrupts += number in (signal.SIGINT, signal.SIGTERM)
                if self._interrupts >= FORCED_EXIT_AFTER:
                    print("hybrid: interrupted three times, leaving the container", file=sys.stderr)
                    return Ended(signal=number)
                self._hand_on(signal.Signals(number).name)
        return None

    def _hand_on(self, name: str) -> None:
        try:
            if self._forward:
                self._forward(name)
        except HybridError:
            return  # it has just exited: its output's end says so

    def _tell_size(self) -> None:
        rows, columns = terminal.size()
        if not self._resize or not rows:
            return
        try:
            self._resize(rows, columns)
        except HybridError:
            return  # it has just exited


def write(descriptor: int, data: bytes) -> None:
    """All of ``data``, whatever number of writes it takes."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
