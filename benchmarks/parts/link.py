"""How fast the agent link is: one stream read to its end, and small calls.

Both ends run in this one process, so the figures count both ends' work on one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.memory import MIB
from hybrid.errors import Unavailable
from hybrid.link import unix
from hybrid.link.client import AgentClient
from hybrid.link.transport import SocketTransport, Transport
from hybrid.wire.messages import VERSION, Empty, HasBlob, Hello, ReadOutput, Truth
from hybrid.wire.mux import DataReceived, Mux, Side
from hybrid.wire.server import Connection, serve
from hybrid.wire.session import Stream
from hybrid.wire.value import Request

BARS: dict[str, float] = {}
BLOCK = bytes(64 << 10)
SIZE = 256 * MIB
CALLS = 2000
ROUNDS = 3


async def produce(stream: Stream, blocks: int) -> None:
    with contextlib.suppress(Unavailable):
        for _ in range(blocks):
            await stream.write(BLOCK)
        await stream.close_write()


async def agent(transport: Transport) -> None:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(request: Request[Any], connection: Connection) -> object:
        if isinstance(request, ReadOutput):
            stream = connection.stream(request.stream)
            tasks.add(asyncio.create_task(produce(stream, request.offset)))
            return Empty()
        return Truth(True)

    await serve(transport, lambda: Hello(VERSION, "bench"), handle)


@asynccontextmanager
async def over_unix() -> AsyncIterator[AgentClient]:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "agent.sock"
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        transport = await unix.connect(path)
        far, _ = await asyncio.get_running_loop().sock_accept(listener)
        serving = asyncio.create_task(agent(SocketTransport(far, "agent")))
        client = await AgentClient.connect(transport, timeout=10)
        yield client
        await client.close()
        await serving


async def throughput(client: AgentClient) -> float:
    stream = client.open()
    await client.call(ReadOutput("bench", stream.id, SIZE // len(BLOCK)))
    start = time.perf_counter()
    total = 0
    while data := await stream.read():
        total += len(data)
    await stream.close_write()
    return total / 1e6 / (time.perf_counter() - start)


async def latency(client: AgentClient) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        await client.call(HasBlob("x"))
    return (time.perf_counter() - start) / CALLS * 1e6


def bare_mux() -> float:
    """The protocol alone, without a loop: MB/s."""
    host, far = Mux(Side.HOST), Mux(Side.AGENT)
    stream = host.open()
    far.receive(host.data_to_send())
    total, start = 0, time.perf_counter()
    while total < SIZE:
        while far.can_send(stream) >= len(BLOCK):
            far.send_data(stream, BLOCK)
        for event in host.receive(far.data_to_send()):
            if isinstance(event, DataReceived):
                total += len(event.data)
                host.consumed(stream, len(event.data))
        far.receive(host.data_to_send())
    return total / 1e6 / (time.perf_counter() - start)


def measure(bench: Bench) -> Iterator[Figure]:
    rounds = bench.runs(ROUNDS)

    async def both() -> tuple[float, float]:
        async with over_unix() as client:
            speeds = [await throughput(client) for _ in range(rounds)]
            waits = [await latency(client) for _ in range(rounds)]
            return statistics.median(speeds), statistics.median(waits)

    alone = statistics.median(bare_mux() for _ in range(rounds))
    speed, wait = asyncio.run(both())
    yield Figure("link-protocol-alone", alone, "MB/s", runs=rounds)
    yield Figure("link-over-socket", speed, "MB/s", runs=rounds)
    yield Figure("link-call", wait, "us", runs=rounds)
