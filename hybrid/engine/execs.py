"""More processes in a running container, or on a machine itself.

    created ──start──▶ running ──Exited event──▶ exited (kept for a while, then forgotten)

An exec's output is not stored: it flows from the agent's bounded journal to the one client that started it, as fast as
that reads. An exec started detached, or whose client went away, runs on with its output dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hybrid.engine import names
from hybrid.engine.attach import Input
from hybrid.engine.container import Record
from hybrid.engine.live import Container
from hybrid.engine.machine import Machine, settle
from hybrid.engine.store import Store
from hybrid.errors import Conflict, HybridError, InvalidInput, NotFound
from hybrid.link.client import LinkStream
from hybrid.policy.process import DEFAULT_PATH, ExecRequest, exec_process
from hybrid.wire import journal
from hybrid.wire.messages import (
    AckOutput,
    Delete,
    ProcessState,
    Resize,
    Signal,
    Started,
    StartExec,
)

log = logging.getLogger(__name__)
KEPT_FOR = 600.0
CHUNK = 64 << 10
KILLED = 137


@dataclass
class ExecSpec:
    command: list[str]
    env: list[str] = field(default_factory=list)
    user: str = ""
    working_dir: str = ""
    tty: bool = False
    privileged: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    console: list[int] = field(default_factory=lambda: [0, 0])


@dataclass
class ExecRecord:
    id: str
    container: str  # id; "": on the machine itself
    machine: str
    spec: ExecSpec
    process: dict[str, Any]
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    pid: int = 0
    finished_ns: int = 0


class Exec:
    """An exec while the daemon runs."""

    def __init__(self, record: ExecRecord, machine: Machine) -> None:
        self.record = record
        self.machine = machine
        self.ended = asyncio.Event()
        self._stream: LinkStream | None = None

    def __repr__(self) -> str:
        state = "running" if self.record.running else f"exit code {self.record.exit_code}"
        return f"<Exec {self.record.id[:12]} {state}>"

    async def output(self) -> AsyncIterator[list[journal.Record]]:
        """Everything that it writes, in batches, until its end. Once, after ``begin``."""
        record, client, stream = self.record, await self.machine.client(), self._stream
        assert stream is not None
        parser, place, acknowledged = journal.Parser(), 0, 0
        try:
            while data := await stream.read(CHUNK):
                place += len(data)
                if records := list(parser.feed(data)):
                    yield records
                if place - acknowledged >= 4 * CHUNK:
                    acknowledged = place - parser.pending
                    await client.call(AckOutput(record.container, acknowledged, record.id))
        finally:
            await stream.reset()

    async def begin(self, *, attached: bool) -> Started:
        """Makes it run in the machine."""
        record, client = self.record, await self.machine.client()
        self._stream = client.open() if attached else None
        try:
            return await client.call(
                StartExec(
                    record.container,
                    record.id,
                    record.process,
                    record.spec.attach_stdin,
                    self._stream.id if self._stream else 0,
                )
            )
        except BaseException:
            if self._stream is not None:
                await self._stream.reset()
            raise

    def input(self) -> Input:
        async def ready() -> Machine:
            return self.machine

        return Input(ready, self.record.container, self.record.id, keep_open=False)


class Execs:
    """All execs. ``publish`` announces what happens to a container's."""

    def __init__(
        self,
        store: Store,
        find: Callable[[str], Container],
        publish: Callable[[Record, str, dict[str, str]], None],
    ) -> None:
        self._store = store
        self._find = find
        self._publish = publish
        self._execs: dict[str, Exec] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def find(self, exec_id: str) -> Exec:
        if exec_id not in self._execs:
            raise NotFound(f"No such exec instance: {exec_id}")
        return self._execs[exec_id]

    def running(self, container_id: str) -> list[str]:
        """The ids of the container's execs that run now."""
        found = (one.record for one in self._execs.values())
        return [
            record.id for record in found if record.container == container_id and record.running
        ]

    def create(self, container: Container, spec: ExecSpec) -> Exec:
        """Readies a process in the container; Conflict unless it runs."""
        if not spec.command or not spec.command[0]:
            raise InvalidInput("No exec command specified")
        run = container.need_run("")
        if container.record.status == "paused":
            raise Conflict(f"container {container.id} is paused, unpause the container before exec")
        request = ExecRequest(
            args=spec.command,
            env=spec.env,
            user=spec.user,
            cwd=spec.working_dir,
            terminal=spec.tty,
            privileged=spec.privileged,
            rows=spec.console[0],
            columns=spec.console[1],
        )
        process = exec_process(container.record.process, request)
        made = self._add(container.id, run.machine, spec, process)
        self._publish(
            container.record, f"exec_create: {' '.join(spec.command)}", {"execID": made.record.id}
        )
        return made

    def create_on_machine(self, machine: Machine, spec: ExecSpec) -> Exec:
        """A process on the machine itself, as its root, unconfined by any container."""
        terminal = ["TERM=xterm"] if spec.tty else []
        process = {
            "args": spec.command,
            "env": [DEFAULT_PATH, *terminal, *spec.env],
            "cwd": spec.working_dir or "/",
            "terminal": spec.tty,
            "user": {"uid": 0, "gid": 0},
        }
        return self._add("", machine, spec, process)

    def _add(
        self, container: str, machine: Machine, spec: ExecSpec, process: dict[str, Any]
    ) -> Exec:
        self._forget_old()
        record = ExecRecord(names.new_id(), container, machine.id, spec, process)
        made = Exec(record, machine)
        self._execs[record.id] = made
        self._save(made)
        return made

    async def start(
        self, one: Exec, *, size: tuple[int, int] | None = None, attached: bool = True
    ) -> None:
        """Runs it; its output waits for ``Exec.output``. The error's text says why a command cannot be run."""
        record = one.record
        if record.started:
            raise Conflict(f"Error: Exec command {record.id} has already run")
        if record.container:
            self._find(record.container).need_run("")
        record.started = record.running = True
        if size and all(size) and record.spec.tty:
            record.process["consoleSize"] = {"height": size[0], "width": size[1]}
        try:
            started = await one.begin(attached=attached)
        except BaseException as error:
            text = error.message if isinstance(error, HybridError) else str(error)
            self._over(one, 127 if "no such file" in text or "not found" in text else 126)
            self.detach(one)  # the agent may have made it
            raise
        record.pid = started.pid
        self._save(one)
        self._announce(one, f"exec_start: {' '.join(record.spec.command)}", {})

    async def resize(self, one: Exec, rows: int, columns: int) -> None:
        if not one.record.running:
            raise Conflict(f"exec {one.record.id} is not running")
        await one.machine.call(Resize(one.record.container, rows, columns, one.record.id))

    async def signal(self, one: Exec, number: int) -> None:
        await one.machine.call(Signal(one.record.container, number, one.record.id))

    @asynccontextmanager
    async def attached(self, one: Exec) -> AsyncIterator[Exec]:
        """While a client is there; afterwards the exec's output is drained away, and it is forgotten by the agent."""
        try:
            yield one
        finally:
            self._background(self._finish(one))

    def detach(self, one: Exec) -> None:
        """Nobody will read it."""
        self._background(self._finish(one))

    async def _finish(self, one: Exec) -> None:
        await one.ended.wait()
        await settle(one.machine.call(Delete(one.record.container, one.record.id)))

    async def run(self, container: Container, spec: ExecSpec, limit: int) -> tuple[int, bytes]:
        """Runs to the end: exit code and the first ``limit`` bytes of output. Cancelling kills it."""
        one = self.create(container, spec)
        await self.start(one)
        output = bytearray()
        async with self.attached(one):
            try:
                async for records in one.output():
                    for record in records:
                        output += record.data[: max(0, limit - len(output))]
                await one.ended.wait()
            except asyncio.CancelledError:
                await asyncio.shield(settle(self.signal(one, 9)))
                raise
        return one.record.exit_code if one.record.exit_code is not None else KILLED, bytes(output)

    # --- endings ---

    def process_exited(self, machine: Machine, state: ProcessState) -> None:
        one = self._execs.get(state.exec)
        if one is None:
            if machine.may_report_stranger():
                self._background(settle(machine.call(Delete(state.container, state.exec))))
        elif one.machine is machine and one.record.running:
            self._over(one, state.exit_code)
            self._announce(one, "exec_die", {"exitCode": str(state.exit_code)})

    def container_ended(self, container_id: str) -> None:
        """Its execs died with it."""
        for one in self._execs.values():
            if one.record.container == container_id and one.record.running:
                self._over(one, KILLED)

    def _over(self, one: Exec, code: int) -> None:
        one.record.running, one.record.exit_code, one.record.pid = False, code, 0
        one.record.finished_ns = time.time_ns()
        one.ended.set()
        self._save(one)

    def _announce(self, one: Exec, action: str, attributes: dict[str, str]) -> None:
        if one.record.container:
            self._publish(
                self._find(one.record.container).record,
                action,
                {"execID": one.record.id, **attributes},
            )

    def _save(self, one: Exec) -> None:
        self._store.put("exec", one.record.id, one.record)

    def _forget_old(self) -> None:
        before = time.time_ns() - int(KEPT_FOR * 1e9)
        for one in list(self._execs.values()):
            if one.record.finished_ns and one.record.finished_ns < before:
                del self._execs[one.record.id]
                self._store.delete("exec", one.record.id)

    def forget_container(self, container_id: str) -> None:
        for one in list(self._execs.values()):
            if one.record.container == container_id:
                del self._execs[one.record.id]
                self._store.delete("exec", one.record.id)

    # --- the daemon's start and end ---

    def adopt(self, machine_of: Callable[[str], Machine | None]) -> None:
        """Takes over the execs of running machines; their exits are told again by the agents."""
        for record in self._store.all("exec", ExecRecord):
            machine = machine_of(record.machine)
            if machine is None or not machine.record.running:
                self._store.delete("exec", record.id)
                continue
            one = Exec(record, machine)
            self._execs[record.id] = one
            if record.running:
                self.detach(one)
            else:
                one.ended.set()

    def _background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
