"""Clones that stand ready and have rehearsed: as different from each other as any, and with nothing left of it."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from hybrid.engine import rehearsal
from hybrid.machine.pool import PoolLimits
from hybrid.machine.provider import Disk
from hybrid.machine.providers.pooled import PooledProvider
from hybrid.wire.messages import Configure, List
from tests.bareguest import shell

from .conftest import Setting
from .test_clones import FIRST_DRAWS

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]


async def test_two_that_stood_ready_are_different_machines(setting: Setting) -> None:
    provider = PooledProvider(setting.paths, pool=PoolLimits(size=2))
    provider.rehearse(lambda layer: rehearsal.request("default", layer, 100_000))
    await provider.open()
    try:
        wanted = setting.request(shares_later=False)
        assert await provider.take(wanted) == ""
        await provider.build_template(wanted)
        async with asyncio.timeout(90):
            while provider.templates()[0].ready < 2:
                await asyncio.sleep(0.1)
        drawn: list[list[str]] = []
        for _ in range(2):
            taken = await provider.take(wanted)
            disk = Disk("given", setting.image_file("given", b"hello clone"), True)
            await provider.create(setting.request(id=taken, shares_later=False, disks=(disk,)))
            origin = provider.origin(taken)
            assert origin is not None and origin.taken >= origin.made > 0
            client = provider.client(taken)
            assert client is not None and client.hello.boot == ""
            assert provider.client(taken) is None  # its link is given out once
            assert (await client.call(List())).processes == []
            facts = await client.call(
                Configure(taken, "tested", time.time_ns(), os.urandom(64), True)
            )
            assert facts.agent_boot and abs(facts.realtime_ns - time.time_ns()) < 1e9
            left = await shell(
                client, "cat /proc/mounts; ls /sys/fs/cgroup /sys/block /run; ip -o link; ps"
            )
            assert "rehearsal" not in left and "overlay" not in left
            lines = (await shell(client, FIRST_DRAWS)).split()
            assert len(lines) == 6, lines
            drawn.append(lines)
            await client.close()
        assert all(first != second for first, second in zip(*drawn, strict=True)), drawn
    finally:
        for status in await provider.list():
            await provider.destroy(status.id)
        await provider.close()
