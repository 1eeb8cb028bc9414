"""The byte stream to an agent: the interface that every way of reaching one implements.

A transport knows nothing of frames. It is used by one connection at a time; ``read`` and ``write``
may be under way at once, but each only once, and none when ``close`` is called. All errors of the
medium are ``Unavailable`` or OSError.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from hybrid.errors import Unavailable
from hybrid.wire.session import ByteStream

Transport = ByteStream


class SocketTransport:
    """A transport over a connected stream socket of any family."""

    def __init__(self, connected: socket.socket, name: str, *, resync: bool = False) -> None:
        connected.setblocking(False)
        self.resync = resync
        self._socket = connected
        self._name = name

    def __repr__(self) -> str:
        return f"<SocketTransport {self._name}{' closed' if self._socket.fileno() < 0 else ''}>"

    def describe(self) -> str:
        return self._name

    async def read(self, max: int, /) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, max)
        except OSError as error:
            raise Unavailable(f"{self._name}: {error.strerror or error}") from error

    async def write(self, data: bytes, /) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except OSError as error:
            raise Unavailable(f"{self._name}: {error.strerror or error}") from error

    async def close(self) -> None:
        """Idempotent. The peer sees the end at once, even if the socket was inherited by another
        process."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


async def connect_socket(
    family: socket.AddressFamily,
    address: str | tuple[int, int],
    name: str,
    *,
    resync: bool = False,
    prepare: Callable[[socket.socket], None] = lambda new: None,
) -> SocketTransport:
    """A transport over a new connection to ``address``; Unavailable, with ``name``, if nothing
    listens there. ``prepare`` gets the socket before it connects."""
    try:
        new = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:  # a family that this kernel does not have
        raise Unavailable(f"{name}: {error.strerror or error}") from error
    try:
        new.setblocking(False)
        prepare(new)
        await asyncio.get_running_loop().sock_connect(new, address)
    except OSError as error:
        new.close()
        raise Unavailable(f"{name}: {error.strerror or error}") from error
    except BaseException:
        new.close()
        raise
    return SocketTransport(new, name, resync=resync)
