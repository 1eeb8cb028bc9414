"""The start sequence of a container: everything it needs, made concurrently where it can be, undone on any failure.

image layers ┐
writable     ├─▶ machine (new, with these devices; or an existing one that gets them) ─▶ create ─▶ start
network      │                                                                 names, ports ┘
shares       ┘
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid.engine import boxes, bundle
from hybrid.engine.backends import GUEST_OVERHEAD, GuestSize
from hybrid.engine.blobs import send_blobs
from hybrid.engine.container import Endpoint, Record
from hybrid.engine.images import Images
from hybrid.engine.live import Container, Run
from hybrid.engine.machine import ID_LIMIT, ID_RANGE, Devices, Machine, settle, to_plain
from hybrid.engine.machines import Machines
from hybrid.engine.networks import Joined, Networks
from hybrid.engine.placement import Choice, Wanted, place
from hybrid.engine.volumes import Volumes
from hybrid.errors import Conflict, Unsupported
from hybrid.image import writable
from hybrid.machine.provider import Disk, Feature, Nic
from hybrid.paths import Paths
from hybrid.policy import isolation as isolations
from hybrid.policy import profile as profiles
from hybrid.policy import runtime_spec
from hybrid.units import GIB
from hybrid.wire.messages import CreateContainer, Delete, IdMap, Interface, Source, StartContainer

log = logging.getLogger(__name__)
GUEST_IDS = range(100_000, ID_LIMIT, ID_RANGE)
NANO = 1_000_000_000


@dataclass(frozen=True)
class Settings:
    """What the daemon's configuration says about starting containers."""

    policy: str = "default"
    host_ids: range = range(100_000, ID_LIMIT, ID_RANGE)
    writable_size: int = 16 * GIB
    create_timeout: float = 120.0


@dataclass
class _Parts:
    """What has been readied for one start."""

    choice: Choice
    features: frozenset[Feature]
    layers: list[Path]
    writable: Path
    joined: list[Joined]
    mounts: bundle.Mounts
    blobs: list[str] = field(default_factory=list)  # digests of the layers, where they are sent


Follow = Callable[[Container, Machine], Run]


class Launcher:
    """Starts containers. ``find`` gives a container by reference (for joined namespaces), ``records`` all there are."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        images: Images,
        volumes: Volumes,
        networks: Networks,
        machines: Machines,
        find: Callable[[str], Container],
        save: Callable[[Record], None],
        records: Callable[[], Iterable[Record]],
    ) -> None:
        self._paths = paths
        self.settings = settings
        self._images = images
        self._volumes = volumes
        self._networks = networks
        self._machines = machines
        self._find = find
        self._save = save
        self._records = records

    async def launch(self, container: Container, follow: Follow) -> Machine:
        """Runs it; the machine it runs in. Nothing of the attempt is left when this raises."""
        record = container.record
        async with AsyncExitStack() as undo:
            parts = await self._ready(record, undo)
            devices = _devices(record, parts)
            machine = await self._machines.claim(
                parts.choice, record.id, devices, self._size(record)
            )
            undo.push_async_callback(_quietly, self._machines.release, machine, record.id)
            record.machine, record.provider = machine.id, machine.provider.name
            record.kernel = machine.record.kernel
            record.devices = to_plain(devices)
            record.kept = machine.id if boxes.is_box(parts.features) else ""
            self._save(record)
            await self._create(record, machine, parts, undo)
            container.log.begin(resume=False)
            follow(container, machine)
            await self._announce(record)
            started = await machine.call(StartContainer(record.id))
            record.pid, record.started_ns = started.pid, time.time_ns()
            undo.pop_all()
        return machine

    @asynccontextmanager
    async def opened(self, record: Record) -> AsyncIterator[Machine]:
        """A machine in which the container's files are there, though it does not run: for copies.

        Call it with the container's lock held.
        """
        async with AsyncExitStack() as undo:
            parts = await self._ready(record, undo, connected=False)
            machine = await self._machines.claim(
                parts.choice, record.id, _devices(record, parts), self._size(record)
            )
            undo.push_async_callback(_quietly, self._machines.release, machine, record.id)
            await self._create(record, machine, parts, undo)
            yield machine

    # --- readying ---

    async def _ready(
        self, record: Record, undo: AsyncExitStack, *, connected: bool = True
    ) -> _Parts:
        choice = self._choose(record)
        features = self._features(choice)
        if boxes.is_box(features):
            boxes.check(record.spec, choice.name or "of the joined container")
        endpoints = record.endpoints.values() if connected else ()
        joining = [self._join(record, one, features, undo) for one in endpoints]
        by_share = Feature.SHARES in features
        mounts = bundle.mounts(record.spec.mounts, self._directories(record), by_share=by_share)
        results = await asyncio.gather(
            self._images.layers(record),
            self._writable(record, features),
            *joining,
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        layers, disk, *joined = results
        return _Parts(choice, features, layers, disk, joined, mounts)  # type: ignore[arg-type]

    def _choose(self, record: Record) -> Choice:
        isolation = isolations.parse(record.spec.isolation)
        explicit = record.spec.isolation not in ("", "default")
        joined = {}
        for reference in bundle.joined_containers(record.spec):
            other = self._find(reference).record
            joined[other.name] = other.machine if other.live else ""
        choice = place(
            Wanted(isolation.kind, isolation.name, explicit),
            record.name,
            joined,
            self._machines.named,
        )
        return replace(choice, sharing=choice.private and self._shares_follow(record))

    def _shares_follow(self, record: Record) -> bool:
        """Whether a container that is to join this one brings a volume or mount: its guest must be made for that."""
        return any(
            mount.kind != "tmpfs"
            for other in self._records()
            for reference in bundle.joined_containers(other.spec)
            for mount in other.spec.mounts
            if reference == record.name or record.id.startswith(reference)
        )

    def box(self, isolation: str) -> str:
        """The name of the box that a container of that isolation goes to; empty if it goes to none."""
        wanted = isolations.parse(isolation)
        found = self._machines.named(wanted.name) if wanted.kind == "machine" else None
        machine = self._machines.get(found) if found else None
        return wanted.name if machine and boxes.is_box(machine.provider.features) else ""

    async def retain(self, machine_id: str) -> None:
        """A container whose changes that machine kept was removed."""
        if machine := self._machines.get(machine_id):
            await self._machines.retain(machine)

    def _features(self, choice: Choice) -> frozenset[Feature]:
        machine = self._machines.get(choice.machine) if choice.machine else None
        provider = machine.provider if machine else self._machines.backends.of("guest")
        return provider.features

    def _directories(self, record: Record) -> dict[str, Path]:
        return {
            mount.source: self._volumes.directory(
                self._volumes.create(mount.source, anonymous=mount.anonymous).name
            )
            for mount in record.spec.mounts
            if mount.kind == "volume"
        }

    async def _join(
        self, record: Record, endpoint: Endpoint, features: frozenset[Feature], undo: AsyncExitStack
    ) -> Joined:
        if Feature.NICS not in features:
            raise Unsupported(
                f"container {record.name}: its machine is not connected to this host's networks; use --network host"
                " or --network none"
            )
        undo.push_async_callback(_quietly, self._networks.leave, record, endpoint)
        return await self._networks.join(record, endpoint, tap=Feature.DIRECTORIES not in features)

    async def _writable(self, record: Record, features: frozenset[Feature]) -> Path:
        """The container's own changes: a disk for a guest, a directory on this host."""
        directory = self._paths.container(record.id)
        directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        if Feature.DISKS in features:
            path = directory / "writable.ext4"
            if not path.exists():
                await asyncio.to_thread(writable.create, path, self.settings.writable_size)
            return path
        path = directory / "writable"
        path.mkdir(exist_ok=True, mode=0o700)
        return path

    def _size(self, record: Record) -> GuestSize:
        """A guest of the container's own has room for its limits and for the guest's kernel."""
        limits = record.spec.limits
        cpus = limits.nano_cpus / NANO if limits.nano_cpus else 0.0
        if limits.cpu_quota > 0:
            cpus = limits.cpu_quota / (limits.cpu_period or 100_000)
        memory = limits.memory + GUEST_OVERHEAD if limits.memory else 0
        return GuestSize(memory=memory, cpus=int(-(-cpus // 1)))

    # --- creating ---

    async def _create(
        self, record: Record, machine: Machine, parts: _Parts, undo: AsyncExitStack
    ) -> None:
        if boxes.is_box(parts.features):
            parts.blobs = await send_blobs(machine, parts.layers)
        request = self._request(record, machine, parts)
        undo.push_async_callback(_quietly, self._delete, record, machine)
        await machine.call(request, timeout=self.settings.create_timeout)

    async def _delete(self, record: Record, machine: Machine) -> None:
        if machine.record.running:
            await machine.call(Delete(record.id))

    def _request(self, record: Record, machine: Machine, parts: _Parts) -> CreateContainer:
        spec = record.spec
        profile = profiles.load(self.settings.policy)
        mapped = runtime_spec.uses_user_namespace(profile, spec.userns_mode, spec.privileged)
        ids = GUEST_IDS if machine.record.kind == "guest" else self.settings.host_ids
        record.id_base = machine.take_id_range(record.id, ids) if mapped else 0
        config = runtime_spec.build(
            bundle.spec_request(
                record,
                profile,
                machine.facts,
                parts.mounts.requests,
                id_base=record.id_base,
            )
        )
        record.process = config["process"]
        kind, other = bundle.network_kind(spec)
        return CreateContainer(
            container=record.id,
            config=config,
            layers=_layer_sources(parts),
            writable=_writable_source(record, parts),
            id_map=IdMap(record.id_base) if mapped else None,
            network=kind if kind != "own" or parts.joined else "none",
            network_container=self._same(other),
            interfaces=_interfaces(parts),
            shares=parts.mounts.shares,
            files=bundle.files(
                record,
                parts.joined,
                _name_file(machine, "/etc/resolv.conf"),
                _name_file(machine, "/etc/hosts"),
            ),
            terminal=spec.tty,
            stdin=spec.stdin,
            pid_container=self._same(_container_of(spec.pid_mode)),
            ipc_container=self._same(_container_of(spec.ipc_mode)),
            rows=spec.console[0],
            columns=spec.console[1],
        )

    def _same(self, reference: str) -> str:
        return self._find(reference).id if reference else ""

    async def _announce(self, record: Record) -> None:
        """Names before the process runs, so that it finds and is found from its first moment; ports likewise."""
        if not record.endpoints:
            if record.spec.ports and record.spec.network_mode != "host":
                raise Conflict("published ports need a network: leave out --network none, or -p")
            return
        record.published = await self._networks.publish_ports(record, record.spec.exposed)
        networks = [self._networks.find(one.network) for one in record.endpoints.values()]
        await asyncio.gather(*(self._networks.publish_names(one) for one in networks))


async def _quietly(step: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    """A step of undoing, whose own failure must not hide why it was needed."""
    await settle(step(*arguments))


def _container_of(mode: str) -> str:
    return mode.partition(":")[2] if mode.startswith("container:") else ""


def _serial(path: Path, letter: str) -> str:
    return letter + hashlib.sha256(str(path).encode()).hexdigest()[:18]


def _devices(record: Record, parts: _Parts) -> Devices:
    devices = Devices(shares=list(parts.mounts.uses))
    if Feature.DISKS in parts.features:
        devices.disks = [Disk(_serial(path, "l"), path, True) for path in parts.layers]
        devices.disks.append(Disk(_serial(parts.writable, "w"), parts.writable, False))
    if Feature.DIRECTORIES not in parts.features:
        devices.nics = [Nic(one.endpoint.mac, one.device) for one in parts.joined]
    return devices


def _layer_sources(parts: _Parts) -> list[Source]:
    if Feature.DISKS in parts.features:
        return [Source("disk", _serial(path, "l")) for path in parts.layers]
    if Feature.BLOBS in parts.features:
        return [Source("blob", name) for name in parts.blobs]
    return [Source("file", str(path)) for path in parts.layers]


def _writable_source(record: Record, parts: _Parts) -> Source:
    if Feature.DISKS in parts.features:
        return Source("disk", _serial(parts.writable, "w"))
    return Source(
        "directory", str(parts.writable) if Feature.DIRECTORIES in parts.features else record.id
    )


def _interfaces(parts: _Parts) -> list[Interface]:
    found = []
    for number, one in enumerate(parts.joined):
        # One default route: the first network's that has a way out.
        way_out = not one.network.internal and not any(
            not earlier.network.internal for earlier in parts.joined[:number]
        )
        found.append(
            Interface(
                name=f"eth{number}",
                mac=one.endpoint.mac,
                addresses=[one.address],
                gateway=one.endpoint.gateway if way_out else "",
                mtu=one.network.mtu,
                device=one.device if Feature.DIRECTORIES in parts.features else "",
            )
        )
    return found


def _name_file(machine: Machine, path: str) -> str:
    """As the container finds it that is in its machine's own network: a box's own, else this host's."""
    if boxes.is_box(machine.provider.features):
        return machine.facts.name_files.get(path, "") if machine.facts else ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
