"""How fast the agent link is: one stream read to its end, and small calls.

    python benchmarks/link_throughput.py [--mib 256] [--calls 2000]

Both ends run in this one process, so the figures count both ends' work on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from hybrid.errors import Unavailable
from hybrid.link import memory, unix
from hybrid.link.client import AgentClient
from hybrid.link.transport import SocketTransport, Transport
from hybrid.wire.messages import VERSION, Empty, HasBlob, Hello, ReadOutput, Request, Truth
from hybrid.wire.mux import DataReceived, Mux, Side
from hybrid.wire.server import Connection, serve
from hybrid.wire.session import Stream

BLOCK = bytes(64 << 10)
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
async def over_memory() -> AsyncIterator[AgentClient]:
    host, far = memory.pair()
    serving = asyncio.create_task(agent(far))
    client = await AgentClient.connect(host, timeout=10)
    yield client
    await client.close()
    await serving


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


async def throughput(client: AgentClient, mib: int) -> float:
    stream = client.open()
    await client.call(ReadOutput("bench", stream.id, mib * 16))
    start = time.perf_counter()
    total = 0
    while data := await stream.read():
        total += len(data)
    await stream.close_write()
    return total / 1e6 / (time.perf_counter() - start)


async def latency(client: AgentClient, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        await client.call(HasBlob("x"))
    return (time.perf_counter() - start) / calls * 1e6


def bare_mux(mib: int) -> float:
    """The protocol alone, without a loop: MB/s."""
    host, far = Mux(Side.HOST), Mux(Side.AGENT)
    stream = host.open()
    far.receive(host.data_to_send())
    total, start = 0, time.perf_counter()
    while total < mib << 20:
        while far.can_send(stream) >= len(BLOCK):
            far.send_data(stream, BLOCK)
        for event in host.receive(far.data_to_send()):
            if isinstance(event, DataReceived):
                total += len(event.data)
                host.consumed(stream, len(event.data))
        far.receive(host.data_to_send())
    return total / 1e6 / (time.perf_counter() - start)


async def measure(
    name: str, way: Callable[[], AbstractAsyncContextManager[AgentClient]], mib: int, calls: int
) -> None:
    async with way() as client:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        speed = statistics.median([await throughput(client, mib) for _ in range(ROUNDS)])
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        wait = statistics.median([await latency(client, calls) for _ in range(ROUNDS)])
    print(f"{name:12} {speed:8.0f} MB/s {wait:8.0f} us a call   memory +{growth / 1024:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    speed = statistics.median(bare_mux(options.mib) for _ in range(ROUNDS))
    print(f"{'mux alone':12} {speed:8.0f} MB/s")
    for name, way in (("memory", over_memory), ("unix socket", over_unix)):
        asyncio.run(measure(name, way, options.mib, options.calls))


if __name__ == "__main__":
    main()
