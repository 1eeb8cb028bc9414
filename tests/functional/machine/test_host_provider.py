"""The agent on this host's kernel: started, adopted, replaced, watched."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hybrid.errors import NotFound, Unavailable, Unsupported
from hybrid.link.client import AgentClient
from hybrid.machine import standing
from hybrid.machine.provider import Feature
from hybrid.machine.providers.host import HostProvider
from hybrid.paths import Paths
from hybrid.wire.messages import Facts

pytestmark = pytest.mark.root


@pytest.fixture
async def provider(paths: Paths, agent: Path) -> AsyncIterator[HostProvider]:
    made = HostProvider(paths, agent)
    await made.open()
    yield made
    await made.destroy("host")
    await made.close()


async def boot_id(provider: HostProvider) -> str:
    client = await AgentClient.connect(await provider.connect("host"), timeout=20)
    try:
        facts = await client.call(Facts())
        assert facts.kernel == os.uname().release
        return client.hello.boot
    finally:
        await client.close()


async def pid_of(provider: HostProvider) -> int:
    pid = (await provider.evidence("host"))["pid"]
    assert isinstance(pid, int)
    return pid


async def test_it_starts_when_it_is_needed(provider: HostProvider) -> None:
    assert Feature.OWN_KERNEL not in provider.features
    (status,) = await provider.list()
    assert status.running and not status.details
    assert await boot_id(provider) == await boot_id(provider)
    pid = await pid_of(provider)
    assert os.getsid(pid) == pid, "a session of its own"


async def test_it_is_in_a_control_group_of_its_own(provider: HostProvider, paths: Paths) -> None:
    await boot_id(provider)
    group, places = f"/hybrid-{paths.instance}-agent", standing.hierarchies()
    if not all(os.access(place, os.W_OK) for place in places):
        pytest.skip("control groups cannot be made here")
    lines = Path(f"/proc/{await pid_of(provider)}/cgroup").read_text().splitlines()
    assert sum(line.endswith(f":{group}") for line in lines) == len(places)
    await provider.destroy("host")
    assert not [place for place in places if (place / group[1:]).exists()]


async def test_it_outlives_the_daemon_and_is_adopted(
    provider: HostProvider, paths: Paths, agent: Path
) -> None:
    boot = await boot_id(provider)
    await provider.close()
    second = HostProvider(paths, agent)
    await second.open()
    assert await boot_id(second) == boot
    await second.close()


async def test_an_idle_agent_of_another_version_is_replaced(
    provider: HostProvider, paths: Paths, agent: Path, tmp_path: Path
) -> None:
    boot = await boot_id(provider)
    await provider.close()
    changed = tmp_path / "agent.pyz"
    shutil.copy(agent, changed)
    with changed.open("r+b") as file:
        # a newer archive: bytes before the first entry do not matter to zipimport
        content = file.read()
        file.seek(0)
        file.write(b"#!/usr/bin/env python3\n" + content)
    second = HostProvider(paths, changed)
    await second.open()
    assert await boot_id(second) != boot
    await second.close()


async def test_its_death_is_told_and_the_next_connect_starts_another(
    provider: HostProvider,
) -> None:
    told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    provider.on_stopped(lambda machine, reason: told.put_nowait((machine, reason)))
    boot = await boot_id(provider)
    os.kill(await pid_of(provider), signal.SIGKILL)
    machine, reason = await asyncio.wait_for(told.get(), 5)
    assert machine == "host" and "signal 9" in reason
    assert await boot_id(provider) != boot


async def test_an_agent_that_does_not_start(paths: Paths, tmp_path: Path) -> None:
    broken = tmp_path / "agent.pyz"
    broken.write_bytes(b"not a zip")
    provider = HostProvider(paths, broken)
    with pytest.raises(Unavailable, match="did not start"):
        await provider.connect("host")


async def test_destroy_leaves_nothing(provider: HostProvider, paths: Paths) -> None:
    await boot_id(provider)
    pid = await pid_of(provider)
    for _ in range(2):
        await provider.destroy("host")
    assert not Path(f"/proc/{pid}").exists()
    assert not paths.host_agent.exists()


async def test_there_is_one_machine_and_it_takes_no_disks(provider: HostProvider) -> None:
    with pytest.raises(NotFound):
        await provider.connect("other")
    with pytest.raises(Unsupported):
        await provider.detach_disk("host", "serial")
    with pytest.raises(Unsupported):
        await provider.console("host")
