"""Small asynchronous operations on file descriptors, for pipes and terminals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os

_CHUNK = 1 << 16


async def readable(descriptor: int) -> None:
    """Returns when ``descriptor`` can be read."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def writable(descriptor: int) -> None:
    """Returns when ``descriptor`` can be written."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


async def read(descriptor: int, size: int = _CHUNK) -> bytes:
    """1 … ``size`` bytes of a non-blocking descriptor; b"" at its end."""
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            await readable(descriptor)


async def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of ``data`` to a non-blocking descriptor."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            await writable(descriptor)


def write_private(path: str | os.PathLike[str], text: str) -> None:
    """A new file for root's eyes only: what runs in containers, and with what environment, is nobody else's."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        os.fchmod(descriptor, 0o600)
        file.write(text.encode())


def pipe() -> tuple[int, int]:
    """A pipe, closed in programs that are started; reading and writing ends."""
    return os.pipe2(os.O_CLOEXEC)


def close(*descriptors: int) -> None:
    """Closes what is open of ``descriptors`` (-1: nothing)."""
    for descriptor in descriptors:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def is_end(error: OSError) -> bool:
    """Whether an error of ``read`` only says that the other side is gone (a terminal answers EIO then)."""
    return error.errno == errno.EIO
