"""libvirt's domain XML as objects: what can be said, not what should be.

No policy here: every value comes from the caller (``hybrid.machine.design``). The element order and
names are those of libvirt's own documentation (formatdomain.html). Only what hybrid uses is here.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hybrid.machine.provider import Origin

METADATA_NAMESPACE = "https://hybrid.invalid/domain/1"
_OWNER = f"{{{METADATA_NAMESPACE}}}machine"
ET.register_namespace("hybrid", METADATA_NAMESPACE)
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_QEMU = f"{{{_QEMU_NAMESPACE}}}"
ET.register_namespace("qemu", _QEMU_NAMESPACE)


def _element(
    tag: str,
    attributes: dict[str, str] | None = None,
    *children: ET.Element,
    text: str | None = None,
) -> ET.Element:
    element = ET.Element(tag, attributes or {})
    element.text = text
    element.extend(children)
    return element


def _on_off(value: bool) -> str:
    return "on" if value else "off"


class Device(Protocol):
    """One child of ``<devices>``; also what hot-plug takes."""

    def element(self) -> ET.Element: ...


def to_xml(device: Device) -> str:
    """The device as libvirt's attach and detach calls want it."""
    return ET.tostring(device.element(), encoding="unicode")


@dataclass(frozen=True)
class Controller:
    """A bus to plug devices into. ``ports`` is for virtio-serial only."""

    type: str
    model: str | None = None
    index: int | None = None
    ports: int | None = None

    def element(self) -> ET.Element:
        attributes = {"type": self.type}
        if self.index is not None:
            attributes["index"] = str(self.index)
        if self.model is not None:
            attributes["model"] = self.model
        if self.ports is not None:
            attributes["ports"] = str(self.ports)
        return _element("controller", attributes)


@dataclass(frozen=True)
class FileDisk:
    """A raw file as a disk; ``unit`` is the LUN on SCSI controller 0, None off SCSI."""

    path: Path
    target: str
    bus: str
    serial: str
    read_only: bool
    discard: bool = False
    unit: int | None = None

    def element(self) -> ET.Element:
        # A full disk of the host is an I/O error in the guest; libvirt's default would freeze the
        # guest.
        policy = {"error_policy": "report", "rerror_policy": "report"}
        driver = {"name": "qemu", "type": "raw", **policy}
        if self.discard:
            driver["discard"] = "unmap"
        disk = _element(
            "disk",
            {"type": "file", "device": "disk"},
            _element("driver", driver),
            _element("source", {"file": str(self.path)}),
            _element("target", {"dev": self.target, "bus": self.bus}),
        )
        if self.read_only:
            disk.append(_element("readonly"))
        disk.append(_element("serial", text=self.serial))
        if self.unit is not None:
            address = {"type": "drive", "controller": "0", "bus": "0", "target": "0"}
            disk.append(_element("address", address | {"unit": str(self.unit)}))
        return disk


@dataclass(frozen=True)
class TapInterface:
    """A virtio network interface on a tap device that somebody else made and keeps."""

    mac: str
    tap: str

    def element(self) -> ET.Element:
        return _element(
            "interface",
            {"type": "ethernet"},
            _element("mac", {"address": self.mac}),
            _element("target", {"dev": self.tap, "managed": "no"}),
            _element("model", {"type": "virtio"}),
            _element("rom", {"enabled": "no"}),
        )


@dataclass(frozen=True)
class SocketFilesystem:
    """A virtiofs share whose server is already listening on ``socket``."""

    tag: str
    socket: Path

    def element(self) -> ET.Element:
        return _element(
            "filesystem",
            {"type": "mount"},
            _element("driver", {"type": "virtiofs", "queue": "1024"}),
            _element("source", {"socket": str(self.socket)}),
            _element("target", {"dir": self.tag}),
        )


@dataclass(frozen=True)
class SerialSocket:
    """The guest's serial port, as a Unix socket that QEMU listens on."""

    path: Path

    def element(self) -> ET.Element:
        source = _element("source", {"mode": "bind", "path": str(self.path)})
        return _element("serial", {"type": "unix"}, source, _element("target", {"port": "0"}))


@dataclass(frozen=True)
class ChannelSocket:
    """A named virtio-serial port, as a Unix socket that QEMU listens on."""

    path: Path
    port_name: str

    def element(self) -> ET.Element:
        return _element(
            "channel",
            {"type": "unix"},
            _element("source", {"mode": "bind", "path": str(self.path)}),
            _element("target", {"type": "virtio", "name": self.port_name}),
        )


@dataclass(frozen=True)
class Vsock:
    """A vsock device; libvirt picks a free context id."""

    def element(self) -> ET.Element:
        return _element("vsock", {"model": "virtio"}, _element("cid", {"auto": "yes"}))


@dataclass(frozen=True)
class Rng:
    """Entropy by QEMU's built-in generator (it calls getrandom itself: no host file is opened)."""

    def element(self) -> ET.Element:
        return _element("rng", {"model": "virtio"}, _element("backend", {"model": "builtin"}))


@dataclass(frozen=True)
class Balloon:
    """The memory balloon; with ``present`` False, libvirt's way of leaving its default one out.

    ``slot``: its place on the root bus; 0 is any place.
    """

    present: bool
    free_page_reporting: bool = True
    slot: int = 0

    def element(self) -> ET.Element:
        if not self.present:
            return _element("memballoon", {"model": "none"})
        reporting = _on_off(self.free_page_reporting)
        balloon = _element("memballoon", {"model": "virtio", "freePageReporting": reporting})
        if self.slot:
            balloon.append(_element("address", {"type": "pci", "slot": str(self.slot)}))
        return balloon


@dataclass(frozen=True)
class Memory:
    """A guest's memory in a file; what libvirt cannot say of it is said to QEMU."""

    path: str
    shared: bool
    size: int

    def arguments(self) -> tuple[str, ...]:
        # The block's name is the object's, on both sides of a freezing; kept out of core dumps as libvirt does it.
        backend = (
            f"memory-backend-file,id=guest,mem-path={self.path},size={self.size},dump=off,"
            f"share={_on_off(self.shared)},x-use-canonical-path-for-ramblock-id=off"
        )
        return "-object", backend, "-machine", "memory-backend=guest"


@dataclass(frozen=True)
class Domain:
    """One guest. ``features`` and ``absent_timers`` are (name, on) pairs and names."""

    type: str
    name: str
    machine_id: str
    instance: str
    memory_kib: int
    vcpus: int
    arch: str
    machine: str
    kernel: Path | None
    initrd: Path | None
    command_line: str
    cpu_mode: str
    cpu_model: str | None
    features: tuple[tuple[str, bool | None], ...]
    absent_timers: tuple[str, ...]
    uid: int
    gid: int
    devices: tuple[Device, ...]
    unused_capabilities: tuple[str, ...] = ()
    """What QEMU can do, in libvirt's words, and libvirt shall not make use of."""
    backing: Memory | None = None
    """None: memory of its own, that file servers can be given."""
    incoming: bool = False
    """It waits for a device state instead of starting from nothing."""
    origin: Origin | None = None

    def element(self) -> ET.Element:
        memory = _element("memory", {"unit": "KiB"}, text=str(self.memory_kib))
        owned = {"id": self.machine_id, "instance": self.instance}
        owner = _element(_OWNER, owned | _origin(self.origin))
        label = _element("label", text=f"+{self.uid}:+{self.gid}")
        seclabel = {"type": "static", "model": "dac", "relabel": "no"}
        return _element(
            "domain",
            {"type": self.type},
            _element("name", text=self.name),
            _element("metadata", None, owner),
            memory,
            _element("vcpu", {"placement": "static"}, text=str(self.vcpus)),
            *self._own_memory(),
            self._os(),
            self._features(),
            self._cpu(),
            self._clock(),
            # A guest that is off is gone: its state is not in it, and the engine decides on
            # restarts.
            _element("on_poweroff", text="destroy"),
            _element("on_reboot", text="destroy"),
            _element("on_crash", text="destroy"),
            _element("devices", None, *(device.element() for device in self.devices)),
            _element("seclabel", seclabel, label),
            *self._arguments(),
            *self._capabilities(),
        )

    def _own_memory(self) -> list[ET.Element]:
        if self.backing is not None and not (self.incoming and self.backing.shared):
            return []
        # Where the backing is a file that is shared, this only tells libvirt so: the machine is given the file.
        source = _element("source", {"type": "memfd"})
        return [_element("memoryBacking", None, source, _element("access", {"mode": "shared"}))]

    def _arguments(self) -> list[ET.Element]:
        words = self.backing.arguments() if self.backing is not None else ()
        if self.incoming:
            words += ("-incoming", "defer")
        if not words:
            return []
        arguments = (_element(f"{_QEMU}arg", {"value": word}) for word in words)
        return [_element(f"{_QEMU}commandline", None, *arguments)]

    def xml(self) -> str:
        """The whole document, indented."""
        root = self.element()
        ET.indent(root)
        return ET.tostring(root, encoding="unicode") + "\n"

    def _os(self) -> ET.Element:
        kind = _element("type", {"arch": self.arch, "machine": self.machine}, text="hvm")
        if self.kernel is None:
            return _element("os", None, kind)
        return _element(
            "os",
            None,
            kind,
            _element("kernel", text=str(self.kernel)),
            _element("initrd", text=str(self.initrd)),
            _element("cmdline", text=self.command_line),
        )

    def _features(self) -> ET.Element:
        return _element(
            "features",
            None,
            *(
                _element(name, {} if on is None else {"state": _on_off(on)})
                for name, on in self.features
            ),
        )

    def _cpu(self) -> ET.Element:
        cpu = _element("cpu", {"mode": self.cpu_mode})
        if self.cpu_model is not None:
            cpu.append(_element("model", {"fallback": "forbid"}, text=self.cpu_model))
        return cpu

    def _capabilities(self) -> list[ET.Element]:
        if not self.unused_capabilities:
            return []
        unused = (
            _element(f"{_QEMU}del", {"capability": name}) for name in self.unused_capabilities
        )
        return [_element(f"{_QEMU}capabilities", None, *unused)]

    def _clock(self) -> ET.Element:
        absent = (_element("timer", {"name": name, "present": "no"}) for name in self.absent_timers)
        return _element("clock", {"offset": "utc"}, *absent)


@dataclass(frozen=True)
class RunningDomain:
    """What is read back from the XML of a domain that libvirt runs."""

    name: str
    machine_id: str
    instance: str
    type: str
    uid: int
    gid: int
    disks: tuple[FileDisk, ...]
    nics: tuple[TapInterface, ...]
    shares: tuple[SocketFilesystem, ...]
    sources: tuple[str, ...]
    vsock_cid: int | None
    origin: Origin | None = None


def read(xml: str) -> RunningDomain | None:
    """The facts in ``xml``; None when the domain is not one of hybrid's."""
    root = ET.fromstring(xml)
    owner = root.find(f"metadata/{_OWNER}")
    if owner is None:
        return None
    uid, gid = _label(root)
    cid = root.find("devices/vsock/cid")
    return RunningDomain(
        name=root.findtext("name", ""),
        machine_id=owner.get("id", ""),
        instance=owner.get("instance", ""),
        type=root.get("type", ""),
        uid=uid,
        gid=gid,
        disks=tuple(_read_disk(disk) for disk in root.iterfind("devices/disk")),
        nics=tuple(_read_nic(nic) for nic in root.iterfind("devices/interface")),
        shares=tuple(_read_share(share) for share in root.iterfind("devices/filesystem")),
        sources=tuple(
            path
            for source in root.iterfind("devices/*/source")
            for path in (source.get("file"), source.get("path"), source.get("socket"))
            if path
        ),
        vsock_cid=None if cid is None else int(cid.get("address", "0")),
        origin=_read_origin(owner),
    )


def _origin(origin: Origin | None) -> dict[str, str]:
    if origin is None:
        return {}
    return {
        "template": origin.template,
        "template-made": str(origin.template_made),
        "made": str(origin.made),
        "memory": origin.memory,
    }


def _read_origin(owner: ET.Element) -> Origin | None:
    template = owner.get("template")
    if template is None:
        return None
    moments = int(owner.get("template-made", "0")), int(owner.get("made", "0"))
    return Origin("clone", template, *moments, memory=owner.get("memory", ""))


def user_of(xml: str) -> int | None:
    """The uid that any domain's QEMU runs as, hybrid's or not; None when it has no label of its
    own.
    """
    uid, _ = _label(ET.fromstring(xml))
    return uid if uid >= 0 else None


def _label(root: ET.Element) -> tuple[int, int]:
    for seclabel in root.iterfind("seclabel"):
        uid, _, gid = seclabel.findtext("label", "").partition(":")
        if seclabel.get("model") == "dac" and uid.startswith("+") and gid.startswith("+"):
            return int(uid), int(gid)
    return -1, -1


def _read_disk(disk: ET.Element) -> FileDisk:
    def attribute(tag: str, name: str) -> str:
        element = disk.find(tag)
        return "" if element is None else element.get(name, "")

    unit = attribute("address", "unit") if attribute("target", "bus") == "scsi" else ""
    return FileDisk(
        path=Path(attribute("source", "file")),
        target=attribute("target", "dev"),
        bus=attribute("target", "bus"),
        serial=disk.findtext("serial", ""),
        read_only=disk.find("readonly") is not None,
        discard=attribute("driver", "discard") == "unmap",
        unit=int(unit) if unit else None,
    )


def _read_share(share: ET.Element) -> SocketFilesystem:
    source, target = share.find("source"), share.find("target")
    return SocketFilesystem(
        tag="" if target is None else target.get("dir", ""),
        socket=Path("" if source is None else source.get("socket", "")),
    )


def _read_nic(nic: ET.Element) -> TapInterface:
    mac, target = nic.find("mac"), nic.find("target")
    return TapInterface(
        mac="" if mac is None else mac.get("address", ""),
        tap="" if target is None else target.get("dev", ""),
    )
