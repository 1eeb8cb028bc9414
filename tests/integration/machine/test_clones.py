"""Guests cloned from a template: each is its own machine, and nothing half-made is ever used."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from hybrid.errors import Conflict, Unavailable
from hybrid.link.client import AgentClient
from hybrid.machine import memory
from hybrid.machine.provider import Disk, MachineRequest, ShareDevice
from hybrid.machine.providers.cloned import ClonedProvider
from hybrid.machine.shares import ShareServer
from hybrid.machine.template import BUILDING, Limits
from hybrid.wire.messages import Configure, Facts, MachineFacts, SetTime
from tests.bareguest import shell

from .conftest import Setting, agent

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

# What a program sees that draws on randomness first thing: each on a line of its own.
FIRST_DRAWS = """
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
cat /proc/sys/kernel/random/uuid
cat /proc/sys/kernel/random/boot_id
cat /run/machine-id
grep -F '[stack]' /proc/self/maps | cut -d - -f 1
python3 -c '
import fcntl, socket, struct
with socket.socket() as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
wire.bind(("lo", 0))
server = socket.create_server(("127.0.0.1", 7000))
client = socket.create_connection(("127.0.0.1", 7000), source_address=("127.0.0.1", 7001))
print(wire.recv(2048)[14 + 20 + 4 : 14 + 20 + 8].hex())
'
"""


@pytest_asyncio.fixture
async def cloned(setting: Setting) -> AsyncIterator[ClonedProvider]:
    made = ClonedProvider(setting.paths)
    await made.open()
    yield made
    for status in await made.list():
        await made.destroy(status.id)
    await made.close()


@contextlib.asynccontextmanager
async def configured(
    provider: ClonedProvider, machine_id: str, *, rescan: bool = False
) -> AsyncIterator[tuple[AgentClient, MachineFacts]]:
    """The agent of a machine that was just given its identity, as the engine does it."""
    async with agent(provider, machine_id) as client:
        assert client.hello.boot == ""
        facts = await client.call(
            Configure(machine_id, "tested", time.time_ns(), os.urandom(64), True, rescan=rescan)
        )
        yield client, facts


async def test_clones_of_one_template_are_different_machines(
    setting: Setting, cloned: ClonedProvider
) -> None:
    """Randomness, identities, addresses of programs and TCP's sequence numbers: nothing is shared, nothing is late."""
    drawn: list[list[str]] = []
    boots = set()
    for _ in range(2):
        request = setting.request(shares_later=False)
        await cloned.create(request)
        origin = cloned.origin(request.id)
        assert origin is not None and (origin.kind, origin.memory) == ("clone", "private")
        async with configured(cloned, request.id) as (client, facts):
            lines = (await shell(client, FIRST_DRAWS)).split()
            assert len(lines) == 6, lines
            drawn.append(lines)
            assert facts.boot_id == lines[2] and facts.agent_boot
            boots.add(facts.agent_boot)
            assert "[confidentiality]" in facts.lockdown
            await client.call(SetTime(time.time_ns()))
            before = time.time_ns()
            told = (await client.call(Facts())).realtime_ns
            assert before - 50_000_000 <= told <= time.time_ns() + 50_000_000
    assert len(cloned.templates()) == 1 and cloned.templates()[0].clones == 2
    assert len(boots) == 2
    names = ("urandom", "uuid", "boot id", "machine id", "address of a program", "TCP number")
    for what, first, second in zip(names, *drawn, strict=True):
        assert first != second, what


async def test_a_clone_has_walls_and_devices_like_any_guest(
    setting: Setting, cloned: ClonedProvider
) -> None:
    disk = Disk("given", setting.image_file("given", b"hello clone"), True)
    request = setting.request(shares_later=False, disks=(disk,))
    await cloned.create(request)
    evidence = await cloned.evidence(request.id)
    assert evidence["uid"] not in (0, os.getuid()) and evidence["uid_shared_with"] == []
    assert evidence["seccomp"] == 2 and evidence["cap_eff"] == "0" * 16
    files = evidence["open_files"]
    assert isinstance(files, list) and all(entry["own"] for entry in files), files
    async with configured(cloned, request.id) as (client, _):
        found = await shell(
            client, "for d in /sys/block/sd*; do head -c 11 /dev/${d##*/}; done 2>&1"
        )
        assert "hello clone" in found
    await cloned.attach_disk(request.id, Disk("more", setting.image_file("more", b"later"), True))
    await cloned.detach_disk(request.id, "more")


async def test_a_share_needs_a_copy_of_the_memory(
    setting: Setting, cloned: ClonedProvider, shares: ShareServer, tmp_path: Path
) -> None:
    private = setting.request(shares_later=False)
    await cloned.create(private)
    directory = setting.paths.root / "shared"
    directory.mkdir(exist_ok=True)
    (directory / "note").write_text("from the host")
    socket = setting.paths.machine_run(private.id) / "s.sock"
    copied = setting.request()
    served = await serve(setting, shares, copied, directory)
    with pytest.raises(Conflict, match="file server"):
        await cloned.attach_share(private.id, served.shares[0])
    await cloned.destroy(private.id)
    await cloned.create(served)
    origin = cloned.origin(copied.id)
    assert origin is not None and (origin.kind, origin.memory) == ("clone", "copied")
    async with configured(cloned, copied.id, rescan=True) as (client, _):
        script = "mkdir /tmp/s && mount -t virtiofs tag /tmp/s && cat /tmp/s/note"
        assert await shell(client, script) == "from the host"
        # It may give memory back, which its template must not; the agent looks for the device on its own.
        balloon = "for i in 1 2 3 4 5; do ls /sys/bus/virtio/drivers/virtio_balloon; sleep 1; done"
        assert "virtio" in await shell(client, balloon)
    await cloned.destroy(copied.id)
    await shares.stop(copied.id, "tag")
    assert not socket.exists()


async def serve(
    setting: Setting, shares: ShareServer, request: MachineRequest, directory: Path
) -> MachineRequest:
    """``request`` with a share of the directory, which is served from now on."""
    socket = setting.paths.machine_run(request.id) / "tag.sock"
    await shares.serve(request.id, "tag", directory, socket, owner=None, read_only=False)
    return replace(request, shares=(ShareDevice("tag", socket),))


async def test_a_template_is_renewed_when_it_is_old_or_damaged(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    provider = ClonedProvider(setting.paths, limits=Limits(max_age=3600))
    await provider.open()
    try:
        await provider.build_template(setting.request())
        (template,) = provider._templates.all()
        # Nobody can damage it: not even root, who holds it.
        with pytest.raises(PermissionError):
            os.pwrite(template.memory, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(template.memory, 0)
        # So what another version, or a bug, could do: a state that is not the one that was noted.
        broken = memory.create("broken")
        os.write(broken, b"not a device state")
        memory.seal(broken)
        os.dup2(broken, template.state)
        os.close(broken)
        request = setting.request()
        await provider.create(request)
        assert "checksum" in caplog.text
        origin = provider.origin(request.id)
        assert origin is not None and origin.kind == "clone"
        await provider.destroy(request.id)
        (renewed,) = provider._templates.all()
        assert renewed is not template
        # A state that passes the check and cannot be loaded: boot, and say why.
        broken = memory.create("broken")
        os.write(broken, b"not a device state")
        memory.seal(broken)
        os.dup2(broken, renewed.state)
        os.close(broken)
        renewed.digest = memory.digest(renewed.state)
        request = setting.request()
        await provider.create(request)
        origin = provider.origin(request.id)
        assert origin is not None and origin.kind == "boot" and "clone" in origin.reason
        await provider.destroy(request.id)
        assert provider.templates() == []
        with pytest.raises(Unavailable, match="booted"):
            await provider.build_template(setting.request())
    finally:
        for status in await provider.list():
            await provider.destroy(status.id)
        await provider.close()
    await asyncio.sleep(0.5)
    assert [left for left in setting.leftovers() if BUILDING in left] == []
