"""Machines: made, reached, shared by containers, adopted after a restart, and ended.

A guest that a user made (``hybrid machine create``) lives until ``rm``. Every other guest lives as long as a container
uses it: ``claim`` makes it, ``release`` by its last user ends it. This host is the machine ``host``.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

from hybrid.engine import boxes, names
from hybrid.engine.backends import Backends, GuestSize
from hybrid.engine.events import Events
from hybrid.engine.machine import (
    Devices,
    Listener,
    Machine,
    MachineRecord,
    RemotePlace,
    ShareUse,
    settle,
)
from hybrid.engine.placement import HOST, Choice
from hybrid.engine.store import Store
from hybrid.engine.templates import TemplateKeeper
from hybrid.errors import Conflict, HybridError, Unavailable
from hybrid.machine import profile as profiles
from hybrid.machine.provider import (
    MachineRequest,
    Provider,
    Remote,
    ShareDevice,
)
from hybrid.paths import Paths
from hybrid.wire.messages import Retain, Shutdown

log = logging.getLogger(__name__)
LostCallback = Callable[[Machine, str], None]
GUEST_FIRST = 0.5
KeptCallback = Callable[[str], list[str]]


class Machines:
    """Every machine, by id; the only caller of providers."""

    def __init__(self, paths: Paths, store: Store, events: Events, backends: Backends) -> None:
        self._paths = paths
        self._store = store
        self._events = events
        self.backends = backends
        self.templates = TemplateKeeper(backends)
        self._machines: dict[str, Machine] = {}
        self._listener: Listener | None = None
        self._lost: LostCallback = lambda machine, reason: None
        self._kept: KeptCallback = lambda machine_id: []
        self._tasks: set[asyncio.Task[None]] = set()
        for provider in backends.providers():
            provider.on_stopped(self._stopped)
        backends.shares.on_lost(self._share_lost)

    def watch(self, listener: Listener, lost: LostCallback, kept: KeptCallback) -> None:
        """Who is told of exits, and of machines that went away by themselves; and who knows which containers'
        changes a machine keeps."""
        self._listener = listener
        self._lost = lost
        self._kept = kept

    # --- looking ---

    def all(self) -> list[Machine]:
        return sorted(self._machines.values(), key=lambda machine: machine.record.created_ns)

    def get(self, machine_id: str) -> Machine | None:
        return self._machines.get(machine_id)

    def named(self, name: str) -> str | None:
        """The id of the machine of that name that containers may share."""
        for machine in self._machines.values():
            if machine.record.name == name and not machine.record.private:
                return machine.id
        return None

    def find(self, reference: str) -> Machine:
        return names.find(
            reference,
            self._machines.values(),
            lambda machine: (machine.id, machine.record.name),
            f"No such machine: {reference}",
        )

    # --- made and removed by users ---

    async def create(self, name: str, size: GuestSize) -> Machine:
        """A guest that outlives its containers; booted at once."""
        names.checked_name(name)
        self._refuse_taken(name)
        machine = self._new("guest", name, size, explicit=True)
        try:
            await self.start(machine)
        except BaseException:
            await self._forget(machine)
            raise
        return machine

    async def add(self, name: str, remote: Remote) -> Machine:
        """A box that runs already and is reached over the network."""
        names.checked_name(name)
        self._refuse_taken(name)
        machine = self._new("remote", name, GuestSize(), explicit=True, remote=remote)
        try:
            await self.start(machine)
        except BaseException:
            await settle(self._take_off(machine, abandon=True))
            await self._forget(machine)
            raise
        return machine

    async def _take_off(self, machine: Machine, *, abandon: bool) -> None:
        """What a box keeps of ours goes; ``abandon``: even if it can't be reached, it is forgotten."""
        if machine.record.kind == "remote" and self.backends.remote is not None:
            await self.backends.remote.forget(machine.id, abandon=abandon)

    def _refuse_taken(self, name: str) -> None:
        if any(machine.record.name == name for machine in self._machines.values()):
            raise Conflict(f"a machine named {name} exists already")

    async def start(self, machine: Machine) -> None:
        async with machine.lock:
            if machine.record.running:
                return
            await self._boot(machine, Devices())

    async def stop(self, machine: Machine, timeout: float = 10.0, *, abandon: bool = False) -> None:
        """Ends the machine and with it all its containers.

        Unavailable for a box that can't be reached, where they may run on; unless ``abandon``.
        """
        if not machine.record.running:
            return
        try:
            if machine.linked or not abandon:
                client = await machine.client()
                machine.expect_end(True)
                await client.call(Shutdown(timeout), timeout=timeout + 20)
        except HybridError as error:
            if machine.record.kind == "remote" and not abandon:
                machine.expect_end(False)
                raise
            log.info("%r: no clean shutdown: %s", machine, error)
        async with machine.lock:
            await self._end(machine)
        self._lost(machine, "its machine was stopped")

    async def remove(self, machine: Machine, *, force: bool) -> None:
        if machine.record.kind == "host":
            raise Conflict("the machine 'host' is this host itself and cannot be removed")
        if machine.users and not force:
            raise Conflict(
                f"machine {machine.record.name} is in use by {len(machine.users)} container(s): stop them first, or"
                " use --force"
            )
        try:
            await self.stop(machine, timeout=10.0 if not force else 2.0, abandon=force)
            await self._take_off(machine, abandon=force)
        except HybridError as error:
            if machine.record.kind != "remote":
                raise
            raise type(error)(
                f"{error.message}; to forget it all the same, with what runs there: hybrid machine rm --force"
            ) from error
        await self._forget(machine)

    # --- used by containers ---

    async def claim(
        self, choice: Choice, container: str, devices: Devices, size: GuestSize
    ) -> Machine:
        """The machine of that choice, up, with the container's devices in it. Undo with ``release``."""
        machine = await self._reserve(choice, devices, size)
        machine.users[container] = Devices()
        try:
            async with machine.lock:
                if machine.id not in self._machines:
                    raise Unavailable(f"machine {machine.record.name} was just ended: try again")
                if machine.record.running:
                    await self._attach(machine, container, devices)
                else:
                    machine.users[container] = devices
                    await self._boot(machine, devices, sharing=choice.sharing)
        except BaseException:
            await asyncio.shield(self.release(machine, container))
            raise
        return machine

    async def _reserve(self, choice: Choice, devices: Devices, size: GuestSize) -> Machine:
        if choice.action == "existing":
            return self._machines[choice.machine]
        spare = ""
        if choice.private and not choice.sharing and not devices.shares:
            spare = await self.templates.take(size, devices.nics)
        return self._new("guest", choice.name, size, private=choice.private, machine_id=spare)

    async def release(self, machine: Machine, container: str) -> None:
        """The container no longer uses the machine; what nobody uses any more is detached, or the guest ended."""
        async with machine.lock:
            devices = machine.users.pop(container, None)
            machine.bases.pop(container, None)
            if devices is None or machine.id not in self._machines:
                return
            if not machine.users and machine.record.kind == "guest" and not machine.record.explicit:
                await self._end(machine, drop=devices.shares)
                await self._forget(machine)
            elif machine.record.running:
                await self._detach(machine, devices)

    def is_only_for(self, machine: Machine, container: str) -> bool:
        """Whether it is a guest that ends with this container, and holds nothing that anything else will see.

        A share is something else: the guest may still have to write to it.
        """
        record = machine.record
        return (
            record.kind == "guest"
            and not record.explicit
            and machine.users.keys() == {container}
            and not machine.users[container].shares
        )

    async def _attach(self, machine: Machine, container: str, devices: Devices) -> None:
        """Hot-plugs what the machine does not have yet; on failure ``release`` takes back what was done."""
        provider, mine = machine.provider, machine.users[container]
        for disk in devices.disks:
            if not machine.in_use("disk", disk.serial, container):
                await provider.attach_disk(machine.id, disk)
            mine.disks.append(disk)
        for nic in devices.nics:
            await provider.attach_nic(machine.id, nic)
            mine.nics.append(nic)
        for share in devices.shares:
            mine.shares.append(share)  # its server is there before it is attached
            if not machine.in_use("share", share.tag, container):
                await provider.attach_share(machine.id, await self._serve(machine, share))

    async def _detach(self, machine: Machine, devices: Devices) -> None:
        provider = machine.provider
        await settle(
            *(
                provider.detach_disk(machine.id, disk.serial)
                for disk in devices.disks
                if not machine.in_use("disk", disk.serial)
            ),
            *(provider.detach_nic(machine.id, nic.mac) for nic in devices.nics),
        )
        for share in devices.shares:
            if not machine.in_use("share", share.tag):
                await settle(provider.detach_share(machine.id, share.tag))
                await settle(self._unserve(machine, share))

    async def _serve(self, machine: Machine, share: ShareUse) -> ShareDevice:
        socket = self._paths.machine_run(machine.id) / f"{share.tag}.sock"
        await self.backends.shares.serve(
            machine.id,
            share.tag,
            share.directory,
            socket,
            owner=share.owner,
            read_only=share.read_only,
        )
        return ShareDevice(share.tag, socket)

    async def _unserve(self, machine: Machine, share: ShareUse) -> None:
        await self.backends.shares.stop(machine.id, share.tag)

    # --- life and death ---

    def _new(
        self,
        kind: str,
        name: str,
        size: GuestSize,
        *,
        explicit: bool = False,
        private: bool = False,
        remote: Remote | None = None,
        machine_id: str = "",
    ) -> Machine:
        provider = self.backends.of(kind)
        profile = profiles.load(size.profile) if kind == "guest" else None
        record = MachineRecord(
            id=HOST if kind == "host" else machine_id or names.new_machine_id(),
            name=name,
            kind=kind,
            provider=provider.name,
            created_ns=time.time_ns(),
            profile=size.profile,
            memory=max(size.memory, profile.memory) if profile else 0,
            cpus=max(size.cpus, profile.cpus) if profile else 0,
            explicit=explicit,
            private=private,
            remote=None if remote is None else RemotePlace(**asdict(remote)),
        )
        machine = Machine(record, provider)
        self._machines[machine.id] = machine
        self._save(machine)
        self._events.publish("machine", "create", machine.id, {"name": name, "kind": kind})
        return machine

    async def _boot(self, machine: Machine, devices: Devices, *, sharing: bool = False) -> None:
        """Makes the machine run, with these devices, and links to its agent; nothing is left of it on failure."""
        record, guest = machine.record, machine.record.kind == "guest"
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._end, machine, drop=devices.shares)
            shares = await asyncio.gather(*(self._serve(machine, one) for one in devices.shares))
            request = MachineRequest(
                id=record.id,
                name=record.name,
                profile=profiles.load(record.profile),
                memory=record.memory,
                cpus=record.cpus,
                boot=self.backends.boot() if guest else None,
                disks=tuple(devices.disks),
                nics=tuple(devices.nics),
                shares=tuple(shares),
                remote=None if record.remote is None else Remote(**asdict(record.remote)),
                shares_later=sharing or not record.private,
            )
            await machine.make(request)
            try:
                if not machine.linked:
                    await machine.connect()
            except HybridError as error:
                raise Unavailable(await self._with_console(machine, error.message)) from error
            undo.pop_all()
        record.running, record.error = True, ""
        self._save(machine)
        self._keep(machine)
        self._events.publish("machine", "start", machine.id, {"name": record.name})

    def _keep(self, machine: Machine) -> None:
        assert self._listener is not None
        machine.keep(self._listener)

    async def _with_console(self, machine: Machine, message: str) -> str:
        try:
            console = (await machine.provider.console(machine.id)).decode(errors="replace")
        except HybridError:
            return message
        last = [line.strip() for line in console.splitlines() if line.strip()][-3:]
        return f"{message}; the console's last lines: {' | '.join(last)}" if last else message

    async def _end(self, machine: Machine, drop: list[ShareUse] | None = None) -> None:
        """Stops it and frees what it has on this host. The host machine only loses its link."""
        await settle(machine.disconnect())
        shares = {
            share.tag: share for devices in machine.users.values() for share in devices.shares
        }
        shares.update({share.tag: share for share in drop or []})
        await settle(machine.provider.destroy(machine.id))
        await settle(*(self._unserve(machine, share) for share in shares.values()))
        if machine.record.running:
            self._events.publish("machine", "stop", machine.id, {"name": machine.record.name})
        machine.record.running = False
        self._save(machine)

    async def _forget(self, machine: Machine) -> None:
        if self._machines.pop(machine.id, None) is None:
            return
        self._store.delete("machine", machine.id)
        await asyncio.to_thread(shutil.rmtree, self._paths.machine(machine.id), ignore_errors=True)
        self._events.publish("machine", "destroy", machine.id, {"name": machine.record.name})

    def _save(self, machine: Machine) -> None:
        if machine.id in self._machines:
            self._store.put("machine", machine.id, machine.record)

    def _stopped(self, machine_id: str, reason: str) -> None:
        machine = self._machines.get(machine_id)
        if machine is None or not machine.record.running:
            return
        self._spawn(self._bury(machine, reason))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _share_lost(self, machine_id: str, tag: str, reason: str) -> None:
        """Input and output on a lost share hang for good, so its guest cannot go on."""
        del tag

        async def settle_why() -> None:
            # The server also ends when its guest does: then that is what is told, by the provider.
            await asyncio.sleep(GUEST_FIRST)
            self._stopped(machine_id, f"its file server ended: {reason}")

        self._spawn(settle_why())

    async def _bury(self, machine: Machine, reason: str) -> None:
        """A machine went away by itself: its containers are told, then what is left of it is removed."""
        async with machine.lock:
            if not machine.record.running:
                return
            log.warning("%r went away: %s", machine, reason)
            machine.record.running = False
            machine.record.error = reason
            self._events.publish(
                "machine", "die", machine.id, {"name": machine.record.name, "reason": reason}
            )
            await self._end(machine)
        self._lost(machine, reason)

    # --- the daemon's start and end ---

    async def adopt(self) -> None:
        """Links to the machines that outlived the last daemon; removes what has no owner."""
        await self.backends.shares.open()
        found: dict[str, tuple[Provider, bool, str]] = {}
        for provider in self.backends.providers():
            await provider.open()
            for status in await provider.list():
                found[status.id] = (provider, status.running, status.reason)
        for record in self._store.all("machine", MachineRecord):
            self._machines[record.id] = Machine(record, self.backends.of(record.kind))
        await settle(
            *(self._adopt_one(machine, found) for machine in list(self._machines.values()))
        )
        if self.named(HOST) is None and self.backends.host is not None:
            self._new("host", HOST, GuestSize(), explicit=True)
        for machine_id, (provider, _, _) in found.items():
            if machine_id not in self._machines:
                log.warning("removing machine %s: nothing is known of it", machine_id[:12])
                await settle(provider.destroy(machine_id))
                if self.backends.remote is not None and provider is self.backends.remote:
                    await settle(self.backends.remote.forget(machine_id, abandon=True))

    async def _adopt_one(
        self, machine: Machine, found: dict[str, tuple[Provider, bool, str]]
    ) -> None:
        record = machine.record
        if not record.running:
            if record.kind == "guest" and machine.id in found:
                # It was just being made, or ended.
                await self._end(machine)
            if record.explicit and not record.boot_id and record.kind != "host":
                log.warning("%r never came up: its making was interrupted", machine)
                await settle(machine.provider.destroy(machine.id))
                await self._forget(machine)
            return
        _, running, reason = found.get(
            machine.id, (None, False, "it was gone when the daemon started")
        )
        error = reason
        if running:
            try:
                await machine.connect()
                self._save(machine)
                return
            except HybridError as failure:
                error = failure.message
                if machine.record.kind == "remote":
                    log.warning("%r cannot be reached yet: %s", machine, error)
                    return
        log.warning("%r did not outlive the daemon: %s", machine, error)
        machine.record.error = error
        await self._end(machine)

    def watch_adopted(self) -> None:
        """Starts to follow the adopted machines' events; call when the containers know their machines."""
        served = set(self.backends.shares.serving())
        for machine in self._machines.values():
            if not machine.record.running:
                continue
            self._keep(machine)
            self._spawn(self.retain(machine))
            for devices in machine.users.values():
                for share in devices.shares:
                    if (machine.id, share.tag) not in served:
                        self._share_lost(
                            machine.id, share.tag, "it was gone when the daemon started"
                        )

    async def sweep(self) -> None:
        """Ends the guests that no container uses and no user made, and file servers of nobody's."""
        for machine in list(self._machines.values()):
            record = machine.record
            if record.kind == "guest" and not record.explicit and not machine.users:
                await self._end(machine)
                await self._forget(machine)
        for machine_id, tag in self.backends.shares.serving():
            owner = self._machines.get(machine_id)
            if owner is None or not owner.in_use("share", tag):
                await settle(self.backends.shares.stop(machine_id, tag))

    async def close(self) -> None:
        await settle(*(machine.disconnect() for machine in self._machines.values()))
        await settle(*(provider.close() for provider in self.backends.providers()))
        await settle(self.backends.shares.close())

    async def retain(self, machine: Machine) -> None:
        """A box lets go of what it keeps for containers that are no more. One that is away is told when it is back."""
        if boxes.is_box(machine.provider.features) and machine.linked:
            await settle(machine.call(Retain(self._kept(machine.id))))

    async def console(self, machine: Machine) -> bytes:
        return await machine.provider.console(machine.id)
