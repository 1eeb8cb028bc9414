"""What every transport must let the link do: one suite, run over each of them.

The agent's end is the real server over the real protocol; only what it serves is made up. Ports
(virtio-serial) come in two kinds: those whose guest notices that the host's end was closed, and
those whose guest does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import socket
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import Forbidden, Internal, InvalidInput, Unavailable
from hybrid.link import memory, serial, unix, vsock
from hybrid.link.client import AgentClient
from hybrid.link.transport import SocketTransport, Transport
from hybrid.wire.frame import FrameType, header
from hybrid.wire.messages import (
    VERSION,
    Delete,
    Empty,
    Facts,
    HasBlob,
    Hello,
    OutOfMemory,
    PutArchive,
    ReadOutput,
    Request,
    Shutdown,
    Signal,
    Truth,
    WriteInput,
)
from hybrid.wire.server import Connection, serve
from hybrid.wire.session import Stream

BLOCK = bytes(range(256)) * 256


class Agent:
    """Serves a few requests in a way that shows the link, and counts its hosts."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.streams: dict[int, Stream] = {}
        self.finished: list[str] = []
        self.release = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, transport: Transport) -> None:
        await serve(
            transport, lambda: Hello(VERSION, "boot-1"), self.handle, connected=self.connected
        )

    def connected(self, connection: Connection) -> None:
        self.connections.append(connection)

    async def handle(self, request: Request[Any], connection: Connection) -> object:
        match request:
            case HasBlob():
                return Truth(request.digest == "yes")
            case Signal(container=text):  # an event for each
                for number in range(request.signal):
                    await connection.emit(OutOfMemory(f"{text}{number}"))
            case Delete():
                raise Forbidden("not while it runs")
            case Facts():
                raise LookupError("a bug")
            case Shutdown():  # answered when the test says so
                await self.release.wait()
                self.finished.append("shutdown")
            case WriteInput():  # an echo
                self.spawn(self.echo(connection.stream(request.stream)))
            case ReadOutput():  # ``offset`` blocks
                self.spawn(self.produce(connection.stream(request.stream), request.offset))
            case PutArchive():
                stream = connection.stream(request.stream)
                total = 0
                while data := await stream.read():
                    total += len(data)
                self.finished.append(f"unpacked {total}")
        return Empty()

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def echo(self, stream: Stream) -> None:
        self.streams[stream.id] = stream
        with contextlib.suppress(Unavailable):
            while data := await stream.read():
                await stream.write(data)
            await stream.close_write()

    async def produce(self, stream: Stream, blocks: int) -> None:
        with contextlib.suppress(Unavailable):
            for _ in range(blocks):
                await stream.write(BLOCK)
            await stream.close_write()


class Link:
    """One agent that can be reached again and again."""

    def __init__(self, agent: Agent, reach: Callable[[], Awaitable[Transport]]) -> None:
        self.agent = agent
        self.reach = reach

    async def connect(self) -> AgentClient:
        return await AgentClient.connect(await self.reach(), timeout=20, name="machine m")


@asynccontextmanager
async def background(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def memory_pair(agent: Agent, _: Path) -> AsyncIterator[Link]:
    async with AsyncExitStack() as stack:

        async def reach() -> Transport:
            host, far = memory.pair()
            await stack.enter_async_context(background(agent.serve(far)))
            return host

        yield Link(agent, reach)


@asynccontextmanager
async def memory_port(agent: Agent, *, tells: bool) -> AsyncIterator[Link]:
    port = memory.Port(tells=tells)

    async def reach() -> Transport:
        return port.connect()

    async with background(agent.serve(port.agent)):
        yield Link(agent, reach)


async def accept_all(listener: socket.socket, each: Callable[[socket.socket], Any]) -> None:
    """Runs ``each`` for every connection, as an agent's listener does."""
    listener.setblocking(False)
    async with AsyncExitStack() as stack:
        while True:
            new, _ = await asyncio.get_running_loop().sock_accept(listener)
            await stack.enter_async_context(background(each(new)))


async def serve_socket(agent: Agent, new: socket.socket) -> None:
    transport = SocketTransport(new, "listener")
    try:
        await agent.serve(transport)
    finally:
        await transport.close()


@asynccontextmanager
async def unix_socket(agent: Agent, directory: Path) -> AsyncIterator[Link]:
    path = directory / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        async with background(accept_all(listener, lambda new: serve_socket(agent, new))):
            yield Link(agent, lambda: unix.connect(path))


@asynccontextmanager
async def vsock_loopback(agent: Agent, _: Path) -> AsyncIterator[Link]:
    port = 20_000 + os.getpid() % 10_000
    with socket.socket(socket.AF_VSOCK) as listener:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen()
        async with background(accept_all(listener, lambda new: serve_socket(agent, new))):
            yield Link(agent, lambda: vsock.connect(vsock.LOCAL, port))


async def copy(source: socket.socket, target: Any) -> None:
    """Moves bytes until ``source`` ends; what cannot be delivered is lost, as with QEMU."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, 4096):
            await loop.sock_sendall(target, data)


@asynccontextmanager
async def port_of_qemu(agent: Agent, directory: Path) -> AsyncIterator[Link]:
    """As QEMU joins a socket and a guest's port: one visitor at a time, and the guest is told
    nothing."""
    path = directory / "port.sock"
    outside, inside = socket.socketpair()
    outside.setblocking(False)

    async def visit() -> None:
        loop = asyncio.get_running_loop()
        while True:
            visitor, _ = await loop.sock_accept(listener)
            visitor.setblocking(False)
            async with background(copy(outside, visitor)):
                await copy(visitor, outside)
            visitor.close()

    with socket.socket(socket.AF_UNIX) as listener, outside, inside:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        far = SocketTransport(inside, "guest port", resync=True)
        async with background(visit()), background(agent.serve(far)):
            yield Link(agent, lambda: serial.connect(path))


class Terminal:
    """A raw pty end as a transport: the narrowest byte stream there is."""

    resync = True

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        os.set_blocking(descriptor, False)

    def describe(self) -> str:
        return "pty"

    async def read(self, max: int, /) -> bytes:
        while True:
            with contextlib.suppress(BlockingIOError):
                return os.read(self.descriptor, max)
            await self.ready(asyncio.get_running_loop().add_reader, "remove_reader")

    async def write(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.descriptor, view) :]
            except BlockingIOError:
                await self.ready(asyncio.get_running_loop().add_writer, "remove_writer")

    async def ready(self, add: Any, remove: str) -> None:
        future = asyncio.get_running_loop().create_future()
        add(self.descriptor, lambda: future.done() or future.set_result(None))
        try:
            await future
        finally:
            getattr(asyncio.get_running_loop(), remove)(self.descriptor)

    async def close(self) -> None:
        """The stream lives on."""


@asynccontextmanager
async def pty(agent: Agent, _: Path) -> AsyncIterator[Link]:
    master, slave = os.openpty()
    tty.setraw(slave)

    async def reach() -> Transport:
        return Terminal(master)

    try:
        async with background(agent.serve(Terminal(slave))):
            yield Link(agent, reach)
    finally:
        os.close(master)
        os.close(slave)


@functools.cache
def has_vsock_loopback() -> bool:
    try:
        with socket.socket(socket.AF_VSOCK) as one, socket.socket(socket.AF_VSOCK) as two:
            one.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            one.listen()
            two.settimeout(0.2)
            two.connect((vsock.LOCAL, one.getsockname()[1]))
    except (OSError, AttributeError):
        return False
    return True


WAYS: dict[str, Callable[[Agent, Path], contextlib.AbstractAsyncContextManager[Link]]] = {
    "memory": memory_pair,
    "port": lambda agent, _: memory_port(agent, tells=True),
    "silent-port": lambda agent, _: memory_port(agent, tells=False),
    "unix": unix_socket,
    "serial": port_of_qemu,
    "pty": pty,
    "vsock": vsock_loopback,
}
PORTS = ["port", "silent-port", "serial", "pty"]


@pytest.fixture(params=WAYS)
async def link(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Link]:
    if request.param == "vsock" and not has_vsock_loopback():
        pytest.skip("no vsock loopback in this kernel (the guest's is tested in tests/integration)")
    async with WAYS[request.param](Agent(), tmp_path) as way:
        yield way


@pytest.fixture
async def client(link: Link) -> AsyncIterator[AgentClient]:
    connected = await link.connect()
    yield connected
    await connected.close()


async def test_hello_and_answers(client: AgentClient) -> None:
    assert client.hello == Hello(VERSION, "boot-1")
    assert await client.call(HasBlob("yes")) == Truth(True)
    assert await client.call(HasBlob("no")) == Truth(False)


async def test_errors_arrive_as_their_kind(client: AgentClient) -> None:
    with pytest.raises(Forbidden, match="not while it runs"):
        await client.call(Delete("c"))
    with pytest.raises(Internal, match="Facts: LookupError: a bug"):
        await client.call(Facts())
    with pytest.raises(InvalidInput, match="stream 99 is not open"):
        await client.call(WriteInput("c", 99))


async def test_many_calls_at_once(client: AgentClient) -> None:
    answers = await asyncio.gather(
        *(client.call(HasBlob("yes" if n % 3 else "")) for n in range(200))
    )
    assert [answer.value for answer in answers] == [bool(n % 3) for n in range(200)]


async def test_bytes_come_through_unchanged_both_ways(client: AgentClient) -> None:
    sent, got = hashlib.sha256(), hashlib.sha256()
    stream = client.open()
    await client.call(WriteInput("c", stream.id))

    async def send() -> None:
        for size in (1, 17, 4096, 65536, 300_000, 1_000_000):
            data = os.urandom(size)
            sent.update(data)
            await stream.write(data)
        await stream.close_write()

    async with background(send()):
        while data := await stream.read(50_000):
            got.update(data)
    assert got.digest() == sent.digest()


async def test_bytes_may_precede_the_request_that_names_the_stream(
    link: Link, client: AgentClient
) -> None:
    async with client.open() as stream:
        await stream.write(BLOCK)
        await stream.close_write()
        await client.call(PutArchive("c", "/", stream.id))
    assert link.agent.finished == [f"unpacked {len(BLOCK)}"]


async def test_leaving_a_stream_sends_what_was_written(link: Link, client: AgentClient) -> None:
    async with client.open() as stream:
        put = asyncio.create_task(client.call(PutArchive("c", "/", stream.id)))
        await stream.write(BLOCK * 8)
    await put
    assert link.agent.finished == [f"unpacked {8 * len(BLOCK)}"]


async def test_a_reader_that_stops_blocks_nobody(client: AgentClient) -> None:
    stopped, busy = client.open(), client.open()
    await client.call(ReadOutput("c", stopped.id, 100))
    await client.call(ReadOutput("c", busy.id, 32))
    total = 0
    while data := await busy.read():
        total += len(data)
    assert total == 32 * len(BLOCK)
    assert await client.call(HasBlob("yes")) == Truth(True)
    rest = 0
    while data := await stopped.read():
        rest += len(data)
    assert rest == 100 * len(BLOCK)


async def test_a_reset_ends_the_far_side_too(link: Link, client: AgentClient) -> None:
    stream = client.open()
    await client.call(WriteInput("c", stream.id))
    await stream.write(b"x")
    assert await stream.read() == b"x"
    await stream.reset()
    await client.call(HasBlob("yes"))
    with pytest.raises(Unavailable, match="was reset"):
        await link.agent.streams[stream.id].write(b"y")
    with pytest.raises(Unavailable, match="was reset"):
        await stream.read()


async def test_events_arrive_in_order(client: AgentClient) -> None:
    await client.call(Signal("c", 50))
    events = client.events()
    assert [await anext(events) for _ in range(50)] == [OutOfMemory(f"c{n}") for n in range(50)]


async def test_a_lost_host_costs_streams_but_no_work(link: Link, client: AgentClient) -> None:
    stream = client.open()
    await client.call(WriteInput("c", stream.id))
    shutdown = asyncio.create_task(client.call(Shutdown()))
    await client.call(HasBlob("yes"))
    await client.close()
    with pytest.raises(Unavailable, match="connection to machine m lost: closed"):
        await shutdown
    again = await link.connect()
    assert await again.call(HasBlob("yes")) == Truth(True)
    with pytest.raises(Unavailable):
        await link.agent.streams[stream.id].write(bytes(1 << 20))
    link.agent.release.set()
    await again.call(HasBlob("no"))
    assert link.agent.finished == ["shutdown"]
    assert len(link.agent.connections) == 2
    await again.close()


async def test_the_host_sees_the_end_of_a_closed_connection(link: Link) -> None:
    client = await link.connect()
    while not link.agent.connections:
        await client.call(HasBlob("yes"))
    await client.call(Signal("c", 1))
    assert await anext(client.events()) == OutOfMemory("c0")
    await client.close()
    await client.close()
    assert client.closed and client.reason == "closed"
    assert [event async for event in client.events()] == []


RESTS = {
    "nothing": b"",
    "half a header": header(FrameType.MESSAGE, 0, 100)[:5],
    "half a data frame": header(FrameType.OPEN, 9) + header(FrameType.DATA, 9, 65536) + b"x" * 99,
    "half a large message": header(FrameType.MESSAGE, 0, 1 << 20) + b"x" * 70_000,
    "a mark that nobody waited for": b"\xf7hybrid-resync\r\n0123456789abcdef",
}


@pytest.mark.parametrize("link", PORTS, indirect=True)
@pytest.mark.parametrize("rest", RESTS.values(), ids=RESTS.keys())
async def test_a_port_serves_again_after_a_host_that_vanished(link: Link, rest: bytes) -> None:
    client = await link.connect()
    stream = client.open()
    await client.call(ReadOutput("c", stream.id, 64))  # leaves bytes under way to the host
    await stream.read()
    await client.close()
    vanished = await link.reach()
    await vanished.write(rest)
    await vanished.close()
    again = await link.connect()
    assert await again.call(HasBlob("yes")) == Truth(True)
    again_stream = again.open()
    await again.call(ReadOutput("c", again_stream.id, 4))
    got = bytearray()
    while data := await again_stream.read():
        got += data
    assert got == BLOCK * 4
    await again.close()


@pytest.mark.parametrize("link", PORTS, indirect=True)
async def test_a_host_that_the_agent_has_given_up_knows_at_once(link: Link) -> None:
    client = await link.connect()
    stream = client.open()
    await client.call(ReadOutput("c", stream.id, 100))
    await client.call(HasBlob("yes"))
    await link.agent.connections[0].close()
    with pytest.raises(Unavailable, match="no frame header"):
        while await stream.read():
            pass
    await client.wait_closed()
    again = await link.connect()
    assert await again.call(HasBlob("yes")) == Truth(True)
    await again.close()
