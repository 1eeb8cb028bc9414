"""What the agent does for each message: the only place that joins messages to the modules that act.

Imported after the first hello, for loading all this takes longer than starting to listen. What the start of a
container does not need is imported where it is used, for the same reason.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from hybrid.agent import cgroups, limits, syscalls, system
from hybrid.agent.container import Container
from hybrid.agent.containers import Containers
from hybrid.agent.identity import Identity
from hybrid.agent.machine import MachineProcesses
from hybrid.agent.options import Options
from hybrid.agent.process import Process
from hybrid.agent.reaper import Reaper
from hybrid.agent.runtime import Crun
from hybrid.agent.storage import Storage
from hybrid.agent.worker import Worker
from hybrid.errors import Conflict, Internal, InvalidInput, NotFound
from hybrid.wire import messages as m
from hybrid.wire.server import Connection
from hybrid.wire.session import Stream
from hybrid.wire.value import Request

_LARGEST_BLOB = 64 << 30
Finish = Callable[[], None]


class Service:
    """Answers requests. ``emit`` takes events; ``finish`` ends the agent after a shutdown."""

    def __init__(
        self,
        options: Options,
        identity: Identity,
        emit: Callable[[object], None],
        finish: Finish,
    ) -> None:
        self._options, self._finish = options, finish
        self._layout = cgroups.layout()
        if self._layout == "hybrid":
            cgroups.hide_unified()
        syscalls.become_subreaper()
        limits.raise_open_files()
        self._reaper = Reaper()
        self._reaper.install()
        self._crun = Crun(options.state, self._reaper)
        self._storage = Storage(options.state)
        self._containers = Containers(self._storage, self._crun, self._reaper, emit, options.group)
        self._machine = MachineProcesses(self._reaper, emit)
        self._identity = identity
        self._runtime = system.recorded_runtime()
        self._tasks: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Clears what an earlier agent left in the state directory."""
        for name in self._crun.containers():
            await self._crun.delete(name)
        self._storage.clear()

    def ended(self) -> list[m.ProcessState]:
        """States of all processes that have ended and were not deleted."""
        return [process.state() for process in self._processes() if process.status == "stopped"]

    async def handle(self, request: Request[Any], connection: Connection) -> object:
        """The answer to one request; raises hybrid's errors."""
        method: Callable[[Service, Any, Connection], Awaitable[object]] | None = _METHODS.get(
            type(request)
        )
        if method is None:
            raise InvalidInput(f"unknown request {type(request).__name__}")
        name = getattr(request, "container", "")
        if name and type(request) in _CHANGES:
            async with self._containers.changing(name):
                return await method(self, request, connection)
        return await method(self, request, connection)

    def _processes(self) -> list[Process]:
        found = self._machine.all()
        for container in self._containers:
            found += [container.init, *container.execs.values()]
        return found

    def _process(self, container: str, exec_id: str) -> Process:
        if not container:
            return self._machine.get(exec_id)
        return self._containers.get(container).process(exec_id)

    def _background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        """What a task raises has been told already: its stream was reset."""
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    # --- the machine -------------------------------------------------------------------------------------------

    async def _configure(self, request: m.Configure, connection: Connection) -> m.MachineFacts:
        self._identity.take(request)
        self._crun.emulated = request.emulated
        if request.rescan:
            self._background(asyncio.to_thread(system.rescan))  # nobody waits for what it finds
        return await self._facts(m.Facts(), connection)

    async def _prepare(self, request: m.Prepare, connection: Connection) -> m.Empty:
        # What the first container would otherwise have to load, in each clone again.
        from hybrid.agent import archives, evidence, probe, stats  # noqa: F401

        self._identity.prepare(request)
        await self._crun.version()  # its program's pages
        gc.collect()
        gc.freeze()  # later collections leave alone, and so unchanged and shared, what is there now
        return m.Empty()

    async def _facts(self, request: m.Facts, connection: Connection) -> m.MachineFacts:
        if not self._runtime:
            self._runtime = await self._crun.version()
        name_files = {} if self._options.guest else system.name_files()
        return system.facts(
            self._layout,
            self._runtime,
            self._options.features,
            name_files,
            self._identity.boot,
        )

    async def _set_time(self, request: m.SetTime, connection: Connection) -> m.Empty:
        if not self._options.guest:
            raise Conflict("the clock of a machine that is no guest is its own")
        system.set_time(request.realtime_ns)
        return m.Empty()

    async def _shutdown(self, request: m.Shutdown, connection: Connection) -> m.Empty:
        await self.stop_all(request.timeout)
        os.sync()
        self._background(self._leave(connection))
        return m.Empty()

    async def _leave(self, connection: Connection) -> None:
        await asyncio.sleep(0)  # the answer is queued by now
        await connection.flush()
        self._finish()

    async def stop_all(self, timeout: float) -> None:
        """Ends all containers: SIGTERM, after ``timeout`` SIGKILL; then nothing of them is left."""
        running = [c for c in self._containers if c.init.status in ("running", "paused")]
        for container in running:
            self._reaper.kill(container.init.pid, signal.SIGTERM)
        if running and timeout > 0:
            await asyncio.wait(
                [asyncio.ensure_future(container.init.finished.wait()) for container in running],
                timeout=timeout,
            )
        for container in self._containers:
            name = container.request.container
            # the host may be deleting it as well, for it has heard of its end
            async with self._containers.changing(name):
                await self._containers.delete(name)
        for process in self._machine.all():
            await self._machine.delete(process.exec)

    # --- containers --------------------------------------------------------------------------------------------

    async def _create(self, request: m.CreateContainer, connection: Connection) -> m.Empty:
        await self._containers.create(request)
        return m.Empty()

    async def _start(self, request: m.StartContainer, connection: Connection) -> m.Started:
        return await self._containers.start(self._containers.get(request.container))

    async def _start_exec(self, request: m.StartExec, connection: Connection) -> m.Started:
        stream = connection.stream(request.stream) if request.stream else None
        if not request.container:
            return self._machine.start(request, stream)
        container = self._containers.get(request.container)
        return await self._containers.start_exec(container, request, stream)

    async def _signal(self, request: m.Signal, connection: Connection) -> m.Empty:
        if not 0 < request.signal < signal.NSIG:
            raise InvalidInput(f"no signal has the number {request.signal}")
        process = self._process(request.container, request.exec)
        if not process.pid or not self._reaper.kill(process.pid, request.signal):
            raise Conflict(f"cannot signal: {request.exec or request.container} is not running")
        return m.Empty()

    async def _resize(self, request: m.Resize, connection: Connection) -> m.Empty:
        self._process(request.container, request.exec).resize(request.rows, request.columns)
        return m.Empty()

    async def _pause(self, request: m.Pause, connection: Connection) -> m.Empty:
        await self._containers.pause(self._containers.get(request.container), request.paused)
        return m.Empty()

    async def _update(self, request: m.Update, connection: Connection) -> m.Empty:
        await self._containers.update(self._containers.get(request.container), request.resources)
        return m.Empty()

    async def _delete(self, request: m.Delete, connection: Connection) -> m.Empty:
        if not request.container:
            await self._machine.delete(request.exec)
        elif not request.exec:
            await self._containers.delete(request.container)
        else:
            await self._delete_exec(request.container, request.exec)
        return m.Empty()

    async def _delete_exec(self, container: str, exec_id: str) -> None:
        try:
            found = self._containers.get(container)
        except NotFound:
            return
        await self._containers.delete_exec(found, exec_id)

    async def _list(self, request: m.List, connection: Connection) -> m.ProcessList:
        return m.ProcessList([process.state() for process in self._processes()])

    async def _state(self, request: m.State, connection: Connection) -> m.ProcessState:
        return self._process(request.container, request.exec).state()

    # --- streams -----------------------------------------------------------------------------------------------

    async def _read_output(self, request: m.ReadOutput, connection: Connection) -> m.Empty:
        process = self._process(request.container, request.exec)
        process.read_output(connection.stream(request.stream), request.offset)
        return m.Empty()

    async def _acknowledge(self, request: m.AckOutput, connection: Connection) -> m.Empty:
        self._process(request.container, request.exec).acknowledge(request.offset)
        return m.Empty()

    async def _write_input(self, request: m.WriteInput, connection: Connection) -> m.Empty:
        process = self._process(request.container, request.exec)
        process.write_input(connection.stream(request.stream), request.keep_open)
        return m.Empty()

    async def _put_blob(self, request: m.PutBlob, connection: Connection) -> m.Empty:
        import hashlib

        target = self._storage.blob(request.digest)
        if not 0 <= request.size <= _LARGEST_BLOB:
            raise InvalidInput(
                f"a blob of {request.size} bytes is too large (limit {_LARGEST_BLOB})"
            )
        partial = target.with_suffix(f".{request.stream}")
        try:
            async with connection.stream(request.stream) as stream:
                digest, size = hashlib.sha256(), 0
                with partial.open("wb") as file:
                    while size <= request.size and (data := await stream.read()):
                        size += len(data)
                        digest.update(data)
                        file.write(data)
            if size != request.size or f"sha256:{digest.hexdigest()}" != request.digest:
                raise InvalidInput(f"blob {request.digest}: the bytes received do not match it")
            partial.rename(target)
        except OSError as error:
            raise Internal(
                f"blob {request.digest[:19]} ({request.size} bytes): {error.strerror}"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        return m.Empty()

    async def _has_blob(self, request: m.HasBlob, connection: Connection) -> m.Truth:
        return m.Truth(self._storage.blob(request.digest).exists())

    async def _retain(self, request: m.Retain, connection: Connection) -> m.Empty:
        await asyncio.to_thread(self._storage.retain, set(request.containers))
        return m.Empty()

    async def _stat_path(self, request: m.StatPath, connection: Connection) -> m.PathStat:
        from hybrid.agent import archives

        place = self._containers.get(request.container).place
        worker = Worker(
            self._reaper, place, lambda data, report: archives.stat_path(request.path), writes=True
        )
        try:
            return m.PathStat(**await worker.report())
        finally:
            await worker.close()

    async def _get_archive(self, request: m.GetArchive, connection: Connection) -> m.PathStat:
        from hybrid.agent import archives

        place = self._containers.get(request.container).place
        stream = connection.stream(request.stream)
        worker = Worker(self._reaper, place, archives.get(request.path), writes=True)
        try:
            found = m.PathStat(**await worker.report())
        except BaseException:
            await worker.close()
            raise
        self._background(_send_archive(worker, stream))
        return found

    async def _put_archive(self, request: m.PutArchive, connection: Connection) -> m.Empty:
        from hybrid.agent import archives

        container = self._containers.get(request.container)
        owner = _owner(container) if request.copy_ids else None
        work = archives.put(request.path, keep_kind=request.no_overwrite_dir_non_dir, owner=owner)
        async with connection.stream(request.stream) as stream:
            worker = Worker(self._reaper, container.place, work, writes=False)
            try:
                await _feed_archive(worker, stream)
                await worker.report()
            finally:
                await worker.close()
        return m.Empty()

    # --- observation -------------------------------------------------------------------------------------------

    async def _stats(self, request: m.Stats, connection: Connection) -> m.ContainerStats:
        from hybrid.agent import stats

        container = self._containers.get(request.container)
        return stats.read(container.group, container.init.pid)

    async def _top(self, request: m.Top, connection: Connection) -> m.ProcessTable:
        from hybrid.agent import top

        container = _alive(self._containers.get(request.container))
        return top.table(container.group.processes() or [container.init.pid], request.arguments)

    async def _evidence(self, request: m.Evidence, connection: Connection) -> m.ContainerEvidence:
        from hybrid.agent import evidence

        container = _alive(self._containers.get(request.container))
        await container.begun()
        pid = _alive(container).init.pid
        return evidence.read(container.group, pid, container.root, request.paths)

    async def _probe(self, request: m.Probe, connection: Connection) -> m.ProbeResults:
        from hybrid.agent import probe

        container = self._containers.get(request.container)
        program = self._storage.blob(request.program) if request.program else self._options.probe
        return await probe.run(self._containers, container, program, request.addresses)


def _alive(container: Container) -> Container:
    if not container.init.pid:
        raise Conflict(f"container {container.request.container} is not running")
    return container


def _owner(container: Container) -> tuple[int, int]:
    user = container.config["process"]["user"]
    return user["uid"], user["gid"]


async def _send_archive(worker: Worker, stream: Stream) -> None:
    try:
        async with stream:
            while data := await worker.read():
                await stream.write(data)
            await (
                worker.report()
            )  # a failure resets the stream: a cut archive is not taken for a whole one
    finally:
        await worker.close()


async def _feed_archive(worker: Worker, stream: Stream) -> None:
    try:
        while data := await stream.read():
            await worker.write(data)
    except BrokenPipeError:  # it gave up, and reports why
        pass
    worker.end_data()


_METHODS: dict[type, Any] = {
    m.Configure: Service._configure,
    m.Prepare: Service._prepare,
    m.Facts: Service._facts,
    m.SetTime: Service._set_time,
    m.Shutdown: Service._shutdown,
    m.CreateContainer: Service._create,
    m.StartContainer: Service._start,
    m.StartExec: Service._start_exec,
    m.Signal: Service._signal,
    m.Resize: Service._resize,
    m.Pause: Service._pause,
    m.Update: Service._update,
    m.Delete: Service._delete,
    m.List: Service._list,
    m.State: Service._state,
    m.ReadOutput: Service._read_output,
    m.AckOutput: Service._acknowledge,
    m.WriteInput: Service._write_input,
    m.PutBlob: Service._put_blob,
    m.HasBlob: Service._has_blob,
    m.Retain: Service._retain,
    m.StatPath: Service._stat_path,
    m.GetArchive: Service._get_archive,
    m.PutArchive: Service._put_archive,
    m.Stats: Service._stats,
    m.Top: Service._top,
    m.Evidence: Service._evidence,
    m.Probe: Service._probe,
}
_CHANGES = frozenset(
    {m.CreateContainer, m.StartContainer, m.Pause, m.Update, m.StartExec, m.Delete}
)
