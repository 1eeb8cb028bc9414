"""The containers: made, found, listed, started, stopped, changed and removed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable

from hybrid.engine import bundle, names, restart, signals
from hybrid.engine.attach import Attachment
from hybrid.engine.container import Limits, Record, Restart, Spec
from hybrid.engine.draft import Drafts, endpoint_of
from hybrid.engine.events import Events
from hybrid.engine.images import Images
from hybrid.engine.launch import Launcher, Settings
from hybrid.engine.live import Container
from hybrid.engine.machine import settle
from hybrid.engine.networks import Networks
from hybrid.engine.output import Log
from hybrid.engine.store import Store
from hybrid.engine.supervise import Supervisor
from hybrid.engine.volumes import Volumes
from hybrid.errors import (
    Conflict,
    Forbidden,
    HybridError,
    InvalidInput,
    NotFound,
    NotModified,
    Unsupported,
)
from hybrid.paths import Paths
from hybrid.policy import profile as profiles
from hybrid.policy import resources
from hybrid.wire.messages import Pause, Resize, Signal, Update

log = logging.getLogger(__name__)
STOP_TIMEOUT = 10
STOP_SIGNAL = "SIGTERM"
KILL = 9
KILL_PATIENCE = 20.0


class Containers:
    """Every container by id. ``supervisor`` is set by the engine, which makes the two for each other."""

    supervisor: Supervisor
    launcher: Launcher

    def __init__(self, paths: Paths, store: Store, events: Events, settings: Settings) -> None:
        self._paths = paths
        self._store = store
        self._events = events
        self._settings = settings
        self._containers: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._removing: set[str] = set()
        for record in store.all("container", Record):
            self._add(record)

    def wire(
        self,
        images: Images,
        volumes: Volumes,
        networks: Networks,
        launcher: Launcher,
        supervisor: Supervisor,
        forget_execs: Callable[[str], None],
    ) -> None:
        """Gives it the nouns that themselves need the containers."""
        self.forget_execs = forget_execs
        self._drafts = Drafts(
            self._paths, self._settings, images, volumes, networks, launcher, self.find
        )
        self._images = images
        self._volumes = volumes
        self._networks = networks
        self.launcher = launcher
        self.supervisor = supervisor

    def _add(self, record: Record) -> Container:
        container = Container(
            record, Log(self._paths.container_log(record.id), self._store, record.id)
        )
        self._containers[record.id] = container
        self._names[record.name] = record.id
        return container

    # --- looking ---

    def records(self) -> Iterable[Record]:
        return [container.record for container in self._containers.values()]

    def all(self) -> list[Container]:
        """Newest first."""
        return sorted(self._containers.values(), key=lambda one: -one.record.created_ns)

    def get(self, container_id: str) -> Container | None:
        return self._containers.get(container_id)

    def find(self, reference: str) -> Container:
        """By id, name or unambiguous beginning of an id; NotFound in Docker's words."""
        return names.find(
            reference,
            self._containers.values(),
            lambda container: (container.id, container.record.name),
            f"No such container: {reference}",
        )

    def kept_on(self, machine_id: str) -> list[str]:
        """The containers whose changes are kept on that machine."""
        return [record.id for record in self.records() if record.kept == machine_id]

    def save(self, record: Record) -> None:
        if record.id in self._containers:
            self._store.put("container", record.id, record)

    def publish(self, record: Record, action: str, attributes: dict[str, str]) -> None:
        labels = {"image": record.spec.image, "name": record.name, **record.spec.labels}
        self._events.publish("container", action, record.id, {**labels, **attributes})

    # --- making ---

    async def create(self, name: str, spec: Spec) -> tuple[Container, list[str]]:
        """A new container, not started, and the warnings about it. Nothing is left behind when this raises."""
        name = self._free_name(name)
        record, warnings = self._drafts.draft(name, spec)
        container = self._add(record)
        try:
            # The record first: at no moment is there a volume that nobody answers for.
            self.save(record)
            for mount in spec.mounts:
                if mount.kind == "volume":
                    self._volumes.create(mount.source, anonymous=mount.anonymous)
        except BaseException:
            del self._containers[record.id], self._names[record.name]
            for mount in spec.mounts:
                if mount.anonymous:
                    await self._remove_volume(mount.source, record)
            with contextlib.suppress(HybridError):
                self._store.delete("container", record.id)
            raise
        self.publish(record, "create", {})
        return container, warnings

    def _free_name(self, name: str) -> str:
        if not name:
            return names.made_up_name(lambda one: one in self._names)
        name = names.checked_name(name)
        if name in self._names:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{self._names[name]}".'
                " You have to remove (or rename) that container to be able to reuse that name."
            )
        return name

    # --- life ---

    async def start(self, reference: str) -> None:
        container = self.find(reference)
        record = container.record
        if record.status == "starting":  # by its restart policy, or for another caller
            async with container.lock:
                pass
        if record.status in ("running", "paused", "starting"):
            if record.status == "paused":
                raise Conflict("cannot start a paused container, try unpause instead")
            raise NotModified(f"container {record.id} is already running")
        self.supervisor.cancel_restart(container)
        record.stopped_by_user = False
        record.restart_count, container.restart_delay = 0, 0.0
        await self.supervisor.start(container)

    async def kill(self, reference: str, text: str = "SIGKILL") -> None:
        container = self.find(reference)
        number = signals.parse(text or "SIGKILL")
        run = container.need_run(f"cannot kill container: {reference}: ")
        stop = container.record.spec.stop_signal or STOP_SIGNAL
        if number in (KILL, signals.parse(stop)):
            container.record.stopped_by_user = True
        if container.record.status == "paused" and number == KILL:
            await self.unpause(reference)
        await run.machine.call(Signal(container.id, number))
        self.publish(container.record, "kill", {"signal": str(number)})

    async def stop(self, reference: str, timeout: int | None = None, signal_text: str = "") -> None:
        """The stop signal, and after ``timeout`` seconds (None: its own, -1: never) SIGKILL; returns when exited."""
        container = self.find(reference)
        record = container.record
        record.stopped_by_user = True
        if record.status == "restarting":
            self.supervisor.cancel_restart(container)
            return
        if record.status == "starting":
            async with container.lock:
                pass
        if not record.live:
            raise NotModified(f"container {record.id} is already stopped")
        if timeout is None:
            timeout = STOP_TIMEOUT if record.spec.stop_timeout is None else record.spec.stop_timeout
        if record.status == "paused":
            await self.unpause(reference)
        exit_code = container.next_exit()
        number = signals.parse(signal_text or record.spec.stop_signal or STOP_SIGNAL)
        await self._signal_and_wait(
            container, number, exit_code, None if timeout < 0 else float(timeout)
        )
        if not exit_code.done():
            await self._signal_and_wait(container, KILL, exit_code, KILL_PATIENCE)
        if not exit_code.done():
            raise Conflict(
                f"container {record.id} did not end after SIGKILL: see 'hybrid machine console'"
            )
        self.publish(record, "stop", {})

    async def _signal_and_wait(
        self,
        container: Container,
        number: int,
        exit_code: asyncio.Future[int],
        timeout: float | None,
    ) -> None:
        if container.run is not None:
            try:
                await container.run.machine.call(Signal(container.id, number))
                self.publish(container.record, "kill", {"signal": str(number)})
            except (NotFound, Conflict):
                log.info("%r ended before the signal", container)
        await asyncio.wait([exit_code], timeout=timeout)

    async def restart(
        self, reference: str, timeout: int | None = None, signal_text: str = ""
    ) -> None:
        container = self.find(reference)
        try:
            await self.stop(container.id, timeout, signal_text)
        except NotModified:
            log.debug("%r was not running", container)
        async with container.lock:
            pass
        # ``--rm`` is for an end, not for a restart; the removal was decided when the run ended.
        await self.start(container.id)
        self.publish(container.record, "restart", {})

    async def pause(self, reference: str) -> None:
        container = self.find(reference)
        if container.record.status == "paused":
            raise Conflict(f"Container {container.id} is already paused")
        run = container.need_run("")
        await run.machine.call(Pause(container.id, True))
        container.record.step("pause")
        self.save(container.record)
        self.publish(container.record, "pause", {})

    async def unpause(self, reference: str) -> None:
        container = self.find(reference)
        if container.record.status != "paused":
            raise Conflict(f"Container {container.id} is not paused")
        run = container.need_run("")
        await run.machine.call(Pause(container.id, False))
        container.record.step("unpause")
        self.save(container.record)
        self.publish(container.record, "unpause", {})

    async def resize(self, reference: str, rows: int, columns: int) -> None:
        container = self.find(reference)
        run = container.need_run("")
        await run.machine.call(Resize(container.id, rows, columns))
        self.publish(container.record, "resize", {"height": str(rows), "width": str(columns)})

    def wait(self, reference: str, condition: str) -> asyncio.Future[int]:
        """Resolves to the exit code when ``condition`` holds: not-running, next-exit or removed."""
        container = self.find(reference)
        if condition == "removed":
            return container.removal()
        if (
            condition == "not-running"
            and not container.record.live
            and container.record.status != "restarting"
        ):
            done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            done.set_result(container.record.exit_code)
            return done
        return container.next_exit()

    def attach(self, reference: str, *, replay: bool) -> Attachment:
        container = self.find(reference)
        if container.record.status == "paused":
            raise Conflict(f"container {reference} is paused, unpause the container before attach.")
        return Attachment(container, replay=replay)

    # --- changing ---

    def rename(self, reference: str, name: str) -> None:
        container = self.find(reference)
        record = container.record
        if not name:
            raise InvalidInput("Neither old nor new names may be empty")
        if name.removeprefix("/") == record.name:
            raise InvalidInput("Renaming a container with the same name as its current name")
        new = self._free_name(name)
        old = record.name
        del self._names[old]
        self._names[new] = record.id
        record.name = new
        self.save(record)
        self.publish(record, "rename", {"oldName": f"/{old}"})

    async def update(self, reference: str, limits: Limits, policy: Restart | None) -> list[str]:
        """New limits (only the fields that are set count) and restart policy; applied to the running container."""
        container = self.find(reference)
        record = container.record
        merged = Limits(
            **{**vars(record.spec.limits), **{k: v for k, v in vars(limits).items() if v}}
        )
        if policy is not None:
            restart.checked(policy.name, policy.maximum)
            if record.spec.auto_remove and policy.name != "no":
                raise Conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
        run = container.run
        cgroup = run.machine.facts.cgroup if run is not None and run.machine.facts else "v2"
        profile = profiles.load(self._settings.policy)
        request = resources.ResourceRequest(**vars(merged))
        built = resources.build(request, profile.limits, cgroup)
        if run is not None and limits != Limits():
            if run.machine.record.private and merged.memory > run.machine.record.memory:
                raise Unsupported(
                    "the container's guest has not that much memory: stop it first; its next guest will"
                )
            await run.machine.call(Update(record.id, built))
        record.spec.limits = merged
        if policy is not None:
            record.spec.restart = policy
        self.save(record)
        self.publish(record, "update", {})
        return []

    # --- removing ---

    async def remove(self, reference: str, *, force: bool = False, volumes: bool = False) -> None:
        container = self.find(reference)
        record = container.record
        if record.id in self._removing:
            raise Conflict(f"removal of container {record.id} is already in progress")
        self.supervisor.cancel_restart(container)
        if record.live and not force:
            state = "paused" if record.status == "paused" else "running"
            advice = (
                "unpause and then stop" if state == "paused" else "stop"
            ) + " the container before removing or force remove"
            raise Conflict(
                f'cannot remove container "/{record.name}": container is {state}: {advice}'
            )
        self._removing.add(record.id)
        try:
            if record.live:
                await self._end_for_removal(container)
            record.remove_volumes = volumes
            await self._remove_ended(container)
        finally:
            self._removing.discard(record.id)

    async def _end_for_removal(self, container: Container) -> None:
        container.record.stopped_by_user = True
        container.record.spec.auto_remove = False
        if container.record.status == "starting":
            async with container.lock:
                pass
        if container.record.live:
            ended = container.next_exit()
            await self._signal_and_wait(container, KILL, ended, KILL_PATIENCE)
            if not ended.done():
                raise Conflict(f"container {container.id} did not end after SIGKILL")

    async def remove_ended(self, container: Container) -> None:
        """What ``--rm`` asked for, or what a daemon before this one had begun."""
        if container.id in self._removing or container.id not in self._containers:
            return
        self._removing.add(container.id)
        try:
            if container.record.spec.auto_remove:
                container.record.remove_volumes = True
            await self._remove_ended(container)
        finally:
            self._removing.discard(container.id)

    async def _remove_ended(self, container: Container) -> None:
        """The record goes last, so that a removal that is interrupted is finished by the next daemon."""
        record = container.record
        async with container.lock:
            record.step("remove")
            self.save(record)
            container.log.forget()
            self.forget_execs(record.id)
            anonymous = [mount.source for mount in record.spec.mounts if mount.anonymous]
            for name in anonymous if record.remove_volumes else []:
                await self._remove_volume(name, record)
            await asyncio.to_thread(
                shutil.rmtree, self._paths.container(record.id), ignore_errors=True
            )
            self._store.delete("container", record.id)
            del self._containers[record.id]
            self._names.pop(record.name, None)
        self.publish(record, "destroy", {})
        await settle(self._images.released(record))
        await self.launcher.retain(record.kept)
        container.tell_removal()

    async def _remove_volume(self, name: str, user: Record) -> None:
        try:
            await self._volumes.remove(name, user=user.id)
        except NotFound:
            log.debug("volume %s is gone already", name)
        except HybridError as error:
            log.info("volume %s stays: %s", name, error)

    # --- networks ---

    async def connect(
        self, network_reference: str, reference: str, settings: dict[str, object]
    ) -> None:
        """Adds the container, which must not be running, to a network."""
        container, network = self.find(reference), self._networks.find(network_reference)
        record = container.record
        if network.name in record.endpoints:
            raise Forbidden(
                f"endpoint with name {record.name} already exists in network {network.name}"
            )
        if bundle.network_kind(record.spec)[0] != "own" or not network.bridged:
            raise Forbidden(
                "container sharing network namespace with another container or host cannot be connected to any other"
                " network"
            )
        if record.live:
            raise Unsupported(
                "connecting a running container to a further network is not supported yet: stop it first"
            )
        record.endpoints[network.name] = endpoint_of(network.id, settings)
        self.save(record)

    async def disconnect(self, network_reference: str, reference: str, *, force: bool) -> None:
        container, network = self.find(reference), self._networks.find(network_reference)
        record = container.record
        if network.name not in record.endpoints:
            if force:
                return
            raise Forbidden(f"container {record.id} is not connected to network {network.name}")
        if record.live:
            raise Unsupported(
                "disconnecting a running container is not supported yet: stop it first"
            )
        del record.endpoints[network.name]
        self.save(record)
