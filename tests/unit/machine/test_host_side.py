"""Files, users and processes of the host: who may reach what, and what is seen of a QEMU."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import Internal, NotFound, Unavailable
from hybrid.machine import access, embed, evidence, hostfacts, kvm, profile
from hybrid.machine.kvm import Answer
from hybrid.machine.profile import Accelerator
from hybrid.machine.provider import Boot, Disk, MachineRequest, ShareDevice
from hybrid.paths import Paths

ME = os.getuid(), os.getgid()


def test_our_own_directories_are_opened_for_passing_through(tmp_path: Path) -> None:
    root = tmp_path / "root"
    deep = root / "containers" / "c"
    deep.mkdir(parents=True)
    for directory in (deep, deep.parent, root):
        directory.chmod(0o700)
    before = tmp_path.stat().st_mode
    # What is above may be closed, as test directories are; ours are done by then.
    with contextlib.suppress(Unavailable):
        access.let_through(deep / "disk", (root,))
    assert [d.stat().st_mode & 0o777 for d in (root, deep.parent, deep)] == [0o711] * 3
    assert tmp_path.stat().st_mode == before


def test_other_directories_are_left_alone(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "root").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(Unavailable, match=rf"{closed} is closed to other users \(chmod o\+x"):
        access.let_through(closed / "root" / "disk", (closed / "root",))
    assert closed.stat().st_mode & 0o777 == 0o700


def test_a_shared_image_must_be_readable_and_stays_as_it_is(tmp_path: Path) -> None:
    image = tmp_path / "layer"
    with pytest.raises(NotFound, match="does not exist"):
        access.grant_disk(Disk("l", image, True), *ME, (Path("/"),))
    image.touch(mode=0o600)
    with pytest.raises(Internal, match="not readable by all users"):
        access.grant_disk(Disk("l", image, True), *ME, (Path("/"),))
    with pytest.raises(Internal, match="not a regular file"):
        access.grant_disk(Disk("l", tmp_path, True), *ME, (Path("/"),))


def test_a_share_needs_its_server(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nothing serves the share t"):
        access.grant_share(ShareDevice("t", tmp_path / "s"), *ME, (Path("/"),))


def test_the_embedded_driver_is_reached_by_a_short_path(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "root", tmp_path / "run")
    paths.run.mkdir()
    for _ in range(2):
        embed.prepare(paths, tmp_path / "no-kvm", namespaces=True)
    assert embed.uri(paths) == f"qemu:///embed?root={tmp_path}/run/libvirt"
    assert (tmp_path / "run" / "libvirt").resolve() == paths.libvirt
    assert (paths.libvirt / "etc" / "qemu.conf").exists()


def test_qemu_conf_keeps_the_walls_up() -> None:
    lines = embed.configuration("libvirt-qemu", namespaces=True).splitlines()
    assert "seccomp_sandbox = 1" in lines
    assert "dynamic_ownership = 0" in lines
    assert 'namespaces = [ "mount" ]' in lines
    assert "namespaces = [  ]" in embed.configuration("root", namespaces=False).splitlines()


def test_evidence_of_a_process(tmp_path: Path) -> None:
    with (tmp_path / "own").open("w"), (tmp_path / "foreign").open("w"):
        found = evidence.gather(os.getpid(), {str(tmp_path / "own")})
    assert found["pid"] == os.getpid()
    assert found["uid"] == os.geteuid()
    assert found["namespaces"] == found["daemon_namespaces"]
    files = found["open_files"]
    assert isinstance(files, list)
    assert {"path": str(tmp_path / "own"), "own": True} in files
    assert {"path": str(tmp_path / "foreign"), "own": False} in files
    assert not [f for f in files if str(f["path"]).startswith(("socket:", "anon_inode:"))]
    assert found["accelerator"] == "tcg"


def test_a_gone_process_has_no_evidence() -> None:
    with pytest.raises(NotFound, match="is gone"):
        evidence.gather(2**22 + 1, ())


def test_the_device_model_is_read_off_the_command_line() -> None:
    line = [
        *("qemu", "-accel", "kvm,thread=multi", "-device", '{"driver":"virtio-rng-pci","id":"r"}'),
        *("-device", "isa-serial,chardev=c", "-device", '{"driver":"virtio-rng-pci","id":"q"}'),
    ]
    assert evidence.device_model(line) == ["isa-serial", "virtio-rng-pci"]
    assert evidence.accelerator(line) == "kvm"


def wanting(**changes: Any) -> MachineRequest:
    shape = profile.load("small")
    boot = Boot(Path("/g/vmlinuz"), Path("/g/initrd"), Path("/g/root"), "quiet")
    return dataclasses.replace(MachineRequest("m1", "db", shape, shape.memory, 1, boot), **changes)


async def test_kvm_that_is_demanded_and_missing_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> Answer:
        return Answer(False, "it hangs")

    monkeypatch.setattr(kvm, "probe", broken)
    with pytest.raises(Unavailable, match="machine db: no KVM: it hangs"):
        await hostfacts.gather(wanting(), Accelerator.KVM, tmp_path / "kvm.json")
    facts = await hostfacts.gather(wanting(), Accelerator.AUTO, tmp_path / "kvm.json")
    assert facts.accelerator is Accelerator.TCG


def test_a_guest_bigger_than_the_host_is_refused(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 900000 kB\nMemAvailable: 300000 kB\n")
    hostfacts.check_memory(wanting(), meminfo)
    with pytest.raises(Unavailable, match=r"machine db: it wants 1024 MiB, the host has 292 MiB"):
        hostfacts.check_memory(wanting(memory=1 << 30), meminfo)


def test_what_libvirt_left_of_guests_that_are_gone_is_removed(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "root", tmp_path / "run")
    ours = f"hybrid-{paths.instance}-"
    names = [
        f"log/qemu/{ours}%s.log",
        f"run/qemu/{ours}%s.xml.new",  # a status that its owner did not live to finish
        f"lib/qemu/domain-7-{ours}%s/key",
    ]
    for name in names:
        for guest in ("alive", "gone"):
            file = paths.libvirt / (name % guest)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    embed.remove_strays(paths, [f"{ours}alive"])
    for name in names:
        assert (paths.libvirt / (name % "alive")).exists()
        assert not (paths.libvirt / (name % "gone")).exists()
