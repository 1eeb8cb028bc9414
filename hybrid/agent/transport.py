"""The agent's byte streams: a virtio-serial port, and connections accepted on a vsock port or a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

from hybrid.errors import Unavailable

_PORTS = Path("/sys/class/virtio-ports")
_WAIT = 30.0
_LAST_RESERVED = 1023  # LAST_RESERVED_PORT in net/vmw_vsock/af_vsock.c
_NO_MORE = 0.1  # seconds until a connection is tried that could not be accepted
_LOOK_AGAIN = (
    1.0  # seconds; the kernel tells of a host that is back, this is for the case that it did not
)


class SocketStream:
    """A connected socket."""

    resync = False

    def __init__(self, connected: socket.socket, name: str) -> None:
        connected.setblocking(False)
        self._socket, self._name = connected, name

    async def read(self, max: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, max)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def close(self) -> None:
        self._socket.close()

    def describe(self) -> str:
        return self._name


class SerialStream:
    """A virtio-serial port. One stream for the life of the guest; hosts come and go on it.

    While no host is there the port is readable and at its end, for ever; an ordinary poll would spin. An
    edge-triggered epoll inside the loop's one tells of changes only.
    """

    resync = True

    def __init__(self, device: str) -> None:
        self._device = device
        self._port = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._edges = select.epoll()
        self._edges.register(self._port, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._changed_in, self._changed_out = asyncio.Event(), asyncio.Event()
        self._gone = False
        asyncio.get_running_loop().add_reader(self._edges.fileno(), self._woken)

    def _woken(self) -> None:
        self._edges.poll(0)
        self._changed_in.set()
        self._changed_out.set()

    async def read(self, max: int) -> bytes:
        while True:
            self._changed_in.clear()
            try:
                data = os.read(self._port, max)
            except BlockingIOError:
                self._gone = False
                await self._changed_in.wait()
                continue
            if data:
                self._gone = False
                return data
            if not self._gone:
                self._gone = True
                return b""
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed_in.wait(), _LOOK_AGAIN)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._changed_out.clear()
            try:
                view = view[os.write(self._port, view) :]
            except BlockingIOError:
                await self._changed_out.wait()

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._edges.fileno())
        self._edges.close()
        os.close(self._port)

    def describe(self) -> str:
        return f"virtio-serial port {self._device}"


async def open_serial(name: str) -> SerialStream:
    """The port with that name; waits for the kernel to make it."""
    deadline = asyncio.get_running_loop().time() + _WAIT
    while asyncio.get_running_loop().time() < deadline:
        for port in _PORTS.glob("*/name"):
            device = Path("/dev", port.parent.name)
            if port.read_text().strip() == name and device.exists():
                return SerialStream(str(device))
        await asyncio.sleep(0.02)
    raise Unavailable(f"no virtio-serial port {name} appeared in {_WAIT:.0f} s")


async def accept_vsock(port: int, peer: int) -> AsyncIterator[SocketStream]:
    """Connections to a vsock port from the address ``peer`` and a reserved port, which only root there may use.

    Others are closed: those of a container, over loopback, and those of some user of the host.
    """
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind((socket.VMADDR_CID_ANY, port))
        async for connected, address in _accept(listener):
            if address[0] == peer and address[1] <= _LAST_RESERVED:
                yield SocketStream(connected, f"vsock connection from {address[0]}:{address[1]}")
            else:
                connected.close()


async def accept_unix(path: str) -> AsyncIterator[SocketStream]:
    """Connections to a Unix socket from root or from the user that the agent runs as."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        async for connected, _ in _accept(listener):
            pid, uid, _ = struct.unpack(
                "=iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            )
            if uid in (0, os.geteuid()):
                yield SocketStream(connected, f"connection of process {pid}")
            else:
                connected.close()


async def _accept(listener: socket.socket) -> AsyncIterator[tuple[socket.socket, tuple[int, int]]]:
    listener.listen(8)
    listener.setblocking(False)
    while True:
        try:
            accepted = await asyncio.get_running_loop().sock_accept(listener)
        except OSError:  # aborted by the peer, or no descriptor is free: no reason to end the agent
            await asyncio.sleep(_NO_MORE)
            continue
        yield accepted
