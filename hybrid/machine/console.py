"""The guest's serial console: read from QEMU's socket, kept in a file that cannot grow without
bound.

A guest may print as much as it likes. What is read is limited in rate (QEMU drops what nobody
takes) and what is kept in size: the log is two files of half the allowed size each, the older one
replaced when the newer is full.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from hybrid.errors import Unavailable
from hybrid.link import unix
from hybrid.link.transport import Transport

_CHUNK = 16 << 10
# One chunk per pause: at most 800 KiB/s of console output are read from one guest.
_PAUSE = 0.02


class ConsoleLog:
    """At most ``limit`` bytes of console output in ``path`` and ``path``.1."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._older = path.with_name(path.name + ".1")
        self._half = limit // 2

    def append(self, data: bytes) -> None:
        """Adds ``data``; whatever falls out of the bound is forgotten."""
        with self.path.open("ab") as file:
            file.write(data[-self._half :])
            size = file.tell()
        if size >= self._half:
            self.path.replace(self._older)

    def tail(self, size: int) -> bytes:
        """The last ``size`` bytes; empty if there is no log."""
        parts = []
        for path in (self._older, self.path):
            with contextlib.suppress(FileNotFoundError):
                parts.append(path.read_bytes())
        return b"".join(parts)[-size:]

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._older.unlink(missing_ok=True)


class Console:
    """Copies a guest's console socket to its log until the guest is gone or ``close`` is called."""

    def __init__(self, socket: Path, log: ConsoleLog) -> None:
        self.log = log
        self._socket = socket
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Starts copying; the socket must be there. Unavailable when QEMU does not listen."""
        transport = await unix.connect(self._socket)
        self.log.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log.path.touch(mode=0o600)
        self._task = asyncio.create_task(self._copy(transport), name=f"console {self._socket}")

    async def close(self, *, drain: float = 0) -> None:
        """Stops copying, after at most ``drain`` seconds for what a dead guest still has in its
        socket.
        """
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=drain)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _copy(self, transport: Transport) -> None:
        try:
            while data := await transport.read(_CHUNK):
                with contextlib.suppress(OSError):  # a full disk costs output, never the guest
                    self.log.append(data)
                await asyncio.sleep(_PAUSE)
        except Unavailable:
            return
        finally:
            await transport.close()


def printable(data: bytes, lines: int) -> str:
    """The last ``lines`` lines of console output, safe to show in a terminal, joined by `` | ``."""
    text = data.decode(errors="replace")
    kept = (
        "".join(char if char.isprintable() else " " for char in line).strip()
        for line in text.splitlines()
    )
    return " | ".join([line for line in kept if line][-lines:])
