"""Boxes reached over SSH: the agent runs there, detached; the link goes through an SSH channel.

``create`` is told where the box is, checks its host key, puts the agent there and starts it, and
remembers the box in its machine directory (``ssh.json``, ``known_hosts``); ``destroy`` ends the
agent with its containers and leaves their files; ``forget`` takes everything off the box again. The
agent and its containers outlive every connection; a lost one is made anew by the next ``connect``.
A box never "stops" by itself as far as this provider can tell: when its agent was started anew, the
agent's hello has another boot id. The box is somebody's own machine: nothing is known or promised
about what its kernel shares with whom, so ``Feature.OWN_KERNEL`` is not declared.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from hybrid.errors import (
    Conflict,
    HybridError,
    Internal,
    InvalidInput,
    NotFound,
    Unavailable,
    Unsupported,
)
from hybrid.host import address as addresses
from hybrid.host import provision
from hybrid.host.connection import Connection, HostKeyTrust, target_of
from hybrid.host.provision import Place
from hybrid.link.client import AgentClient
from hybrid.link.transport import Transport
from hybrid.machine.provider import (
    Disk,
    Feature,
    MachineRequest,
    MachineStatus,
    Nic,
    Remote,
    ShareDevice,
    StoppedCallback,
)
from hybrid.paths import Paths
from hybrid.wire.messages import List, Shutdown

log = logging.getLogger(__name__)
_SHUTDOWN_TIMEOUT = 30.0
_RECORD = "ssh.json"


@dataclass
class _Box:
    """One known box; ``lock`` covers making and using up its connection."""

    remote: Remote
    address: addresses.Address
    place: Place
    connection: Connection | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SshProvider:
    """See the module. ``agent`` is the zip application to put on boxes."""

    name = "ssh"
    features = frozenset({Feature.BLOBS})

    def __init__(
        self,
        paths: Paths,
        agent: Path,
        *,
        ssh_config: Path | None = None,
        home: Path | None = None,
        state: str = "/var/lib/hybrid-agent",
        run: str = "/run/hybrid-agent",
    ) -> None:
        self._paths = paths
        self._agent = agent
        self._ssh_config = ssh_config
        self._home = home
        self._state = state
        self._run = run
        self._boxes: dict[str, _Box] = {}

    def __repr__(self) -> str:
        return f"<SshProvider {[str(box.address) for box in self._boxes.values()]}>"

    async def open(self) -> None:
        """Reads which boxes are known; connects to none."""
        for record in (self._paths.root / "machines").glob(f"*/{_RECORD}"):
            try:
                remote = Remote(**json.loads(record.read_text()))
                self._boxes[record.parent.name] = self._new(record.parent.name, remote)
            except (OSError, ValueError, TypeError, InvalidInput) as error:
                log.error("passing over the unreadable %s: %s", record, error)

    async def close(self) -> None:
        """Ends the connections; the agents run on."""
        for box in self._boxes.values():
            await _close(box)

    async def create(self, request: MachineRequest) -> None:
        """The agent runs on the box. Without ``request.remote`` it must be a box that is known.

        Forbidden for an unknown host key (unless accepted) or a changed one; Unsupported, with the
        name of the package, when python3 or crun is missing. On failure a box that was not known
        before is not remembered, and nothing is left on it.
        """
        if request.disks or request.nics or request.shares:
            raise Unsupported("a box reached over SSH takes no devices")
        known = self._boxes.get(request.id)
        if request.remote is None or (known is not None and known.remote == request.remote):
            box = self._box(request.id)
        else:
            if known is not None:
                raise Conflict(f"machine {request.name} is {known.address} already")
            box = self._new(request.id, request.remote)
        try:
            async with box.lock:
                connection = await self._connected(request.id, box)
                await provision.examine(connection)
                await self._provision(box, connection)
            self._remember(request.id, box)
        except BaseException:
            if known is None:
                await self._clean(box)
                shutil.rmtree(self._paths.machine(request.id), ignore_errors=True)
            raise

    async def connect(self, machine_id: str) -> Transport:
        """A channel to the agent; connects and starts the agent anew where that is needed."""
        box = self._box(machine_id)
        async with box.lock:
            kept = box.connection is not None and box.connection.alive
            try:
                return await self._link(box, await self._connected(machine_id, box))
            except Unavailable:
                # A kept connection may have been dead for a while without anyone noticing.
                if not kept:
                    raise
                await _close(box)
                return await self._link(box, await self._connected(machine_id, box))

    async def attach_disk(self, machine_id: str, disk: Disk) -> None:
        raise Unsupported("a box reached over SSH takes no disks")

    async def detach_disk(self, machine_id: str, serial: str) -> None:
        raise Unsupported("a box reached over SSH takes no disks")

    async def attach_nic(self, machine_id: str, nic: Nic) -> None:
        raise Unsupported("a box reached over SSH takes no network interfaces of this host")

    async def detach_nic(self, machine_id: str, mac: str) -> None:
        raise Unsupported("a box reached over SSH takes no network interfaces of this host")

    async def attach_share(self, machine_id: str, share: ShareDevice) -> None:
        raise Unsupported("a box reached over SSH can't mount directories of this host")

    async def detach_share(self, machine_id: str, tag: str) -> None:
        raise Unsupported("a box reached over SSH can't mount directories of this host")

    async def destroy(self, machine_id: str) -> None:
        """Ends the agent with its containers. Their files stay on the box, and the box stays known.

        Unavailable or Forbidden when the box can't be reached: then they may run on.
        """
        box = self._boxes.get(machine_id)
        if box is None:
            return
        async with box.lock:
            await self._shut_down(box, await self._connected(machine_id, box))
            await _close(box)

    async def forget(self, machine_id: str, *, abandon: bool = False) -> None:
        """Takes all off the box, ends its agent if it runs, and forgets the box and its host key.

        When the box can't be reached: as for ``destroy``, and it stays known; with ``abandon`` it
        is forgotten all the same. Idempotent.
        """
        box = self._boxes.get(machine_id)
        if box is None:
            return
        async with box.lock:
            try:
                connection = await self._connected(machine_id, box)
                await self._shut_down(box, connection)
                await provision.remove(connection, box.place)
            except HybridError as error:
                if not abandon:
                    raise
                log.warning("%s is forgotten, but its agent may run on: %s", box.address, error)
            await _close(box)
            self._boxes.pop(machine_id, None)
            shutil.rmtree(self._paths.machine(machine_id), ignore_errors=True)

    async def list(self) -> list[MachineStatus]:
        """All known boxes. They are taken to run: whether one answers, ``connect`` finds out."""
        found = []
        for machine_id, box in self._boxes.items():
            connected = box.connection is not None and box.connection.alive
            details = {"address": str(box.address), "connected": str(connected).lower()}
            found.append(MachineStatus(machine_id, True, details=details))
        return found

    async def console(self, machine_id: str) -> bytes:
        raise Unsupported("a box reached over SSH has no console here")

    async def emulated(self, machine_id: str) -> bool:
        return False  # not by a program of this host

    async def evidence(self, machine_id: str) -> dict[str, object]:
        """Nothing of it runs on this host."""
        box = self._box(machine_id)
        return {"address": str(box.address)}

    def on_stopped(self, callback: StoppedCallback) -> None:
        """Never called: see the module."""

    async def _clean(self, box: _Box) -> None:
        """After a failed first try: what it may have brought to the box goes, if that is possible."""
        if box.connection is not None and box.connection.alive:
            with contextlib.suppress(HybridError):
                await provision.stop(box.connection, box.place)
                await provision.remove(box.connection, box.place)
        await _close(box)

    # --- inside the box's lock --------------------------------------------------------------------

    def _new(self, machine_id: str, remote: Remote) -> _Box:
        address = addresses.parse(remote.address)
        return _Box(remote, address, Place(machine_id, self._state, self._run))

    def _remember(self, machine_id: str, box: _Box) -> None:
        directory = self._paths.machine(machine_id)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _RECORD).write_text(json.dumps(dataclasses.asdict(box.remote)))
        self._boxes[machine_id] = box

    def _box(self, machine_id: str) -> _Box:
        if machine_id not in self._boxes:
            raise NotFound(f"no such box: {machine_id[:12]} (hybrid machine add)")
        return self._boxes[machine_id]

    async def _connected(self, machine_id: str, box: _Box) -> Connection:
        if box.connection is None or not box.connection.alive:
            await _close(box)
            remote = box.remote
            target = target_of(box.address, self._ssh_config, self._home)
            if remote.identity:
                target = replace(target, identities=(Path(remote.identity), *target.identities))
            if remote.known_hosts:
                target = replace(target, known_hosts=(Path(remote.known_hosts),))
            own = self._paths.machine(machine_id) / "known_hosts"
            trust = HostKeyTrust(own, remote.accept_host_key, remote.fingerprint)
            box.connection = await Connection.open(target, trust)
        return box.connection

    async def _link(self, box: _Box, connection: Connection) -> Transport:
        stream = await provision.link(connection, box.place)
        if stream is None:
            log.warning("%s: its agent does not run: starting it", box.address)
            await provision.stop(connection, box.place)
            await provision.start(connection, box.place, self._agent.read_bytes())
            stream = await provision.link(connection, box.place)
        if stream is None:
            raise Unavailable(f"{box.address}: its agent does not listen")
        return stream

    async def _provision(self, box: _Box, connection: Connection) -> None:
        """Starts the agent; one of another version is replaced if nothing runs in it."""
        agent = self._agent.read_bytes()
        program = await provision.running(connection, box.place)
        if program and program != box.place.program(agent) and await self._idle(box, connection):
            log.info("%s: replacing its agent: the program changed", box.address)
            await self._shut_down(box, connection)
        await provision.start(connection, box.place, agent)

    async def _idle(self, box: _Box, connection: Connection) -> bool:
        client = await self._client(box, connection)
        if client is None:
            return True
        try:
            return not (await client.call(List())).processes
        finally:
            await client.close()

    async def _shut_down(self, box: _Box, connection: Connection) -> None:
        with contextlib.suppress(Unavailable, Internal):
            client = await self._client(box, connection)
            if client is not None:
                try:
                    await client.call(Shutdown(), timeout=_SHUTDOWN_TIMEOUT)
                finally:
                    await client.close()
        await provision.stop(connection, box.place)

    async def _client(self, box: _Box, connection: Connection) -> AgentClient | None:
        stream = await provision.link(connection, box.place)
        if stream is None:
            return None
        return await AgentClient.connect(stream, timeout=20, name=str(box.address))


async def _close(box: _Box) -> None:
    if box.connection is not None:
        await box.connection.close()
        box.connection = None
