"""The link's in-memory twin, for tests and benchmarks: a pair, or a port and its visitors."""

from __future__ import annotations

import asyncio
from collections import deque

from hybrid.errors import Unavailable

CAPACITY = 256 << 10  # bytes under way in one direction, as a socket buffer's


class _Pipe:
    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.hung_up = False  # an end of file that the reader has not seen yet
        self.closed = False
        self.changed = asyncio.Condition()

    async def read(self, max: int) -> bytes:
        async with self.changed:
            await self.changed.wait_for(lambda: self.chunks or self.hung_up or self.closed)
            if not self.chunks:
                self.hung_up = False
                return b""
            data = self.chunks.popleft()
            if len(data) > max:
                self.chunks.appendleft(data[max:])
                data = data[:max]
            self.size -= len(data)
            self.changed.notify_all()
            return data

    async def write(self, data: bytes) -> bool:
        """Whether there is still a reader."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.size < CAPACITY or self.closed)
            if not self.closed:
                self.chunks.append(data)
                self.size += len(data)
                self.changed.notify_all()
            return not self.closed

    async def close(self) -> None:
        async with self.changed:
            self.closed = True
            self.changed.notify_all()

    async def hang_up(self) -> None:
        async with self.changed:
            self.hung_up = True
            self.changed.notify_all()


class MemoryTransport:
    """One end of a ``pair``, or a visitor of a ``Port``."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, port: Port | None = None) -> None:
        self.resync = port is not None
        self._in = incoming
        self._out = outgoing
        self._port = port
        self._closed = False

    def describe(self) -> str:
        return "memory port" if self._port else "memory"

    async def read(self, max: int, /) -> bytes:
        await asyncio.sleep(0)  # a reader that always finds data must not keep the loop to itself
        return await self._in.read(max)

    async def write(self, data: bytes, /) -> None:
        if self._closed or not await self._out.write(data):
            raise Unavailable(f"{self.describe()}: closed")

    async def close(self) -> None:
        """Of a pair: both directions end, for both ends. Of a port: what is under way stays."""
        if self._closed:
            return
        self._closed = True
        if self._port is None:
            await self._in.close()
            await self._out.close()
        elif self is not self._port.agent and self._port.tells:
            await self._out.hang_up()


class Port:
    """The twin of a virtio-serial port: the byte stream lives on while host ends come and go.

    ``agent`` is the guest's end; ``connect()`` makes a host end, one at a time. ``tells``: the
    guest's end reads b"" after the host's was closed, unless another has come before it looked.
    """

    def __init__(self, *, tells: bool = True) -> None:
        self.tells = tells
        self._there, self._back = _Pipe(), _Pipe()
        self.agent = MemoryTransport(self._there, self._back, self)

    def connect(self) -> MemoryTransport:
        self._there.hung_up = False
        return MemoryTransport(self._back, self._there, self)


def pair() -> tuple[MemoryTransport, MemoryTransport]:
    """Two ends of one connection."""
    there, back = _Pipe(), _Pipe()
    return MemoryTransport(back, there), MemoryTransport(there, back)
