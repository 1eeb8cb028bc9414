"""Guests on this host (or another one's libvirt): each a QEMU with a uid, namespace and filter of
its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from hybrid.errors import Conflict, HybridError, Internal, NotFound, Unavailable, Unsupported
from hybrid.link import serial, vsock
from hybrid.link.transport import Transport
from hybrid.machine import access, design, domain, embed, evidence, hostfacts, kvm, orphans
from hybrid.machine.console import Console, ConsoleLog, printable
from hybrid.machine.design import HostFacts, Placement
from hybrid.machine.domain import RunningDomain
from hybrid.machine.hypervisor import Ended, Hypervisor, pid_file
from hybrid.machine.profile import Accelerator, MachineProfile
from hybrid.machine.provider import (
    AGENT_VSOCK_PORT,
    CONSOLE_TAIL,
    Disk,
    Feature,
    MachineRequest,
    MachineStatus,
    Nic,
    Origin,
    ShareDevice,
    StoppedCallback,
)
from hybrid.machine.running import RunningGuest, read_pid
from hybrid.machine.template import BUILDING
from hybrid.paths import SOCKET_PATH_MAX, Paths

_DEATH = 10.0  # seconds for a killed QEMU to be gone
_UNPLUG = 15.0  # seconds for a guest to let a device go
_POLL = 0.05
_LOADING = 30.0  # seconds for a device state to be read
_CONSOLE_LINES = 5


class LibvirtProvider:
    """Implements ``hybrid.machine.provider.Provider`` with QEMU guests.

    ``uri`` None is the embedded driver. ``accelerator`` AUTO leaves the choice to each machine's
    profile.
    """

    name = "libvirt"
    features = frozenset(
        (Feature.OWN_KERNEL, Feature.DISKS, Feature.NICS, Feature.SHARES, Feature.CONSOLE)
    )

    def __init__(
        self,
        paths: Paths,
        uri: str | None = None,
        accelerator: Accelerator = Accelerator.AUTO,
        *,
        namespaces: bool = True,
    ) -> None:
        self._paths = paths
        self._embedded = uri is None
        self._accelerator = accelerator
        self._namespaces = namespaces
        self._hypervisor = Hypervisor(uri or embed.uri(paths))
        self._guests: dict[str, RunningGuest] = {}
        self._callbacks: list[StoppedCallback] = []
        self._choosing_uid = asyncio.Lock()
        self._forgetting: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, RunningGuest] = {}
        """By domain name: dead guests whose end libvirt has not reported yet."""

    def __repr__(self) -> str:
        return f"<LibvirtProvider {self._hypervisor!r} {list(self._guests.values())}>"

    # The provider itself

    async def open(self) -> None:
        self._paths.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        (self._paths.run / "m").mkdir(mode=0o711, parents=True, exist_ok=True)
        if self._embedded:
            embed.end_probes(self._paths)
            embed.prepare(self._paths, kvm.DEVICE, namespaces=self._namespaces)
            access.let_through(self._paths.libvirt / "etc", self._ours)
            orphans.become_subreaper()
        self._hypervisor.on_stopped(self._stopped_event)
        self._hypervisor.on_port(self._port_event)
        await self._hypervisor.open()
        await self._hypervisor.settled()
        await self._adopt()
        if self._embedded:
            embed.remove_strays(self._paths, [guest.name for guest in self._guests.values()])

    async def close(self) -> None:
        await asyncio.gather(*self._forgetting.values())
        for guest in self._guests.values():
            guest.close()
            await guest.console.close()
        self._guests.clear()
        await self._hypervisor.close()

    def on_stopped(self, callback: StoppedCallback) -> None:
        self._callbacks.append(callback)

    async def list(self) -> list[MachineStatus]:
        return [
            MachineStatus(guest.id, not guest.stopped.is_set(), guest.ending)
            for guest in self._guests.values()
            if not guest.id.startswith(BUILDING)
        ]

    # A machine's life

    async def create(self, request: MachineRequest) -> None:
        existing = self._guests.get(request.id)
        if existing is not None:
            await self._wait_ready(existing, request.profile, Accelerator.TCG)
            return
        hostfacts.check_memory(request)
        facts = await hostfacts.gather(request, self._accelerator, self._paths.run / "kvm.json")
        await self._make(request, facts)

    async def _make(self, request: MachineRequest, facts: HostFacts) -> None:
        """Boots it; nothing is left of it when this raises."""
        if request.id in self._forgetting:
            await self._forgetting[request.id]
        guest, placement = await self._place(request)
        async with self._destroyed_on_failure(guest):
            await self._start(guest, design.design(request, facts, placement), request)
            await self._wait_ready(guest, request.profile, facts.accelerator)

    @contextlib.asynccontextmanager
    async def _destroyed_on_failure(self, guest: RunningGuest) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(HybridError):
                await asyncio.shield(self.destroy(guest.id))
            raise

    async def connect(self, machine_id: str) -> Transport:
        guest = self._guest(machine_id)
        running = await self._running(guest)
        if running.vsock_cid is not None:
            return await vsock.connect(running.vsock_cid, AGENT_VSOCK_PORT)
        return await serial.connect(self._agent_socket(machine_id))

    async def destroy(self, machine_id: str) -> None:
        guest = self._guests.get(machine_id)
        if guest is not None:
            guest.doomed = True
            await self._end(guest)
            guest.close()
            await guest.console.close()
            self._guests.pop(machine_id, None)
        self._remove_files(machine_id)

    async def console(self, machine_id: str) -> bytes:
        return self._console_log(machine_id).tail(CONSOLE_TAIL)

    async def emulated(self, machine_id: str) -> bool:
        pid = self._guest(machine_id).pid
        return pid is not None and evidence.accelerator(evidence.command_line(pid)) == "tcg"

    async def evidence(self, machine_id: str) -> dict[str, object]:
        guest = self._guest(machine_id)
        running = await self._running(guest)
        if guest.pid is None:
            raise NotFound(f"machine {machine_id[:12]}: its QEMU process is not on this host")
        pid_path = pid_file(self._hypervisor.uri, self._paths.libvirt, guest.name)
        own = {*running.sources, str(pid_path), str(self._qemu_log(guest.name))}
        resolved = {os.path.realpath(path) for path in own}
        return await asyncio.to_thread(evidence.gather, guest.pid, resolved)

    # Devices

    async def attach_disk(self, machine_id: str, disk: Disk) -> None:
        guest = self._guest(machine_id)
        async with guest.changing:
            running = await self._running(guest)
            if any(other.serial == disk.serial for other in running.disks):
                raise Conflict(f"machine {machine_id[:12]} already has a disk {disk.serial}")
            access.grant_disk(disk, guest.uid, guest.gid, self._ours)
            scsi = [other for other in running.disks if other.bus == "scsi"]
            await self._attach(guest, design.scsi_disk(disk, scsi))

    async def detach_disk(self, machine_id: str, serial: str) -> None:
        guest = self._guest(machine_id)
        await self._detach(
            guest,
            lambda running: next((d for d in running.disks if d.serial == serial), None),
            f"disk {serial}",
        )

    async def attach_nic(self, machine_id: str, nic: Nic) -> None:
        guest = self._guest(machine_id)
        async with guest.changing:
            running = await self._running(guest)
            if any(other.mac == nic.mac for other in running.nics):
                raise Conflict(f"machine {machine_id[:12]} already has an interface {nic.mac}")
            await self._attach(guest, design.nic_device(nic))

    async def detach_nic(self, machine_id: str, mac: str) -> None:
        guest = self._guest(machine_id)
        await self._detach(
            guest,
            lambda running: next((n for n in running.nics if n.mac == mac), None),
            f"network interface {mac}",
        )

    async def attach_share(self, machine_id: str, share: ShareDevice) -> None:
        guest = self._guest(machine_id)
        if guest.origin.memory == "private":
            raise Conflict(
                f"machine {machine_id[:12]} was made for a container without volumes: its memory cannot be shown to a"
                " file server; give its first container a volume or mount, or use --isolation vm:NAME for both"
            )
        async with guest.changing:
            running = await self._running(guest)
            if any(other.tag == share.tag for other in running.shares):
                raise Conflict(f"machine {machine_id[:12]} already has a share {share.tag}")
            access.grant_share(share, guest.uid, guest.gid, self._ours)
            await self._attach(guest, design.share_device(share))

    async def detach_share(self, machine_id: str, tag: str) -> None:
        guest = self._guest(machine_id)
        await self._detach(
            guest,
            lambda running: next((s for s in running.shares if s.tag == tag), None),
            f"share {tag}",
        )

    # How

    @property
    def _ours(self) -> tuple[Path, ...]:
        return self._paths.root, self._paths.run

    def _agent_socket(self, machine_id: str) -> Path:
        return self._paths.machine_run(machine_id) / "agent.sock"

    def _console_socket(self, machine_id: str) -> Path:
        return self._paths.machine_run(machine_id) / "console.sock"

    def _console_log(self, machine_id: str, limit: int = 256 << 10) -> ConsoleLog:
        return ConsoleLog(self._paths.machine(machine_id) / "console.log", limit)

    def _qemu_log(self, name: str) -> Path:
        directory = self._paths.libvirt if self._embedded else Path("/var/log/libvirt")
        return directory / ("log/qemu" if self._embedded else "qemu") / f"{name}.log"

    def _guest(self, machine_id: str) -> RunningGuest:
        guest = self._guests.get(machine_id)
        if guest is None or guest.stopped.is_set():
            reason = f" ({guest.ending})" if guest is not None else ""
            raise NotFound(f"machine {machine_id[:12]} does not run{reason}")
        return guest

    async def _running(self, guest: RunningGuest) -> RunningDomain:
        running = domain.read(await self._hypervisor.xml(guest.name))
        if running is None:
            raise Internal(f"the domain {guest.name} is not one of hybrid's")
        return running

    async def _place(self, request: MachineRequest) -> tuple[RunningGuest, Placement]:
        """A record, a uid and a place for sockets; the uid is held by the record from here on."""
        instance = self._paths.instance
        async with self._choosing_uid:
            taken = await asyncio.to_thread(evidence.user_ids)
            taken |= {guest.uid for guest in self._guests.values()}
            for name in await self._hypervisor.names():
                with contextlib.suppress(NotFound):
                    uid = domain.user_of(await self._hypervisor.xml(name))
                    taken |= {uid} if uid is not None else set()
            placement = Placement(
                instance,
                design.allocate_uid(instance, request.id, taken),
                self._agent_socket(request.id),
                self._console_socket(request.id),
            )
            log = self._console_log(request.id, request.profile.console_bytes)
            guest = RunningGuest(
                request.id,
                design.domain_name(instance, request.id),
                placement.uid,
                placement.uid,
                Console(placement.console_socket, log),
                self._guest_ended,
            )
            self._guests[request.id] = guest
        return guest, placement

    async def _start(
        self,
        guest: RunningGuest,
        definition: domain.Domain,
        request: MachineRequest,
        state: int | None = None,
    ) -> None:
        """Starts the domain, from nothing or with the device state in the descriptor ``state``."""
        guest.gid, guest.origin = definition.gid, definition.origin or Origin("boot")
        directory = self._paths.machine_run(guest.id)
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        if len(os.fsencode(self._console_socket(guest.id))) > SOCKET_PATH_MAX:
            raise Unavailable(
                f"the path {directory} is too long for sockets: choose a shorter --root"
            )
        assert request.boot is not None
        boot = request.boot
        for path in (boot.root, boot.kernel, boot.initrd):
            access.grant_disk(Disk("boot", path, True), guest.uid, guest.gid, self._ours)
        for disk in request.disks:
            access.grant_disk(disk, guest.uid, guest.gid, self._ours)
        for share in request.shares:
            access.grant_share(share, guest.uid, guest.gid, self._ours)
        self._console_log(guest.id).remove()
        await self._hypervisor.create(guest.name, definition.xml())
        if not self._console_socket(guest.id).exists():
            raise Unsupported(
                f"{self._hypervisor.uri} starts guests on another host, where {directory} is not"
                " this host's: add that host with 'hybrid machine add' instead"
            )
        self._watch(guest)
        # The guest is still frozen: nothing that it prints is lost, and it runs only as who it
        # should.
        if guest.pid is not None and Path(f"/proc/{guest.pid}").stat().st_uid != guest.uid:
            raise Internal(f"libvirt started {guest.name} as another user than {guest.uid}")
        await guest.console.open()
        if state is not None:
            await self._hypervisor.load_state(guest.name, state, timeout=_LOADING)
        await self._hypervisor.resume(guest.name)
        running = await self._running(guest)
        if running.vsock_cid is not None:
            guest.answering = asyncio.create_task(self._knock(guest, running.vsock_cid))

    async def _knock(self, guest: RunningGuest, cid: int) -> None:
        """Finds out when the agent listens: unlike a serial port, vsock has no event for it."""
        while True:
            try:
                transport = await vsock.connect(cid, AGENT_VSOCK_PORT)
            except Unavailable:
                await asyncio.sleep(_POLL)
            else:
                await transport.close()
                guest.ready.set()
                return

    def _watch(self, guest: RunningGuest) -> bool:
        """Whether its process may live: False if there is a pid file, and no such QEMU."""
        pid = read_pid(pid_file(self._hypervisor.uri, self._paths.libvirt, guest.name))
        return pid is None or guest.watch(pid)

    async def _wait_ready(
        self, guest: RunningGuest, profile: MachineProfile, accelerator: Accelerator
    ) -> None:
        timeouts = profile.boot_timeout
        timeout = timeouts.kvm if accelerator is Accelerator.KVM else timeouts.tcg
        waits = [asyncio.create_task(event.wait()) for event in (guest.ready, guest.stopped)]
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if guest.ready.is_set() and not guest.stopped.is_set():
            return
        what = guest.ending or f"its agent did not answer within {timeout:g} s"
        await guest.console.close(drain=0.5)
        last = printable(guest.console.log.tail(CONSOLE_TAIL), _CONSOLE_LINES)
        raise Unavailable(f"the guest did not boot: {what}; console: {last or '(nothing)'}")

    async def _end(self, guest: RunningGuest) -> None:
        """Ends the guest's process. libvirt's own way polls for 200 ms; its cleaning up is not
        waited for.
        """
        if guest.kill():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(guest.dead.wait(), _DEATH)
        if not guest.dead.is_set():
            with contextlib.suppress(NotFound):
                await self._hypervisor.destroy(guest.name)
        elif not guest.stopped.is_set():
            self._leaving[guest.name] = guest
            task = asyncio.create_task(self._forget(guest), name=f"forget {guest.name}")
            self._forgetting[guest.id] = task
            task.add_done_callback(lambda _task: self._forgetting.pop(guest.id, None))

    async def _forget(self, guest: RunningGuest) -> None:
        """When libvirt has noticed the end it writes a last line to the guest's log: then that goes
        too.
        """
        with contextlib.suppress(TimeoutError, HybridError):
            await asyncio.wait_for(guest.stopped.wait(), _DEATH)
            await asyncio.wait_for(self._gone(guest.name), _DEATH)
        self._leaving.pop(guest.name, None)
        self._remove_files(guest.id)

    async def _gone(self, name: str) -> None:
        while name in await self._hypervisor.names():
            await asyncio.sleep(_POLL)

    def _remove_files(self, machine_id: str) -> None:
        self._console_log(machine_id).remove()
        self._agent_socket(machine_id).unlink(missing_ok=True)
        self._console_socket(machine_id).unlink(missing_ok=True)
        if self._embedded:
            name = design.domain_name(self._paths.instance, machine_id)
            self._qemu_log(name).unlink(missing_ok=True)
        for directory in (self._paths.machine_run(machine_id), self._paths.machine(machine_id)):
            # What others keep there (shares' sockets, host keys) is theirs to remove.
            with contextlib.suppress(OSError):
                directory.rmdir()

    async def _attach(self, guest: RunningGuest, device: domain.Device) -> None:
        await self._hypervisor.attach(guest.name, domain.to_xml(device))

    async def _detach(
        self,
        guest: RunningGuest,
        find: Callable[[RunningDomain], domain.Device | None],
        what: str,
    ) -> None:
        async with guest.changing:
            device = find(await self._running(guest))
            if device is None:
                return
            with contextlib.suppress(NotFound):
                await self._hypervisor.detach(guest.name, domain.to_xml(device))
            try:
                async with asyncio.timeout(_UNPLUG):
                    while find(await self._running(guest)) is not None:
                        await asyncio.sleep(_POLL)
            except TimeoutError as error:
                raise Unavailable(
                    f"machine {guest.id[:12]} does not let go of {what} (is it still in use?)"
                ) from error
            except NotFound:
                return

    async def _adopt(self) -> None:
        """Takes over the guests that an earlier process made, and clears up after those that are
        dead.
        """
        prefix = f"hybrid-{self._paths.instance}-"
        for name in await self._hypervisor.names():
            if not name.startswith(prefix):
                continue
            # Any of these guests may end while it is looked at.
            try:
                running = domain.read(await self._hypervisor.xml(name))
                if running is None or running.instance != self._paths.instance:
                    continue
                building = running.machine_id.startswith(BUILDING)
                if building or await self._hypervisor.is_frozen(name):
                    # Its owner died before it released it, or froze it: nobody knows of it.
                    await self._hypervisor.destroy(name)
                    self._remove_files(running.machine_id)
                    continue
            except NotFound:
                continue
            console = Console(
                self._console_socket(running.machine_id), self._console_log(running.machine_id)
            )
            guest = RunningGuest(
                running.machine_id, name, running.uid, running.gid, console, self._guest_ended
            )
            guest.ready.set()
            guest.origin = running.origin or Origin("boot")
            self._guests[guest.id] = guest
            if not self._watch(guest):
                guest.ended(Ended.FAILED)
            with contextlib.suppress(Unavailable):
                await console.open()
        self._remove_stale()

    def _remove_stale(self) -> None:
        known = {self._paths.machine_run(machine_id) for machine_id in self._guests}
        for directory in (self._paths.run / "m").iterdir():
            if directory in known:
                continue
            for name in ("agent.sock", "console.sock"):
                (directory / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                directory.rmdir()

    # Events

    def _by_name(self, name: str) -> RunningGuest | None:
        leaving = self._leaving.get(name)
        if leaving is not None:
            return leaving
        return next((guest for guest in self._guests.values() if guest.name == name), None)

    def _port_event(self, name: str, is_open: bool) -> None:
        guest = self._by_name(name)
        if guest is not None and is_open:
            guest.ready.set()

    def _stopped_event(self, name: str, how: Ended) -> None:
        guest = self._by_name(name)
        if guest is not None:
            guest.ended(how)

    def _guest_ended(self, guest: RunningGuest) -> None:
        if guest.doomed:
            return
        for callback in self._callbacks:
            callback(guest.id, guest.ending)
