"""Networks: their records, who is in them, and which address each endpoint has.

``bridge`` (the default), ``host`` and ``none`` always exist. A network's bridge, rules and name server are made when
its first endpoint joins; addresses are held only while a container runs. The names of a network are published as a
whole at every change, so what the name server knows is always what this module computes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from hybrid.engine import names
from hybrid.engine.container import Endpoint, PublishedPort, Record
from hybrid.engine.events import Events
from hybrid.engine.store import Store
from hybrid.errors import Conflict, Forbidden, InvalidInput, NotFound, Unsupported
from hybrid.network import ipam
from hybrid.network import model as wiring
from hybrid.network.network import Networks as Fabric

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
DEFAULT = "bridge"
PREDEFINED = {DEFAULT: "bridge", "host": "host", "none": "null"}


@dataclass
class NetworkRecord:
    id: str
    name: str
    driver: str
    created_ns: int
    subnet: str = ""
    gateway: str = ""
    internal: bool = False
    mtu: int = 1500
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    ipam_asked: bool = False  # the subnet was asked for, not picked

    @property
    def predefined(self) -> bool:
        return PREDEFINED.get(self.name) == self.driver

    @property
    def bridged(self) -> bool:
        return self.driver == "bridge"


@dataclass
class NetworkWish:
    """What a user asks of a new network; empty fields are picked."""

    name: str
    driver: str = "bridge"
    subnet: str = ""
    gateway: str = ""
    internal: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Joined:
    """What a container needs to know of its place in a network: the host device that leads to it, and numbers."""

    endpoint: Endpoint
    network: NetworkRecord
    device: str  # tap, or the veth peer that moves into the container

    @property
    def address(self) -> str:
        return f"{self.endpoint.ip}/{self.endpoint.prefix}"


class Networks:
    """All networks of this daemon. ``containers`` gives every container's record."""

    def __init__(
        self,
        store: Store,
        events: Events,
        fabric: Fabric,
        containers: Callable[[], Iterable[Record]],
    ) -> None:
        self._store = store
        self._events = events
        self._fabric = fabric
        self._containers = containers
        self._records = {record.id: record for record in store.all("network", NetworkRecord)}
        self._ready: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._reserved: dict[str, set[IPv4Address]] = {}

    # --- looking ---

    def all(self) -> list[NetworkRecord]:
        return sorted(self._records.values(), key=lambda record: record.created_ns)

    def find(self, reference: str) -> NetworkRecord:
        named = [record for record in self._records.values() if record.name == reference]
        if len(named) == 1 and reference not in self._records:
            return named[0]
        return names.find(
            reference,
            self._records.values(),
            lambda record: (record.id, record.name),
            f"network {reference} not found",
        )

    def members(self, record: NetworkRecord) -> list[tuple[Record, Endpoint]]:
        """The running containers in that network."""
        return [
            (container, endpoint)
            for container in self._containers()
            for endpoint in container.endpoints.values()
            if endpoint.network == record.id and endpoint.endpoint_id
        ]

    def users(self, record: NetworkRecord) -> list[Record]:
        """All containers that name that network, running or not."""
        return [
            container
            for container in self._containers()
            if any(endpoint.network == record.id for endpoint in container.endpoints.values())
        ]

    # --- made and removed ---

    async def create(self, wish: NetworkWish) -> NetworkRecord:
        if wish.name in PREDEFINED:
            raise Forbidden(f"operation is not permitted on predefined {wish.name} network")
        if not _NAME.fullmatch(wish.name):
            raise InvalidInput(
                f"invalid network name {wish.name[:80]!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )
        if any(record.name == wish.name for record in self._records.values()):
            raise Conflict(f"network with name {wish.name} already exists")
        if wish.driver not in ("bridge", "default"):
            raise NotFound(
                f"could not find network driver {wish.driver}: this build knows 'bridge'"
            )
        wish.driver = "bridge"
        record = self._add(await self._picked(wish))
        self._publish("create", record)
        return record

    async def _picked(self, wish: NetworkWish) -> NetworkRecord:
        record = NetworkRecord(
            id=names.new_id(),
            name=wish.name,
            driver=wish.driver,
            created_ns=time.time_ns(),
            internal=wish.internal,
            labels=wish.labels,
            options=wish.options,
            ipam_asked=bool(wish.subnet),
        )
        if not record.bridged:
            return record
        ours = [IPv4Network(one.subnet) for one in self._records.values() if one.subnet]
        used = [*ours, *await self._fabric.used_subnets()]
        if wish.subnet:
            subnet = ipam.check_subnet(wish.subnet)
            if ipam.overlapping(subnet, used) is not None:
                raise Forbidden(f"Pool overlaps with other one on this address space: {subnet}")
        elif wish.gateway:
            raise InvalidInput("a gateway needs a subnet that it is in")
        else:
            subnet = ipam.pick_subnet(used)
        record.subnet = str(subnet)
        record.gateway = wish.gateway or str(ipam.first_gateway(subnet))
        record.mtu = _mtu(wish.options)
        self._config(record)
        return record

    def _add(self, record: NetworkRecord) -> NetworkRecord:
        self._records[record.id] = record
        self._store.put("network", record.id, record)
        return record

    async def remove(self, record: NetworkRecord) -> None:
        if record.predefined:
            raise Forbidden(f"{record.name} is a pre-defined network and cannot be removed")
        if members := self.members(record):
            who = ", ".join(f'name:"{container.name}"' for container, _ in members)
            raise Forbidden(
                f"error while removing network: network {record.name} has active endpoints ({who})"
            )
        async with self._lock(record):
            await self._fabric.remove_network(record.id)
            self._ready.discard(record.id)
            del self._records[record.id]
            self._store.delete("network", record.id)
        self._publish("destroy", record)

    # --- endpoints ---

    async def join(self, container: Record, endpoint: Endpoint, *, tap: bool) -> Joined:
        """Gives the endpoint an address and a device on this host. Undo with ``leave``."""
        record = self._records[endpoint.network]
        await self._ensure(record)
        subnet, reserved = IPv4Network(record.subnet), self._reserved.setdefault(record.id, set())
        taken = reserved | {IPv4Address(one.ip) for _, one in self.members(record)}
        wanted = IPv4Address(endpoint.wanted_ip) if endpoint.wanted_ip else None
        address = ipam.allocate(subnet, IPv4Address(record.gateway), taken, wanted)
        reserved.add(address)
        try:
            endpoint_id = names.new_id()
            mac = (endpoint.wanted_mac or ipam.mac_address(address)).lower()
            if tap:
                device = await self._fabric.attach_tap(
                    record.id, endpoint_id, mac, str(address), record.mtu
                )
            else:
                device = await self._fabric.attach_veth(
                    record.id, endpoint_id, mac, str(address), record.mtu
                )
            endpoint.endpoint_id, endpoint.ip, endpoint.mac = endpoint_id, str(address), mac
            endpoint.prefix, endpoint.gateway = subnet.prefixlen, record.gateway
            endpoint.device, endpoint.tap = device, tap
        finally:
            reserved.discard(address)
        self._publish("connect", record, container)
        return Joined(endpoint, record, device)

    async def leave(self, container: Record, endpoint: Endpoint) -> None:
        """Removes the endpoint's device, published ports and names. Idempotent."""
        if not endpoint.endpoint_id:
            return
        gone, endpoint.endpoint_id = endpoint.endpoint_id, ""
        endpoint.ip = endpoint.gateway = endpoint.mac = endpoint.device = ""
        endpoint.prefix = 0
        record = self._records.get(endpoint.network)
        await self._fabric.detach(gone)
        if record is not None:
            await self.publish_names(record)
            self._publish("disconnect", record, container)

    async def publish_names(self, record: NetworkRecord) -> None:
        """Tells the network's name server who is there."""
        async with self._lock(record):
            if record.id not in self._ready:
                return
            table = {
                endpoint.ip: [
                    *dict.fromkeys([container.name, container.short_id, *endpoint.aliases])
                ]
                for container, endpoint in self.members(record)
            }
            await self._fabric.set_names(record.id, table)

    async def publish_ports(self, container: Record, exposed: Iterable[str]) -> list[PublishedPort]:
        """Publishes what the container asks for at its first bridged endpoint; what it really got."""
        wanted = [
            wiring.PortMapping(port.host_ip, port.host_port, "", port.container_port, port.protocol)
            for port in container.spec.ports
        ]
        if container.spec.publish_all:
            asked = {(port.container_port, port.protocol) for port in wanted}
            for text in exposed:
                number, _, protocol = text.partition("/")
                if (int(number), protocol or "tcp") not in asked:
                    wanted.append(wiring.PortMapping("", 0, "", int(number), protocol or "tcp"))
        endpoint = self._front(container)
        if not wanted or endpoint is None:
            return []
        real = await self._fabric.publish(endpoint.endpoint_id, wanted)
        return [
            PublishedPort(one.host_ip or "0.0.0.0", one.host_port, one.container_port, one.protocol)
            for one in real
        ]

    def _front(self, container: Record) -> Endpoint | None:
        """The endpoint that published ports lead to: the first in a network with a way out."""
        joined = [one for one in container.endpoints.values() if one.endpoint_id]
        outward = [one for one in joined if not self._records[one.network].internal]
        return next(iter(outward or joined), None)

    # --- the daemon's start ---

    async def reconcile(self) -> None:
        """Adopts what is there of known networks and running endpoints; removes all else of this instance."""
        for name, driver in PREDEFINED.items():
            if not any(record.name == name for record in self._records.values()):
                self._add(await self._picked(NetworkWish(name, driver)))
        bridged = [record for record in self._records.values() if record.bridged]
        endpoints = [
            wiring.Endpoint(
                id=one.endpoint_id,
                network_id=one.network,
                mac=one.mac,
                ip=one.ip,
                kind="tap" if one.tap else "veth",
                ports=tuple(
                    wiring.PortMapping(
                        port.host_ip, port.host_port, one.ip, port.container_port, port.protocol
                    )
                    for port in (container.published if one is self._front(container) else [])
                ),
            )
            for container in self._containers()
            for one in container.endpoints.values()
            if one.endpoint_id
        ]
        used = {one.network_id for one in endpoints}
        await self._fabric.reconcile(
            [self._config(record) for record in bridged if record.id in used], endpoints
        )
        self._ready |= used
        for record in bridged:
            await self.publish_names(record)

    async def _ensure(self, record: NetworkRecord) -> None:
        if not record.bridged:
            raise Unsupported(f"network {record.name} has no endpoints")
        async with self._lock(record):
            if record.id not in self._ready:
                try:
                    await self._fabric.ensure_network(self._config(record))
                except Conflict:
                    # Somebody took the subnet since it was picked; nobody is in this network yet.
                    if record.ipam_asked:
                        raise
                    await self._pick_again(record)
                    await self._fabric.ensure_network(self._config(record))
                self._ready.add(record.id)

    async def _pick_again(self, record: NetworkRecord) -> None:
        others = [one for one in self._records.values() if one.subnet and one is not record]
        used = [IPv4Network(one.subnet) for one in others]
        subnet = ipam.pick_subnet([*used, *await self._fabric.used_subnets()])
        record.subnet, record.gateway = str(subnet), str(ipam.first_gateway(subnet))
        self._store.put("network", record.id, record)

    def _config(self, record: NetworkRecord) -> wiring.NetworkConfig:
        return wiring.NetworkConfig(
            record.id, record.name, record.subnet, record.gateway, record.internal, record.mtu
        )

    def _lock(self, record: NetworkRecord) -> asyncio.Lock:
        return self._locks.setdefault(record.id, asyncio.Lock())

    def _publish(self, action: str, record: NetworkRecord, container: Record | None = None) -> None:
        attributes = {"name": record.name, "type": record.driver}
        if container is not None:
            attributes["container"] = container.id
        self._events.publish("network", action, record.id, attributes)


def _mtu(options: dict[str, str]) -> int:
    try:
        return int(options.get("com.docker.network.driver.mtu", "1500"))
    except ValueError as error:
        raise InvalidInput(f"invalid network mtu: {error}") from error
