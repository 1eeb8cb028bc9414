"""Guests from their start to their end, through the real libvirt driver."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from hybrid.errors import Conflict, NotFound, Unavailable
from hybrid.machine.profile import BootTimeout
from hybrid.machine.provider import Boot, Disk, Nic, ShareDevice
from hybrid.machine.providers.libvirt import LibvirtProvider
from hybrid.machine.shares import ShareServer
from tests.bareguest import shell

from .conftest import Setting, agent

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

SERIALS = "for f in /sys/block/sd*/device/vpd_pg80; do tail -c +5 $f; echo; done"


@pytest.fixture
def tap() -> Iterator[str]:
    name = f"hyt{os.getpid():x}"[:15]
    subprocess.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


async def test_a_guest_lives_with_its_devices(
    setting: Setting, provider: LibvirtProvider, tap: str
) -> None:
    layer = setting.image_file("layer", b"layer")
    writable = setting.image_file("writable", b"writable", mode=0o600)
    later = setting.image_file("later", b"later")
    request = setting.request(disks=(Disk("layer-0", layer, True),))
    await provider.create(request)
    assert [(s.id, s.running) for s in await provider.list()] == [(request.id, True)]
    async with agent(provider, request.id) as client:
        assert (await shell(client, SERIALS)).split() == ["layer-0"]
        await provider.attach_disk(request.id, Disk("writable-1", writable, False))
        await provider.attach_disk(request.id, Disk("layer-2", later, True))
        await shell(client, "for i in 1 2 3 4 5; do [ -e /dev/sdc ] && break; sleep 0.2; done")
        assert set((await shell(client, SERIALS)).split()) == {"layer-0", "writable-1", "layer-2"}
        await shell(client, "printf guest-was-here > /dev/sdb; sync")
        await provider.attach_nic(request.id, Nic("52:54:00:12:34:56", tap))
        found = await shell(client, "sleep 1; cat /sys/class/net/*/address")
        assert "52:54:00:12:34:56" in found
        with pytest.raises(Conflict):
            await provider.attach_disk(request.id, Disk("layer-2", later, True))
        await provider.detach_nic(request.id, "52:54:00:12:34:56")
        await provider.detach_nic(request.id, "52:54:00:12:34:56")
        await provider.detach_disk(request.id, "writable-1")
        assert set((await shell(client, SERIALS)).split()) == {"layer-0", "layer-2"}
    assert writable.read_bytes().startswith(b"guest-was-here")
    await provider.destroy(request.id)
    await provider.destroy(request.id)
    with pytest.raises(NotFound):
        await provider.connect(request.id)
    await provider.close()
    await provider.open()
    assert setting.leftovers() == []


async def test_the_walls_around_qemu_are_up(setting: Setting, provider: LibvirtProvider) -> None:
    layer = setting.image_file("shared-layer", b"layer")
    request = setting.request(disks=(Disk("layer-0", layer, True),))
    await provider.create(request)
    found = await provider.evidence(request.id)
    assert isinstance(found["uid"], int) and found["uid"] > 1_900_000_000
    assert found["groups"] in ([], [found["gid"]])
    assert found["seccomp"] == 2
    assert found["no_new_privs"] is True
    assert int(str(found["cap_eff"]), 16) == 0
    assert found["namespaces"]["mnt"] != found["daemon_namespaces"]["mnt"]  # type: ignore[index]
    assert found["uid_shared_with"] == []
    assert [f for f in found["open_files"] if not f["own"]] == []  # type: ignore[attr-defined]
    assert "qemu" in str(found["cgroup"])
    model = set(found["device_model"])  # type: ignore[call-overload]
    assert not {name for name in model if any(w in name for w in ("usb", "vga", "hda", "fdc"))}
    # A shared image keeps its owner: the guest's QEMU could not make it writable.
    assert layer.stat().st_uid == 0


async def test_a_killed_guest_is_reported(setting: Setting, provider: LibvirtProvider) -> None:
    ended: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    provider.on_stopped(lambda machine_id, reason: ended.put_nowait((machine_id, reason)))
    request = setting.request()
    await provider.create(request)
    pid = (await provider.evidence(request.id))["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    machine_id, reason = await asyncio.wait_for(ended.get(), 10)
    assert machine_id == request.id
    assert reason == "killed: its QEMU process got signal 9"
    assert [(s.running, s.reason) for s in await provider.list()] == [(False, reason)]
    await provider.destroy(request.id)
    await provider.close()
    await provider.open()
    assert setting.leftovers() == []


async def test_a_guest_that_does_not_boot_says_why(
    setting: Setting, provider: LibvirtProvider
) -> None:
    root = setting.image_file("not-a-root", b"no file system")
    image = setting.image
    request = setting.request(boot=Boot(image.kernel, image.initrd, root, image.command_line))
    with pytest.raises(Unavailable, match=r"the guest did not boot: .*; console: .+"):
        await provider.create(request)
    assert await provider.list() == []
    await provider.close()
    await provider.open()
    assert setting.leftovers() == []


async def test_a_guest_without_an_agent_is_given_up(
    setting: Setting, provider: LibvirtProvider
) -> None:
    request = setting.request()
    hasty = request.profile.model_copy(update={"boot_timeout": BootTimeout(kvm=0.1, tcg=0.1)})
    with pytest.raises(Unavailable, match=r"its agent did not answer within 0\.1 s"):
        await provider.create(setting.request(profile=hasty))
    assert await provider.list() == []


async def test_shares_reach_the_guest_with_the_callers_rights(
    setting: Setting, provider: LibvirtProvider, shares: ShareServer
) -> None:
    volume = setting.paths.volume("v")
    volume.mkdir(parents=True)
    (volume / "hello").write_text("from the volume")
    bound = setting.paths.root / "bound"
    bound.mkdir()
    os.chown(bound, 1000, 1000)
    (bound / "secret").write_text("of root")
    (bound / "secret").chmod(0o600)
    request = setting.request()
    run = setting.paths.machine_run(request.id)
    await shares.serve(request.id, "v", volume, run / "v.sock", owner=None, read_only=True)
    await provider.create(
        setting.request(id=request.id, shares=(ShareDevice("v", run / "v.sock"),))
    )
    async with agent(provider, request.id) as client:
        mount = "mkdir -p /run/{0}; mount -t virtiofs {0} /run/{0} 2>&1"
        print(await shell(client, mount.format("v")))
        assert await shell(client, "cat /run/v/hello") == "from the volume"
        assert "Read-only" in await shell(client, "echo x 2>&1 > /run/v/new")
        await shares.serve(
            request.id, "b", bound, run / "b.sock", owner=(1000, 1000), read_only=False
        )
        await provider.attach_share(request.id, ShareDevice("b", run / "b.sock"))
        await shell(client, "sleep 1; " + mount.format("b"))
        assert "denied" in await shell(client, "cat /run/b/secret 2>&1")
        await shell(client, "echo new > /run/b/new; umount /run/b")
        assert (bound / "new").stat().st_uid == 1000
        await provider.detach_share(request.id, "b")
        await shares.stop(request.id, "b")
        config = bound / "app.conf"
        config.write_text("old")
        os.chown(config, 1000, 1000)
        await shares.serve(
            request.id, "f", config, run / "f.sock", owner=(1000, 1000), read_only=False
        )
        await provider.attach_share(request.id, ShareDevice("f", run / "f.sock"))
        await shell(client, "sleep 1; " + mount.format("f"))
        assert (await shell(client, "ls -A /run/f; cat /run/f/*")).split() == ["app.conf", "old"]
        await shell(client, "echo new > /run/f/app.conf; echo x > /run/f/another; umount /run/f")
        assert config.read_text() == "new\n"
        assert sorted(path.name for path in bound.iterdir()) == ["app.conf", "new", "secret"]
        await provider.detach_share(request.id, "f")
        await shares.stop(request.id, "f")
    again = ShareServer(setting.paths, list)
    await again.open()
    assert repr(again) == "<ShareServer ['v']>"
    await provider.destroy(request.id)
    await again.stop(request.id, "v")
    await shares.stop(request.id, "v")
    await again.close()
    await provider.close()
    await provider.open()
    assert setting.leftovers() == []


async def test_a_dead_file_server_is_reported(setting: Setting, shares: ShareServer) -> None:
    lost: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
    shares.on_lost(lambda *what: lost.put_nowait(what))
    directory = setting.paths.root / "served"
    directory.mkdir()
    request = setting.request()
    socket = setting.paths.machine_run(request.id) / "s.sock"
    await shares.serve(request.id, "s", directory, socket, owner=None, read_only=False)
    pids = subprocess.run(
        ["pgrep", "-f", f"shared-dir={directory}"], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(pids[0]), signal.SIGKILL)
    assert await asyncio.wait_for(lost.get(), 10) == (
        *(request.id, "s"),
        "the share's file server got signal 9",
    )
    await shares.stop(request.id, "s")
    assert not socket.exists()
