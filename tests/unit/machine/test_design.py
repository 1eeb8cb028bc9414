"""Domains, as golden files: HYBRID_REGENERATE=1 writes them anew, to be reviewed as a diff."""

from __future__ import annotations

import dataclasses
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import InvalidInput, Unavailable
from hybrid.machine import design, domain, profile
from hybrid.machine.design import HostFacts, Placement, allocate_uid
from hybrid.machine.profile import Accelerator, MachineProfile
from hybrid.machine.provider import Boot, Disk, MachineRequest, Nic, ShareDevice

GOLDEN = Path(__file__).parent / "golden"
REGENERATE = bool(os.environ.get("HYBRID_REGENERATE"))
INSTANCE = "0123abcd"
ID = "fedcba9876543210" * 2
NAME = "payroll-db"
BOOT = Boot(Path("/g/vmlinuz"), Path("/g/initrd"), Path("/g/root"), "quiet panic=-1")
TCG = HostFacts("x86_64", Accelerator.TCG, vsock=False)
KVM = HostFacts("x86_64", Accelerator.KVM, vsock=True, kvm_group=108)
ARM = HostFacts("aarch64", Accelerator.TCG, vsock=False)
PLACEMENT = Placement(INSTANCE, 1_900_000_007, Path("/run/h/agent.sock"), Path("/run/h/con.sock"))


def request(name: str = "default", /, **changes: Any) -> MachineRequest:
    shape = profile.load(name)
    base = MachineRequest(ID, NAME, shape, shape.memory, shape.cpus, BOOT)
    return dataclasses.replace(base, **changes)


def shaped(**changes: Any) -> MachineProfile:
    values = profile.load("default").model_dump() | changes
    return MachineProfile.model_validate(values)


FULL = request(
    disks=(Disk("layer-0", Path("/l/0"), True), Disk("rw-1", Path("/w/1"), False)),
    nics=(Nic("02:00:00:00:00:01", "hytap0"), Nic("02:00:00:00:00:02", "hytap1")),
    shares=(ShareDevice("data", Path("/run/h/data.sock")),),
)
BARE = request(
    profile=shaped(
        devices={"rng": False, "balloon": False, "link": "serial", "hotplug_ports": 0},
        cpu_model="Nehalem",
        kernel_arguments=["mitigations=auto"],
    )
)
CASES = {
    "default-tcg": (request(), TCG),
    "default-kvm-vsock": (request(), KVM),
    "small-tcg": (request("small"), TCG),
    "large-kvm-serial": (request("large", profile=shaped(devices={"link": "serial"})), KVM),
    "full-tcg": (FULL, TCG),
    "bare-tcg": (BARE, TCG),
    "default-aarch64": (request(), ARM),
}


def designed(name: str) -> domain.Domain:
    wanted, facts = CASES[name]
    return design.design(wanted, facts, PLACEMENT)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = designed(name).xml()
    path = GOLDEN / f"{name}.xml"
    if REGENERATE:
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(CASES)


@pytest.mark.parametrize("name", profile.names())
def test_every_profile_makes_a_guest(name: str) -> None:
    made = design.design(request(name), TCG, PLACEMENT)
    assert made.memory_kib * 1024 == profile.load(name).memory


@pytest.mark.parametrize("name", CASES)
def test_the_guest_is_told_nothing_of_who_it_is(name: str) -> None:
    root = ET.fromstring(designed(name).xml())
    seen = root.findtext("os/cmdline", "") + "".join(
        ET.tostring(device, encoding="unicode") for device in root.iterfind("devices/*")
    )
    for identity in (ID[:12], NAME, INSTANCE):
        assert identity not in seen
    assert root.find("sysinfo") is None
    assert root.find("uuid") is None


@pytest.mark.parametrize("name", CASES)
def test_the_device_model_is_minimal(name: str) -> None:
    root = ET.fromstring(designed(name).xml())
    for unwanted in ("graphics", "video", "sound", "input", "hub", "redirdev", "smartcard", "tpm"):
        assert root.find(f"devices/{unwanted}") is None
    assert [c.get("model") for c in root.iterfind("devices/controller[@type='usb']")] == ["none"]


@pytest.mark.parametrize("name", CASES)
def test_there_is_a_port_for_each_device_and_the_spare_ones(name: str) -> None:
    wanted, _ = CASES[name]
    root = ET.fromstring(designed(name).xml())
    ports = root.findall("devices/controller[@model='pcie-root-port']")
    on_a_port = (
        root.findall("devices/disk/target[@bus='virtio']")
        + root.findall("devices/controller[@type='scsi']")
        + root.findall("devices/controller[@type='virtio-serial']")
        + [d for tag in ("vsock", "interface", "filesystem", "rng") for d in root.iter(tag)]
        + root.findall("devices/memballoon[@model='virtio']")
    )
    assert len(ports) == len(on_a_port) + wanted.profile.devices.hotplug_ports


def test_a_guest_has_a_user_of_its_own_and_kvm_by_group_only() -> None:
    assert (designed("default-tcg").uid, designed("default-tcg").gid) == (PLACEMENT.uid,) * 2
    assert designed("default-kvm-vsock").gid == 108


def test_what_is_read_back_is_what_was_made() -> None:
    running = domain.read(designed("full-tcg").xml())
    assert running is not None
    assert (running.machine_id, running.instance) == (ID, INSTANCE)
    assert (running.uid, running.gid) == (PLACEMENT.uid, PLACEMENT.uid)
    assert [disk.serial for disk in running.disks] == ["hybrid-root", "layer-0", "rw-1"]
    assert [disk.unit for disk in running.disks] == [None, 0, 1]
    assert running.nics == tuple(design.nic_device(nic) for nic in FULL.nics)
    assert running.shares == tuple(design.share_device(share) for share in FULL.shares)
    assert running.vsock_cid is None
    assert set(running.sources) == {
        *("/g/root", "/l/0", "/w/1", "/run/h/data.sock"),
        *("/run/h/agent.sock", "/run/h/con.sock"),
    }


def test_a_foreign_domain_is_not_ours_but_its_user_is_taken() -> None:
    foreign = """<domain type='kvm'><name>x</name>
      <seclabel model='dac' relabel='yes'><label>+1900000001:+108</label></seclabel></domain>"""
    assert domain.read(foreign) is None
    assert domain.user_of(foreign) == 1_900_000_001
    assert domain.user_of("<domain><name>y</name></domain>") is None


def test_a_hot_plugged_disk_takes_the_first_free_lun() -> None:
    running = domain.read(designed("full-tcg").xml())
    assert running is not None
    scsi = [disk for disk in running.disks if disk.bus == "scsi"]
    added = design.scsi_disk(Disk("new", Path("/n"), True), scsi)
    assert (added.unit, added.target) == (2, "sdc")
    added = design.scsi_disk(Disk("new", Path("/n"), True), scsi[1:])
    assert (added.unit, added.target) == (0, "sda")


@pytest.mark.parametrize(
    ("used", "target"), [(25, "sdz"), (26, "sdaa"), (51, "sdaz"), (52, "sdba"), (702, "sdaaa")]
)
def test_disks_are_named_as_the_kernel_does(used: int, target: str) -> None:
    disks: list[domain.FileDisk] = [
        domain.FileDisk(Path("/x"), "", "scsi", "s", True, unit=unit) for unit in range(used)
    ]
    assert design.scsi_disk(Disk("n", Path("/n"), False), disks).target == target


def test_uids_are_steady_and_unique() -> None:
    first = allocate_uid(INSTANCE, ID, ())
    assert first == allocate_uid(INSTANCE, ID, {0, 1000})
    second = allocate_uid(INSTANCE, ID, {first})
    assert second != first
    assert allocate_uid("00000001", ID, ()) != first
    assert 1_900_000_000 <= first < 1_900_000_000 + 16384 * 4096 < 0x7FFE0000


def test_uids_can_run_out() -> None:
    base = min(allocate_uid(INSTANCE, ID, ()), allocate_uid(INSTANCE, "x", ()))
    everything = range(base - 4096, base + 8192)
    with pytest.raises(Unavailable, match="in use"):
        allocate_uid(INSTANCE, ID, everything)


def test_vsock_is_refused_where_the_host_has_none() -> None:
    wanted = request(profile=shaped(devices={"link": "vsock"}))
    with pytest.raises(Unavailable, match=r"no /dev/vhost-vsock \(modprobe"):
        design.design(wanted, TCG, PLACEMENT)


def test_a_guest_needs_something_to_boot() -> None:
    with pytest.raises(InvalidInput, match=f"machine {NAME}: a guest needs a kernel"):
        design.design(request(boot=None), TCG, PLACEMENT)
