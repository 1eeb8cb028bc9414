"""The link over a real virtio-serial port: big streams, hosts that vanish, an agent that waits without work."""

from __future__ import annotations

import asyncio
import os

import pytest

from hybrid.link.client import AgentClient
from hybrid.wire.frame import FrameType, header
from hybrid.wire.messages import Delete, Facts, StartExec
from tests.bareguest import BareGuest, run, shell

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

RESTS = {
    "nothing": b"",
    "half a header": header(FrameType.MESSAGE, 0, 100)[:5],
    "half a data frame": header(FrameType.OPEN, 9) + header(FrameType.DATA, 9, 65536) + b"x" * 99,
    "half a large message": header(FrameType.MESSAGE, 0, 1 << 20) + b"x" * 70_000,
}


async def test_the_agent_answers(client: AgentClient) -> None:
    facts = await client.call(Facts())
    assert facts.cgroup == "v2"
    assert not client.hello.boot, "drawn before Configure, clones would share it"


async def test_bytes_go_both_ways_unchanged(client: AgentClient) -> None:
    data = os.urandom(2 << 20)
    assert await run(client, "cat", stdin=data) == data


@pytest.mark.parametrize("rest", RESTS.values(), ids=RESTS.keys())
async def test_a_host_that_vanished_in_the_middle_is_replaced(
    guest: BareGuest, rest: bytes
) -> None:
    dying = await guest.connect()
    stream = dying.open()
    process = {"args": ["yes"], "cwd": "/", "env": []}
    await dying.call(StartExec("", "flood", process, stream=stream.id))
    await stream.read()
    transport = dying._transport
    dying._session.lose("killed")  # as kill -9: what is under way stays half written
    await transport.write(rest)
    await dying.close()
    client = await guest.connect()
    assert (await client.call(Facts())).boot_id
    await client.call(Delete("", "flood"))
    await client.close()


async def test_an_agent_without_a_host_does_not_work(guest: BareGuest) -> None:
    async def ticks(client: AgentClient) -> int:
        read = "for f in /proc/[0-9]*/stat; do case $(cat $f) in *python*) cat $f;; esac; done"
        output = await shell(client, read)
        return sum(int(line.split()[13]) + int(line.split()[14]) for line in output.splitlines())

    client = await guest.connect()
    before = await ticks(client)
    await client.close()
    await asyncio.sleep(5)
    client = await guest.connect()
    assert await ticks(client) - before < 150, "hundredths of a second of CPU"
    await client.close()


async def test_a_second_host_waits_for_the_first(guest: BareGuest) -> None:
    first = await guest.connect()
    second = asyncio.create_task(guest.connect())
    await asyncio.sleep(0.5)
    assert not second.done()
    await first.close()
    await (await second).close()
