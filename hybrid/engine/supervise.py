"""Runs of containers: begun, ended, begun again by policy, adopted after a daemon's death.

    start ─▶ launch ─▶ running ──Exited event──▶ output drained ─▶ exited, waiters told ─▶ taken down ─▶ restart?
                          └────machine went away────────────────▶ exited 137, the reason in ``error`` ─▶ …

Each step that changes a run holds the container's lock; an exit that arrives while a start is under way waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from hybrid.engine import restart
from hybrid.engine.container import Health, Record
from hybrid.engine.events import Events
from hybrid.engine.execs import Execs
from hybrid.engine.health import HealthChecks
from hybrid.engine.launch import Launcher
from hybrid.engine.live import Container, Run
from hybrid.engine.machine import Machine, from_plain, settle
from hybrid.engine.machines import Machines
from hybrid.engine.networks import Networks
from hybrid.engine.output import pump
from hybrid.errors import HybridError, InvalidInput, NotFound, Unavailable
from hybrid.wire.messages import Delete, ProcessState

log = logging.getLogger(__name__)
DRAIN_TIMEOUT = 30.0
DISK_RETRY = 2.0
CLOSE_PATIENCE = 5.0
KILLED = 137
ERROR_MAX = 4096  # characters of what a machine says about an end


class Supervisor:
    """The only one that begins and ends runs. ``find`` gives a container by id, ``remove`` removes one for good."""

    def __init__(
        self,
        *,
        events: Events,
        machines: Machines,
        networks: Networks,
        launcher: Launcher,
        execs: Execs,
        health: HealthChecks,
        find: Callable[[str], Container | None],
        save: Callable[[Record], None],
        publish: Callable[[Record, str, dict[str, str]], None],
        remove: Callable[[Container], Coroutine[Any, Any, None]],
    ) -> None:
        self._events = events
        self._machines = machines
        self._networks = networks
        self._launcher = launcher
        self._execs = execs
        self._health = health
        self._find = find
        self._save = save
        self._publish = publish
        self._remove = remove
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[str] = set()  # containers whose end was told and is being seen to

    # --- beginning ---

    async def start(self, container: Container) -> None:
        """Starts it, from its image to its running process; on failure it is exited, with nothing left behind."""
        async with container.lock:
            await self._start_locked(container)

    async def _start_locked(self, container: Container) -> None:
        record = container.record
        record.step("start")
        record.requested_ns, record.ready_ns = time.time_ns(), 0
        record.error, record.exit_code, record.oom_killed = "", 0, False
        record.health = Health() if record.spec.health and record.spec.health.test else None
        try:
            self._save(record)
            with self._machines.templates.starting():
                machine = await self._launcher.launch(container, self._follow)
        except BaseException as error:
            self._failed(container, error)
            raise
        record.step("run")
        record.machine = machine.id
        if record.health is None:
            record.ready_ns = time.time_ns()
        self._note(record)
        container.tell_running()
        self._publish(record, "start", {})
        self._watch_health(container)

    def _follow(self, container: Container, machine: Machine) -> Run:
        """A run has been created in the machine: its output is read from now on."""
        run = Run(machine)
        run.pump = asyncio.create_task(
            self._pump(container, run), name=f"output {container.record.name}"
        )
        container.run = run
        return run

    def _watch_health(self, container: Container) -> None:
        run = container.run
        if container.record.health is not None and run is not None:
            run.health = asyncio.create_task(
                self._health.watch(container), name=f"health {container.record.name}"
            )

    def _failed(self, container: Container, error: BaseException) -> None:
        record = container.record
        message = (
            error.message
            if isinstance(error, HybridError)
            else (str(error) or type(error).__name__)
        )
        record.exit_code = _start_failure_code(message)
        record.error, record.finished_ns = message, time.time_ns()
        record.machine, record.pid, record.id_base, record.published = "", 0, 0, []
        record.step("fail")
        self._close_run(container)
        container.log.fail()
        self._note(record)
        container.tell_exit()
        if record.spec.auto_remove:
            self._spawn(self._remove(container))

    def _note(self, record: Record) -> None:
        """Saves what has happened already: a full disk must not stop what follows from it."""
        try:
            self._save(record)
        except HybridError as error:
            log.error("the state of container %s is not kept: %s", record.short_id, error)

    # --- output ---

    async def _pump(self, container: Container, run: Run) -> None:
        while True:
            try:
                await pump(await run.machine.client(), container.id, container.log)
                return
            except NotFound:
                return
            except Unavailable as error:
                log.info("output of %r: %s", container, error)
                await asyncio.sleep(0.1)
            except OSError as error:
                # The agent keeps the newest of it meanwhile, and says how much it had to drop.
                log.error("output of %r cannot be kept: %s", container, error)
                await asyncio.sleep(DISK_RETRY)
            except InvalidInput as error:
                log.error("output of %r is lost from here on: %s", container, error)
                return

    # --- ending ---

    def process_exited(self, machine: Machine, state: ProcessState) -> None:
        """A guest may lie: what it tells concerns its own containers, and telling it again costs nothing."""
        if state.exec:
            self._execs.process_exited(machine, state)
            return
        container = self._find(state.container)
        if container is None:
            if state.container and machine.may_report_stranger():
                self._spawn(self._delete_stranger(machine, state))
        elif container.id in machine.users and container.id not in self._ending:
            self._ending.add(container.id)
            task = self._spawn(self._exited(container, machine, state))
            task.add_done_callback(lambda _: self._ending.discard(container.id))

    async def _delete_stranger(self, machine: Machine, state: ProcessState) -> None:
        log.warning("%r runs %s, which nobody knows: removing it", machine, state.container[:12])
        await settle(machine.call(Delete(state.container)))

    def out_of_memory(self, machine: Machine, container_id: str) -> None:
        container = self._find(container_id)
        if container is None or container.id not in machine.users or container.record.oom_killed:
            return
        if container.record.live:
            container.record.oom_killed = True
            self._note(container.record)
            self._publish(container.record, "oom", {})

    async def link_restored(self, machine: Machine, processes: list[ProcessState]) -> None:
        """What the agent forgot (it was started anew) has ended; exits are told again by the agent itself."""
        known = {state.container for state in processes if not state.exec}
        for container in self._in(machine):
            if container.id not in known and not container.lock.locked():
                self._spawn(
                    self._lost(container, machine, "its agent was started anew and lost it")
                )
        await self._machines.retain(machine)

    def machine_lost(self, machine: Machine, reason: str) -> None:
        """All of the machine's containers have ended with it."""
        for container in self._in(machine):
            self._spawn(self._lost(container, machine, reason))

    def _in(self, machine: Machine) -> list[Container]:
        found = [self._find(container_id) for container_id in machine.users]
        return [one for one in found if one is not None and one.run and one.run.machine is machine]

    async def _exited(self, container: Container, machine: Machine, state: ProcessState) -> None:
        async with container.lock:
            run = container.run
            if run is None or run.machine is not machine or not container.record.live:
                return
            if run.pump is not None:
                await asyncio.wait([run.pump], timeout=DRAIN_TIMEOUT)
            record = container.record
            record.oom_killed = record.oom_killed or state.oom_killed
            record.exit_code, record.error = state.exit_code, state.error[:ERROR_MAX]
            # The machine's clock says when, within what this host's clock allows.
            record.finished_ns = min(max(state.finished_ns, record.started_ns), time.time_ns())
            await self._ended(container, run)

    async def _lost(self, container: Container, machine: Machine, reason: str) -> None:
        async with container.lock:
            run = container.run
            if run is None or run.machine is not machine or not container.record.live:
                return
            record = container.record
            record.exit_code, record.error = KILLED, f"machine {machine.record.name}: {reason}"
            record.finished_ns = time.time_ns()
            await self._ended(container, run)

    async def _ended(self, container: Container, run: Run) -> None:
        """The process is gone and its output is all there: tells everyone, then takes down what it had."""
        record = container.record
        record.step("exit")
        record.pid = 0
        if record.health is not None and record.health.status == "starting":
            record.health.status = "unhealthy"
        again = restart.again(record)
        self._execs.container_ended(container.id)
        self._close_run(container)
        container.log.end(over=not again)
        ran_for = (record.finished_ns - record.started_ns) / 1e9
        self._note(record)
        self._publish(
            record,
            "die",
            {"exitCode": str(record.exit_code), "execDuration": str(max(0, int(ran_for)))},
        )
        container.tell_exit()
        discard = record.spec.auto_remove and not again
        await self.take_down(container, run.machine, discard=discard)
        if again:
            container.restart_delay = restart.next_delay(container.restart_delay, ran_for)
            record.step("await restart")
            self._note(record)
            container.restart_task = self._spawn(self._restart_later(container))
        elif record.spec.auto_remove:
            self._spawn(self._remove(container))

    def _close_run(self, container: Container) -> None:
        run, container.run = container.run, None
        if run is None:
            return
        run.ended.set()
        for task in (run.pump, run.health):
            if task is not None:
                task.cancel()

    async def take_down(
        self, container: Container, machine: Machine, *, discard: bool = False
    ) -> None:
        """Frees all that the run had: in the agent, in networks, in the machine. Errors are logged, and it goes on.

        ``discard``: what the container wrote is no longer wanted. Then a guest of its own is just switched off.
        """
        record = container.record
        leaving = [self._networks.leave(record, one) for one in record.endpoints.values()]
        if discard and self._machines.is_only_for(machine, container.id):
            await settle(self._machines.release(machine, container.id), *leaving)
        else:
            if machine.record.running:
                await settle(machine.call(Delete(container.id)))
            await settle(*leaving)
            await settle(self._machines.release(machine, container.id))
        record.published = []
        record.machine, record.id_base = "", 0
        self._note(record)

    # --- again ---

    async def _restart_later(self, container: Container) -> None:
        record = container.record
        await asyncio.sleep(container.restart_delay)
        async with container.lock:
            if record.status != "restarting":
                return
            record.restart_count += 1
            try:
                await self._start_locked(container)
            except HybridError as error:
                log.warning("restart of %r failed: %s", container, error)
                if restart.again(record):
                    container.restart_delay = restart.next_delay(container.restart_delay, 0.0)
                    record.step("await restart")
                    container.restart_task = self._spawn(self._restart_later(container))

    def cancel_restart(self, container: Container) -> None:
        """A user wants it stopped while it waits for its next start."""
        if container.record.status != "restarting":
            return
        if container.restart_task is not None:
            container.restart_task.cancel()
            container.restart_task = None
        container.record.step("give up")
        container.log.end()
        self._note(container.record)

    # --- the daemon's start and end ---

    async def adopt(self, container: Container) -> None:
        """Takes over a container whose run began under another daemon, or buries it and says why."""
        record = container.record
        machine = self._machines.get(record.machine) if record.machine else None
        if machine is not None:
            machine.users[record.id] = from_plain(record.devices)
            if record.id_base:
                machine.bases[record.id] = record.id_base
        if not record.live:
            await self._take_down_rest(container, machine)
            return
        if machine is not None and machine.record.running and not machine.linked:
            # A box that cannot be reached now: it runs on there, as far as anybody knows.
            self._resume(container, machine, record.pid)
            return
        state, reason = await self._state_in(machine, record)
        # A start that was not seen to its end is undone: what it lacks (ports, names) is not known.
        begun = record.status != "starting"
        if machine is not None and state is not None and state.status != "created" and begun:
            self._resume(container, machine, state.pid)
            if state.status == "stopped":
                self._spawn(self._exited(container, machine, state))
            return
        record.exit_code, record.error, record.finished_ns = KILLED, reason, time.time_ns()
        record.step("exit")
        record.pid = 0
        container.log.end()
        self._note(record)
        await self._take_down_rest(container, machine)
        self._publish(record, "die", {"exitCode": str(record.exit_code)})

    async def _take_down_rest(self, container: Container, machine: Machine | None) -> None:
        """``take_down`` that may have been done in part, or whose machine is not known any more."""
        if machine is not None:
            await self.take_down(container, machine)
            return
        record = container.record
        await settle(*(self._networks.leave(record, one) for one in record.endpoints.values()))
        if record.machine or record.published:
            record.machine, record.id_base, record.published = "", 0, []
            self._note(record)

    async def _state_in(
        self, machine: Machine | None, record: Record
    ) -> tuple[ProcessState | None, str]:
        if machine is None or not machine.record.running:
            reason = machine.record.error if machine is not None else "the start was interrupted"
            return None, f"lost while the daemon was down: {reason}"
        try:
            for state in await machine.processes():
                if state.container == record.id and not state.exec:
                    return state, "the start was interrupted by the end of the daemon"
        except HybridError as error:
            return None, f"lost while the daemon was down: {error}"
        return None, "lost while the daemon was down: its machine's agent does not know it"

    def _resume(self, container: Container, machine: Machine, pid: int) -> None:
        record = container.record
        container.log.begin(resume=True)
        self._follow(container, machine)
        record.pid = pid
        if record.health is None and not record.ready_ns:
            record.ready_ns = record.started_ns
        self._note(record)
        container.tell_running()
        self._watch_health(container)

    async def remove_strangers(self, machine: Machine) -> None:
        """What its agent still has of containers that do not live (a start or a copy was interrupted)."""
        if not machine.record.running or not machine.linked:
            return
        known = {state.container for state in await machine.processes() if state.container}
        for container_id in known:
            container = self._find(container_id)
            if container is None or not container.record.live:
                await settle(machine.call(Delete(container_id)))

    def restart_what_should_run(self, containers: list[Container]) -> None:
        """After adoption: containers whose policy wants them running, and that are not."""
        for container in containers:
            record = container.record
            if record.status == "restarting":
                container.restart_task = self._spawn(self._restart_later(container))
            elif record.status == "exited" and restart.on_daemon_start(record):
                record.stopped_by_user = False
                record.step("await restart")
                container.restart_task = self._spawn(self._restart_later(container))
            elif record.status == "removing" or (
                record.status == "exited" and record.spec.auto_remove
            ):
                self._spawn(self._remove(container))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("unexpected: %s", error, exc_info=error)

    async def close(self, containers: list[Container]) -> None:
        """Stops following; the containers run on. What is being ended is given a moment to end.

        Readers of output go last: an exit that saw its reader stop would take the output for complete.
        """
        runs = [one.run for one in containers if one.run is not None]
        await _cancelled(
            one.restart_task for one in containers if one.record.status == "restarting"
        )
        await _cancelled(run.health for run in runs)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_PATIENCE)
        await _cancelled(list(self._tasks))
        await _cancelled(run.pump for run in runs)


async def _cancelled(tasks: Iterable[asyncio.Task[None] | None]) -> None:
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    await asyncio.gather(*there, return_exceptions=True)


def _start_failure_code(message: str) -> int:
    """As moby's daemon/errors.go: what a shell would say of the command that could not be run."""
    lowered = message.lower()
    if "executable file not found" in lowered or "no such file or directory" in lowered:
        return 127
    if (
        "permission denied" in lowered
        or "is a directory" in lowered
        or "not a directory" in lowered
    ):
        return 126
    return 128
