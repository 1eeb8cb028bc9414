"""One machine that is up: its record, the link to its agent, and which containers use which of its devices.

The link heals itself: when it breaks while the machine still runs, ``keep`` makes a new one and asks the agent for all
it knows, so that nothing that happened in between is missed. A caller in that gap waits for the new link.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hybrid.engine.container import PlainDevices, PlainDisk, PlainShare
from hybrid.errors import HybridError, Unavailable
from hybrid.link.client import AgentClient
from hybrid.machine.provider import Cloning, Disk, Feature, MachineRequest, Nic, Pooling, Provider
from hybrid.wire.messages import (
    Configure,
    Exited,
    List,
    MachineFacts,
    OutOfMemory,
    ProcessState,
    SetTime,
)
from hybrid.wire.value import Request

log = logging.getLogger(__name__)
T = TypeVar("T")
CONNECT_TIMEOUT = 30.0
RECONNECT_PATIENCE = 30.0
FIRST_DELAY, LAST_DELAY = 0.05, 5.0  # seconds between tries to make the link again
STEADY = 10.0  # a link that held so long was a good one
MAX_STRANGERS = 256  # exits of unknown processes that are seen to on one link
FACT_MAX = 256  # characters of what a guest says about itself
ID_RANGE = 65536  # ids of one container's user namespace
ID_LIMIT = 2**32 - ID_RANGE  # no range begins there or above: the last id of all means "none"
ENTROPY_BYTES = 64
CLOCK_TOLERANCE_NS = 20_000_000


@dataclass
class RemotePlace:
    """How a box is reached: the fields of ``hybrid.machine.provider.Remote``."""

    address: str
    identity: str = ""
    known_hosts: str = ""
    accept_host_key: bool = False
    fingerprint: str = ""


@dataclass
class GuestOrigin:
    """How a guest came to be: the fields of ``hybrid.machine.provider.Origin``, and whether it got randomness of its
    own before anything ran in it.
    """

    kind: str
    template: str = ""
    template_made: int = 0
    made: int = 0
    memory: str = ""
    reason: str = ""
    taken: int = 0
    reseeded: bool = False


@dataclass
class MachineRecord:
    """What the store keeps. ``kind``: a guest of ours, this host, or a box reached over the network."""

    id: str
    name: str
    kind: str  # guest, host, remote
    provider: str
    created_ns: int
    profile: str = "default"
    memory: int = 0
    cpus: int = 0
    explicit: bool = False  # a user made it: it outlives its containers
    private: bool = False  # it belongs to one container
    running: bool = False
    agent_boot: str = ""
    kernel: str = ""
    boot_id: str = ""
    error: str = ""
    remote: RemotePlace | None = None
    origin: GuestOrigin | None = None


@dataclass
class ShareUse:
    """A directory of the host that a container sees. ``owner``: whose rights it has there (None: a volume's own)."""

    tag: str
    directory: Path
    owner: tuple[int, int] | None
    read_only: bool


@dataclass
class Devices:
    """What one container needs from its machine."""

    disks: list[Disk] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=list)
    shares: list[ShareUse] = field(default_factory=list)


class Listener(Protocol):
    """Who wants to know what happens in machines (the containers' supervisor)."""

    def process_exited(self, machine: Machine, state: ProcessState) -> None: ...

    def out_of_memory(self, machine: Machine, container: str) -> None: ...

    async def link_restored(self, machine: Machine, processes: list[ProcessState]) -> None: ...


class Machine:
    """A machine in use. ``lock`` serialises changes to its devices."""

    def __init__(self, record: MachineRecord, provider: Provider) -> None:
        self.record = record
        self.provider = provider
        self.users: dict[str, Devices] = {}
        self.bases: dict[str, int] = {}
        self.facts: MachineFacts | None = None
        self.lock = asyncio.Lock()
        self._client: AgentClient | None = None
        self._linked = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._may_heal = asyncio.Event()
        self._may_heal.set()
        self._trouble = ""  # why there is no link
        self._strangers = 0
        self._delay = FIRST_DELAY
        self._linked_at = 0.0

    def __repr__(self) -> str:
        link = "linked" if self._linked.is_set() else "no link"
        return f"<Machine {self.record.name} {self.record.id[:12]} {link}, {len(self.users)} users>"

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def own_kernel(self) -> bool:
        return Feature.OWN_KERNEL in self.provider.features

    def has(self, feature: Feature) -> bool:
        return feature in self.provider.features

    async def make(self, request: MachineRequest) -> None:
        """Has its provider make it. One that stood ready is told who it is meanwhile, and is linked to then."""
        ready = self.record.origin = self._origin()
        telling = asyncio.gather(self.connect(), return_exceptions=True) if ready else None
        try:
            await self.provider.create(request)
        finally:
            told = await telling if telling else []
        made = self._origin()
        if told == [None] and made is not None and made.taken:
            return
        # Another was made in its place.
        await self.disconnect()
        self.record.origin = made

    def _origin(self) -> GuestOrigin | None:
        """How it came to be, as its provider knows; None where it does not clone, or has none yet."""
        provider: object = self.provider
        found = provider.origin(self.id) if isinstance(provider, Cloning) else None
        return None if found is None else GuestOrigin(**asdict(found))

    # --- the link ---

    async def connect(self) -> None:
        """Makes the link and gives the machine its identity. Unavailable if the agent does not answer."""
        client = await self._greeted(f"machine {self.record.name}")
        try:
            await self._configure(client)
        except BaseException:
            # A serial port has room for one connection: the next try waits for this one's end.
            await client.close()
            raise
        self._client = client
        self._strangers, self._linked_at = 0, time.monotonic()
        self._linked.set()

    async def _greeted(self, name: str) -> AgentClient:
        provider: object = self.provider
        if isinstance(provider, Pooling) and (client := provider.client(self.id)) is not None:
            client.name = name
            return client
        return await AgentClient.connect(
            await self.provider.connect(self.id), timeout=CONNECT_TIMEOUT, name=name
        )

    async def _configure(self, client: AgentClient) -> None:
        ours = self.record.kind == "guest"
        emulated = await self.provider.emulated(self.id)
        self.facts = await client.call(
            Configure(
                machine=self.id,
                hostname=hostname(self.record.name) if ours else "",
                realtime_ns=time.time_ns() if ours else 0,
                entropy=os.urandom(ENTROPY_BYTES) if ours else b"",
                lock_down=ours,
                emulated=emulated,
                # a clone with memory of its own has a balloon, which its template lacks
                rescan=self.record.origin is not None and self.record.origin.memory == "copied",
            )
        )
        if ours and time.time_ns() - self.facts.realtime_ns > CLOCK_TOLERANCE_NS:
            # The first message wakes much code of a clone; the second finds it awake.
            await client.call(SetTime(time.time_ns()))
        self.record.kernel = self.facts.kernel[:FACT_MAX]
        self.record.boot_id = self.facts.boot_id[:FACT_MAX]
        self.record.agent_boot = (self.facts.agent_boot or client.hello.boot)[:FACT_MAX]
        if self.record.origin is not None:
            self.record.origin.reseeded = True

    def keep(self, listener: Listener) -> None:
        """Watches the link from now on, and makes it if there is none."""
        self._keeper = asyncio.create_task(self._keep(listener), name=f"link {self.record.name}")

    async def _keep(self, listener: Listener) -> None:
        while True:
            client = self._client
            if client is None:
                await self._heal(listener)
                continue
            try:
                async for event in client.events():
                    if isinstance(event, Exited):
                        listener.process_exited(self, event.state)
                    elif isinstance(event, OutOfMemory):
                        listener.out_of_memory(self, event.container)
            except HybridError as error:
                log.info("%r: %s", self, error)
            self._linked.clear()
            await client.close()
            await self._may_heal.wait()
            await self._heal(listener)

    async def _heal(self, listener: Listener) -> None:
        if time.monotonic() - self._linked_at > STEADY:
            self._delay = FIRST_DELAY
        while True:
            # A guest that breaks its link again and again is tried ever less often.
            await asyncio.sleep(self._delay)
            self._delay = min(self._delay * 2, LAST_DELAY)
            try:
                known = self.record.agent_boot
                await self.connect()
                if self.record.agent_boot != known:
                    log.warning("%r: its agent was started anew", self)
                await listener.link_restored(self, await self.processes())
                return
            except HybridError as error:
                self._linked.clear()
                if self._client is not None:
                    await self._client.close()
                self._trouble = f": {error.message}"
                log.info("%r: no link yet: %s", self, error)

    def expect_end(self, expected: bool) -> None:
        """While the agent is being ended, a broken link is not made anew (that would start another agent)."""
        if expected:
            self._may_heal.clear()
        else:
            self._may_heal.set()

    def may_report_stranger(self) -> bool:
        """Whether its agent may speak of one more process that nobody knows: an honest one seldom does."""
        self._strangers += 1
        if self._strangers == MAX_STRANGERS:
            log.warning(
                "%r speaks of too many unknown processes: it is not listened to any more", self
            )
        return self._strangers < MAX_STRANGERS

    @property
    def linked(self) -> bool:
        return self._linked.is_set()

    async def processes(self) -> list[ProcessState]:
        return (await self.call(List())).processes

    async def client(self) -> AgentClient:
        """The link, waiting for it to heal if need be; Unavailable if it does not."""
        try:
            # Not wait_for: it swallows a cancellation that comes as the event is set (Python < 3.12).
            async with asyncio.timeout(RECONNECT_PATIENCE):
                await self._linked.wait()
        except TimeoutError:
            raise Unavailable(
                f"the agent of machine {self.record.name} does not answer{self._trouble}"
            ) from None
        assert self._client is not None
        return self._client

    async def call(self, request: Request[T], *, timeout: float | None = 60) -> T:
        """One request to the agent; not repeated when the link breaks under it."""
        return await (await self.client()).call(request, timeout=timeout)

    async def disconnect(self) -> None:
        """Lets go of the agent; its containers run on."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        self._may_heal.set()
        if self._client is not None:
            await self._client.close()
        self._linked.clear()

    # --- devices ---

    def in_use(self, kind: str, name: str, but: str = "") -> bool:
        """Whether a container other than ``but`` uses the device of that kind and name."""
        return any(
            name in names(devices)[kind] for user, devices in self.users.items() if user != but
        )

    def take_id_range(self, container: str, firsts: range) -> int:
        """The lowest free user-namespace range of this machine, of those that begin at ``firsts``."""
        taken = {base for user, base in self.bases.items() if user != container}
        base = next((first for first in firsts if first not in taken), None)
        if base is None:
            raise Unavailable(
                f"machine {self.record.name} has no free range of user ids for one more container"
            )
        self.bases[container] = base
        return base


def hostname(name: str) -> str:
    """The name as hostname(7) allows it."""
    return re.sub(r"[^a-zA-Z0-9-]+", "-", name).strip("-")[:63] or "guest"


def to_plain(devices: Devices) -> PlainDevices:
    """The form of the devices that is stored."""
    return PlainDevices(
        [PlainDisk(disk.serial, str(disk.path), disk.read_only) for disk in devices.disks],
        {nic.mac: nic.tap for nic in devices.nics},
        [
            PlainShare(share.tag, str(share.directory), share.read_only, *(share.owner or (-1, -1)))
            for share in devices.shares
        ],
    )


def from_plain(plain: PlainDevices) -> Devices:
    return Devices(
        [Disk(disk.serial, Path(disk.path), disk.read_only) for disk in plain.disks],
        [Nic(mac, tap) for mac, tap in plain.nics.items()],
        [
            ShareUse(
                share.tag,
                Path(share.directory),
                None if share.uid < 0 else (share.uid, share.gid),
                share.read_only,
            )
            for share in plain.shares
        ],
    )


def names(devices: Devices) -> dict[str, set[str]]:
    """The devices' names by kind: serials, MACs, tags."""
    return {
        "disk": {disk.serial for disk in devices.disks},
        "nic": {nic.mac for nic in devices.nics},
        "share": {share.tag for share in devices.shares},
    }


async def settle(*steps: Awaitable[Any]) -> list[BaseException]:
    """Runs all clean-up steps to their end, whatever some of them do; the errors, logged."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        log.warning("while cleaning up: %s", error)
    return errors
