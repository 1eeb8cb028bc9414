"""How a guest is made: profile + request + facts about the host → domain. All policy, no I/O.

What the guest sees is as little as it can do with: PCIe, one read-only root disk, one SCSI
controller for the disks of its containers, one link to its agent, entropy, a balloon, a serial
console; no display, USB, sound, floppy, BIOS configuration or identity. Two guests of one profile
differ only in what the host calls them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hybrid.errors import InvalidInput, Unavailable
from hybrid.machine.domain import (
    Balloon,
    ChannelSocket,
    Controller,
    Device,
    Domain,
    FileDisk,
    Memory,
    Rng,
    SerialSocket,
    SocketFilesystem,
    TapInterface,
    Vsock,
)
from hybrid.machine.memory import Backing
from hybrid.machine.profile import Accelerator, MachineProfile
from hybrid.machine.provider import (
    AGENT_PORT_NAME,
    ROOT_SERIAL,
    Boot,
    Disk,
    MachineRequest,
    Nic,
    Origin,
    ShareDevice,
)
from hybrid.units import KIB

# Each guest's QEMU has a uid of its own. The range is one that neither useradd's subordinate ids
# (up to 600100000) nor systemd's dynamic and container ranges (up to 0x6FFFFFFF) give out; every
# instance has a slice of it.
UID_BASE = 1_900_000_000
UID_SLICES = 16384
UIDS_PER_SLICE = 4096

# virtio-scsi: LUNs 0 to 16383 behind one target (QEMU hw/scsi/virtio-scsi.c).
_MAX_LUNS = 16384
_VIRTIO_BLK_SERIAL = 20
# With it libvirt reads every property of the guest's CPU back, one by one, before the guest may run: 400
# questions. Without it, it takes two for the same.
_SLOW_CAPABILITIES = ("cpu-unavailable-features",)
# A place on the root bus that neither ports nor the chip set take.
_LATE_SLOT = 16
_MACHINE_TYPES = {"x86_64": "q35", "aarch64": "virt"}


@dataclass(frozen=True)
class HostFacts:
    """What design has to know about the host. ``accelerator`` is never AUTO."""

    arch: str
    accelerator: Accelerator
    vsock: bool
    kvm_group: int | None = None
    """The group that may open /dev/kvm, where that is how QEMU gets to it."""


@dataclass(frozen=True)
class Placement:
    """What this one guest has on the host, and nowhere inside."""

    instance: str
    uid: int
    agent_socket: Path
    console_socket: Path


def domain_name(instance: str, machine_id: str) -> str:
    """The domain's name: the owner's instance, and the id as far as file names use it."""
    return f"hybrid-{instance}-{machine_id[:12]}"


def allocate_uid(instance: str, machine_id: str, taken: Collection[int]) -> int:
    """The uid for a guest's QEMU: the same for the same id unless another process has it."""
    base = UID_BASE + int(instance, 16) % UID_SLICES * UIDS_PER_SLICE
    first = int.from_bytes(hashlib.sha256(machine_id.encode()).digest()[:4])
    for step in range(UIDS_PER_SLICE):
        uid = base + (first + step) % UIDS_PER_SLICE
        if uid not in taken:
            return uid
    raise Unavailable(f"all {UIDS_PER_SLICE} uids for guests of this instance are in use")


@dataclass(frozen=True)
class Frozen:
    """How a guest is made that becomes a template, or comes from one: these have the same devices, none of them a
    container's. ``origin`` None: the template's own guest, which boots.
    """

    memory: Backing
    origin: Origin | None = None


def design(
    request: MachineRequest, facts: HostFacts, placement: Placement, frozen: Frozen | None = None
) -> Domain:
    """The domain that fulfils ``request`` on a host with ``facts``."""
    if request.boot is None:
        raise InvalidInput(
            f"machine {request.name}: a guest needs a kernel and a root image to boot"
        )
    profile, boot = request.profile, request.boot
    kvm = facts.accelerator is Accelerator.KVM
    machine: str = profile.machine_type
    if machine == "auto":
        machine = _MACHINE_TYPES.get(facts.arch, "virt")
    mode, model = _cpu(profile, kvm)
    incoming = frozen is not None and frozen.origin is not None
    return Domain(
        type="kvm" if kvm else "qemu",
        name=domain_name(placement.instance, request.id),
        machine_id=request.id,
        instance=placement.instance,
        memory_kib=request.memory // KIB,
        vcpus=request.cpus,
        arch=facts.arch,
        machine=machine,
        # What has booted already needs neither.
        kernel=None if incoming else boot.kernel,
        initrd=None if incoming else boot.initrd,
        command_line=" ".join((boot.command_line, *profile.kernel_arguments)),
        cpu_mode=mode,
        cpu_model=model,
        features=_features(machine),
        absent_timers=("hpet",) if machine == "q35" else (),
        uid=placement.uid,
        gid=_group(facts, placement),
        devices=tuple(
            _devices(as_frozen(request) if frozen else request, boot, facts, placement, frozen)
        ),
        unused_capabilities=_SLOW_CAPABILITIES,
        backing=None
        if frozen is None
        else Memory(frozen.memory.path, frozen.memory.shared, request.memory),
        incoming=incoming,
        origin=frozen.origin if frozen else None,
    )


def as_frozen(request: MachineRequest) -> MachineRequest:
    """The part of a request that a template can fulfil; the rest is attached to its clone.

    The link is the one whose address is the same for every clone.
    """
    devices = request.profile.devices.model_copy(update={"link": "serial"})
    profile = request.profile.model_copy(update={"devices": devices})
    return replace(request, profile=profile, disks=(), nics=(), shares=())


def scsi_disk(disk: Disk, used: Iterable[FileDisk]) -> FileDisk:
    """A container's disk on the first free LUN beside the disks in ``used``."""
    units = {other.unit for other in used}
    free = next((unit for unit in range(_MAX_LUNS) if unit not in units), None)
    if free is None:
        raise Unavailable(f"the guest has all the {_MAX_LUNS} disks that its controller can hold")
    return FileDisk(
        path=disk.path,
        target=_disk_name("sd", free),
        bus="scsi",
        serial=disk.serial,
        read_only=disk.read_only,
        # Blocks that the guest trims go back to the host's file system.
        discard=not disk.read_only,
        unit=free,
    )


def nic_device(nic: Nic) -> TapInterface:
    """A container's network interface."""
    return TapInterface(mac=nic.mac, tap=nic.tap)


def share_device(share: ShareDevice) -> SocketFilesystem:
    """A share of a directory."""
    return SocketFilesystem(tag=share.tag, socket=share.socket)


def uses_vsock(profile: MachineProfile, facts: HostFacts) -> bool:
    """Whether the agent is reached by vsock; Unavailable if the profile demands what the host
    lacks.
    """
    wanted = profile.devices.link
    if wanted == "vsock" and not facts.vsock:
        raise Unavailable(
            f"machine profile {profile.name} wants vsock, but this host has no /dev/vhost-vsock"
            " (modprobe vhost_vsock, or set link: auto)"
        )
    return facts.vsock and wanted != "serial"


def _cpu(profile: MachineProfile, kvm: bool) -> tuple[str, str | None]:
    if profile.cpu_model != "auto":
        return "custom", profile.cpu_model
    return ("host-passthrough", None) if kvm else ("maximum", None)


def _features(machine: str) -> tuple[tuple[str, bool | None], ...]:
    # VMware's back-door port and system-management mode are attack surface that Linux does not use.
    x86_only: tuple[tuple[str, bool | None], ...] = (("vmport", False), ("smm", False))
    acpi: tuple[tuple[str, bool | None], ...] = (("acpi", None),)
    return acpi + (x86_only if machine == "q35" else ())


def _group(facts: HostFacts, placement: Placement) -> int:
    if facts.accelerator is Accelerator.KVM and facts.kvm_group is not None:
        return facts.kvm_group
    return placement.uid


def _devices(
    request: MachineRequest,
    boot: Boot,
    facts: HostFacts,
    placement: Placement,
    frozen: Frozen | None,
) -> Iterable[Device]:
    wanted = request.profile.devices
    vsock = uses_vsock(request.profile, facts)
    plugged: list[Device] = [_root_disk(boot)]
    plugged.append(Controller("scsi", "virtio-scsi", index=0))
    # Port 0 of a virtio-serial device is kept for consoles (virtio-spec 5.3), so one port makes
    # two.
    plugged.append(Vsock() if vsock else Controller("virtio-serial", index=0, ports=2))
    plugged += [nic_device(nic) for nic in request.nics]
    plugged += [share_device(share) for share in request.shares]
    if wanted.rng:
        plugged.append(Rng())
    # A PCIe port takes one device: one for each of the above, and the spare ones.
    ports = len(plugged) + wanted.balloon + wanted.hotplug_ports
    balloon = Balloon(present=wanted.balloon)
    if frozen is not None:
        # A balloon punches holes into the memory file. So only a clone with a file of its own gets one, where its
        # template has nothing; its agent looks for it. Not in a port: the template switched the empty ones off.
        own_file = frozen.origin is not None and frozen.memory.shared
        balloon = Balloon(present=wanted.balloon and own_file, slot=_LATE_SLOT)
    yield Controller("usb", "none")
    yield Controller("pci", "pcie-root", index=0)
    yield from (Controller("pci", "pcie-root-port", index=n) for n in range(1, ports + 1))
    yield from plugged
    yield from _container_disks(request.disks)
    yield SerialSocket(placement.console_socket)
    if not vsock:
        yield ChannelSocket(placement.agent_socket, AGENT_PORT_NAME)
    yield balloon


def _root_disk(boot: Boot) -> FileDisk:
    assert len(ROOT_SERIAL) <= _VIRTIO_BLK_SERIAL
    return FileDisk(boot.root, _disk_name("vd", 0), "virtio", ROOT_SERIAL, read_only=True)


def _container_disks(disks: Iterable[Disk]) -> Iterable[FileDisk]:
    placed: list[FileDisk] = []
    for disk in disks:
        placed.append(scsi_disk(disk, placed))
    return placed


def _disk_name(prefix: str, index: int) -> str:
    """sda, …, sdz, sdaa, …: the kernel's and libvirt's naming of disk number ``index``."""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return prefix + letters
