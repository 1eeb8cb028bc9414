"""The life of the containers on this machine.

    create ──▶ created ──start──▶ running ⇄ paused ──▶ stopped ──delete──▶ (forgotten)
                  └──────────────── delete ─────────────────┘

One lock a container keeps its requests in order. Everything that a container holds (mounts, descriptors,
interfaces) is on its exit stack, undone in reverse when it is deleted, or at once when its creation fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from hybrid.agent import (
    bundle,
    cgroups,
    console,
    descriptors,
    limits,
    mountns,
    network,
    oom,
    syscalls,
    users,
)
from hybrid.agent.container import Container
from hybrid.agent.process import Process
from hybrid.agent.reaper import Reaper
from hybrid.agent.runtime import Crun
from hybrid.agent.storage import Storage
from hybrid.agent.worker import Place, Worker
from hybrid.errors import Conflict, HybridError, Internal, InvalidInput, NotFound
from hybrid.wire.messages import CreateContainer, Exited, OutOfMemory, Started, StartExec
from hybrid.wire.session import Stream

_KILL_WAIT = 10.0
_JOINED = ("user", "net", "pid", "ipc")
_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class _Turn:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Containers:
    """All containers of this machine. ``emit`` is called with each event, ``group`` is the parent of their cgroups."""

    def __init__(
        self,
        storage: Storage,
        crun: Crun,
        reaper: Reaper,
        emit: Callable[[object], None],
        group: str,
    ) -> None:
        self._storage, self._crun, self._reaper, self._emit = storage, crun, reaper, emit
        self._group = group
        self._all: dict[str, Container] = {}
        self._turns: dict[str, _Turn] = {}

    def __repr__(self) -> str:
        return f"<Containers {list(self._all.values())!r}>"

    @asynccontextmanager
    async def changing(self, container: str) -> AsyncIterator[None]:
        """Requests for one container that change it run inside, one after the other in the order they came."""
        turn = self._turns.setdefault(container, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[container]

    def get(self, container: str) -> Container:
        if container not in self._all:
            raise NotFound(f"no such container: {container}")
        return self._all[container]

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._all.values()))

    # --- creation ----------------------------------------------------------------------------------------------

    async def create(self, request: CreateContainer) -> None:
        """See ``CreateContainer``. Leaves nothing behind when it fails."""
        known = self._all.get(request.container)
        if known is not None:
            if known.request == request:
                return
            raise Conflict(
                f"container {request.container} exists already, made from another request"
            )
        if not request.container or set(request.container) - _ID or request.container[0] in ".-":
            raise InvalidInput(f"not a container id: {request.container!r}")
        cgroups.refuse_unsupported(dict((request.config.get("linux") or {}).get("resources") or {}))
        async with AsyncExitStack() as stack:
            container = Container(request, self._storage.directory(stack), stack)
            stack.callback(container.init.close)
            await self._fill(container)
            await self._run_create(container)
            if request.interfaces:
                namespace = container.namespaces["net"]
                moved: network.Moved = set()
                stack.callback(network.detach, namespace, moved)
                await network.attach(namespace, request.interfaces, moved)
            container.stack = stack.pop_all()
        self._all[request.container] = container

    async def _fill(self, container: Container) -> None:
        """Mounts everything and writes the bundle."""
        request, stack, directory = container.request, container.stack, container.directory
        root, container.upper = await self._storage.mount_root(
            stack, directory, request.layers, request.writable, request.id_map
        )
        shares = [
            await self._storage.mount_share(stack, directory, number, share, request.id_map)
            for number, share in enumerate(request.shares)
        ]
        files = self._storage.write_files(stack, directory, request.files, request.id_map)
        image = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            user = _user(image, request.config.get("process") or {})
            filling = bundle.Filling(
                root=str(root),
                cgroup=self._cgroup(request.container),
                user=user,
                id_map=request.id_map,
                namespaces=self._namespaces(request),
                shares=[str(path) for path in shares],
                files=files,
                terminal=request.terminal,
                size=(request.rows, request.columns),
            )
            container.config = _filled(request, filling)
            linux = container.config["linux"]
            linux["resources"] = cgroups.place_throttles(
                dict(linux.get("resources") or {}), container.upper
            )
            limits.allow(container.config["process"])
            for number, share in enumerate(request.shares):
                if share.populate:
                    await self._populate(container, image, number, shares[number])
            _make_directories(
                image, container.config["process"]["cwd"], owner=container.machine_id(0)
            )
        finally:
            os.close(image)
        descriptors.write_private(directory / "config.json", json.dumps(container.config))

    def _cgroup(self, container: str) -> str:
        return f"/{self._group}/{container}"

    def _namespaces(self, request: CreateContainer) -> dict[str, str | None]:
        """Kinds of namespaces and what to join; a joined one is a descriptor that we hold, never a pid's."""
        wanted: dict[str, str | None] = {"user": "" if request.id_map else None}
        wanted["network"] = None if request.network == "host" else ""
        pairs = (
            ("network", request.network_container if request.network == "container" else ""),
            ("pid", request.pid_container),
            ("ipc", request.ipc_container),
        )
        for kind, name in pairs:
            if not name:
                continue
            other = self.get(name)
            wanted[kind] = other.joinable(kind)
            if request.id_map is not None and other.request.id_map == request.id_map:
                # rights over a namespace come from the user namespace that owns it
                wanted["user"] = other.joinable("user")
        return wanted

    async def _populate(self, container: Container, image: int, number: int, share: Path) -> None:
        """An empty volume first gets what the image has at its mount point."""
        wanted = {"type": bundle.SHARE, "source": str(number)}
        mounts = container.request.config.get("mounts") or []
        found = [m["destination"] for m in mounts if wanted.items() <= m.items()]
        if not found or not share.is_dir() or set(os.listdir(share)) - {"lost+found"}:
            return
        try:
            source = syscalls.open_in_root(image, found[0], os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        id_map = container.request.id_map
        namespace = self._storage.user_namespace(id_map) if id_map else -1
        target = os.open(share, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            await _copy(self._reaper, Place(source, namespace), Place(target, namespace))
        finally:
            descriptors.close(source, target)

    async def _run_create(self, container: Container) -> None:
        """``crun create``, and what is known only afterwards."""
        request, stack = container.request, container.stack
        user = container.config["process"]["user"]
        uid, gid = container.machine_id(user["uid"]), container.machine_id(user["gid"])
        stack.push_async_callback(self._crun.delete, request.container)
        with self._reaper.starting():
            pid = await console.started_with_stdio(
                container.init,
                (uid, gid),
                container.directory,
                lambda stdio, socket: self._crun.create(
                    request.container,
                    container.directory,
                    container.config["process"],
                    stdio,
                    socket,
                ),
            )
            container.loaded(pid)
            self._reaper.watch(pid, lambda code: self._init_ended(container, code))
        # in this order at the end: nothing may hold the mounts when they go
        stack.push_async_callback(self._end, container)
        for kind in (*_JOINED, "mnt"):
            container.namespaces[kind] = os.open(
                f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC
            )
            stack.callback(os.close, container.namespaces[kind])
        _finish_mounts(container)
        container.root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, container.root)
        container.group = cgroups.Group.of(pid, self._cgroup(request.container))
        stack.callback(oom.watch(container.group, lambda: self._oom(container)))

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self, container: Container) -> Started:
        init = container.init
        if not init.has("created"):
            raise Conflict(f"cannot start container {init.container}: it is {init.status}")
        if init.pid == 0:
            raise Internal(f"container {init.container} ended before it was started")
        init.started(init.pid)
        pid = init.pid
        try:
            await self._crun.start(init.container)
        except HybridError:
            if init.has("running"):
                init.status = "created"
            raise
        return Started(pid, init.started_ns)

    async def start_exec(
        self, container: Container, request: StartExec, stream: Stream | None
    ) -> Started:
        """Runs one more process, whose output goes to ``stream``. Nothing is left of it if that fails."""
        if request.exec in container.execs or not request.exec:
            raise Conflict(f"exec {request.exec!r} exists already")
        if container.init.status != "running":
            raise Conflict(f"cannot exec: container {request.container} is {container.init.status}")
        given = request.process
        process = container.execs[request.exec] = Process.asked_for(request)
        if stream is not None:
            process.read_output(stream, 0)
        try:
            user = _user(container.root, given, container.config["process"]["user"])
            spec = bundle.process(self._with_defaults(container, given), user, process.terminal)
            limits.allow(spec)
            _make_directories(container.root, spec["cwd"], owner=container.machine_id(0))
            pid = await self.run_in(container, process, spec)
        except BaseException:
            process.close()
            del container.execs[request.exec]
            raise
        return Started(pid, process.started_ns)

    async def run_in(
        self,
        container: Container,
        process: Process,
        spec: dict[str, Any],
        extra: tuple[int, ...] = (),
    ) -> int:
        """``crun exec`` of a filled-in process object; ``extra`` descriptors are passed on as 3, 4, …"""
        await container.begun()
        owner = spec["user"]
        uid, gid = container.machine_id(owner["uid"]), container.machine_id(owner["gid"])
        with self._reaper.starting():
            pid = await console.started_with_stdio(
                process,
                (uid, gid),
                container.directory,
                lambda stdio, socket: self._crun.execute(
                    process.container, spec, [*stdio, *extra] if stdio else None, socket
                ),
            )
            process.started(pid)
            self._reaper.watch(pid, lambda code: self._exec_ended(process, code))
        return pid

    @staticmethod
    def _with_defaults(container: Container, given: dict[str, Any]) -> dict[str, Any]:
        """What an exec leaves out it takes from the container: rights first of all."""
        own = container.config["process"]
        names = (
            "capabilities",
            "noNewPrivileges",
            "apparmorProfile",
            "selinuxLabel",
            "rlimits",
            "oomScoreAdj",
            "env",
            "cwd",
        )
        return {name: own[name] for name in names if name in own} | given

    def _init_ended(self, container: Container, code: int) -> None:
        init = container.init
        if init.status == "created":  # killed before its start
            init.error = init.error or "ended before it was started"
        self._oom(container)
        init.oom_killed = container.oom_kills > 0 and code == 128 + signal.SIGKILL
        init.ended(code)
        if container.request.pid_container or "pid" not in _kinds(container.config):
            for pid in container.group.processes():  # init's death did not take them along
                _kill_quietly(pid)
        if self._all.get(init.container) is container:  # not one whose creation failed
            self._emit(Exited(init.state()))

    def _exec_ended(self, process: Process, code: int) -> None:
        process.ended(code)
        self._emit(Exited(process.state()))

    def _oom(self, container: Container) -> None:
        if self._count_oom(container):
            self._emit(OutOfMemory(container.request.container))

    @staticmethod
    def _count_oom(container: Container) -> bool:
        before, container.oom_kills = (
            container.oom_kills,
            container.group.oom_kills() or container.oom_kills,
        )
        return container.oom_kills > before

    async def pause(self, container: Container, paused: bool) -> None:
        init = container.init
        if not init.has("running" if paused else "paused"):
            raise Conflict(f"container {init.container} is {init.status}")
        await self._crun.pause(init.container, paused)
        if not init.has("stopped"):
            init.status = "paused" if paused else "running"

    async def update(self, container: Container, resources: dict[str, Any]) -> None:
        cgroups.refuse_unsupported(resources)
        if container.init.status == "stopped":
            raise Conflict(f"container {container.init.container} is not running")
        resources = cgroups.place_throttles(resources, container.upper)
        await self._crun.update(container.init.container, resources, container.directory)

    # --- the end -----------------------------------------------------------------------------------------------

    async def delete(self, name: str) -> None:
        """Kills, unmounts and forgets a container; nothing if there is none."""
        container = self._all.get(name)
        if container is None:
            return
        await self._end(container)
        await container.stack.aclose()
        del self._all[name]

    async def delete_exec(self, container: Container, exec_id: str) -> None:
        """Kills and forgets an exec; nothing if there is none."""
        process = container.execs.get(exec_id)
        if process is None:
            return
        await self.stop(process)
        process.close()
        del container.execs[exec_id]

    async def _end(self, container: Container) -> None:
        """Makes sure that no process of the container is left."""
        if container.init.status == "paused":
            await self._crun.pause(container.init.container, False)
        await self.stop(container.init)
        for exec_id in list(container.execs):
            await self.delete_exec(container, exec_id)

    async def stop(self, process: Process) -> None:
        """Kills a process and waits for its end."""
        if process.pid and self._reaper.kill(process.pid, signal.SIGKILL):
            try:
                await asyncio.wait_for(process.finished.wait(), _KILL_WAIT)
            except TimeoutError:
                raise Internal(f"process {process.pid} does not end (SIGKILL is pending)") from None


def _filled(request: CreateContainer, filling: bundle.Filling) -> dict[str, Any]:
    try:
        return bundle.fill(request.config, filling)
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise InvalidInput(f"config is not an OCI runtime config: {error}") from error


def _user(root: int, process: dict[str, Any], default: dict[str, Any] | None = None) -> users.User:
    """Resolves ``process.user``: {"username": "name[:group]"} or numbers; ``default`` if nothing is said."""
    given = process.get("user")
    if given is None and default is not None:
        given = {
            "uid": default["uid"],
            "gid": default["gid"],
            "additionalGids": default["additionalGids"],
        }
    given = given or {}
    additional = given.get("additionalGids") or []
    if not isinstance(additional, list):
        raise InvalidInput("process.user.additionalGids: a list is needed")
    if "username" in given:
        return users.resolve(root, str(given["username"]), additional)
    return users.resolve(root, f"{int(given.get('uid', 0))}:{int(given.get('gid', 0))}", additional)


def _make_directories(root: int, path: str, *, owner: int) -> None:
    """``mkdir -p`` inside ``root``: a missing working directory is made, as Docker does."""
    with suppress(OSError):
        os.close(syscalls.open_in_root(root, path, os.O_PATH | os.O_DIRECTORY))
        return
    with syscalls.file_system_ids(owner, owner):
        try:
            _make_missing(root, path)
        except NotADirectoryError as error:
            text = f"{error.filename} is not a directory"
            raise InvalidInput(f"working directory {path}: {text}") from None
        except OSError as error:
            raise InvalidInput(f"working directory {path}: {error.strerror}") from error


def _make_missing(root: int, path: str) -> None:
    parent = ""
    for part in path.strip("/").split("/"):
        directory = f"{parent}/{part}"
        try:
            os.close(syscalls.open_in_root(root, directory, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            above = syscalls.open_in_root(root, parent or "/", os.O_PATH | os.O_DIRECTORY)
            try:
                os.mkdir(part, 0o755, dir_fd=above)
            finally:
                os.close(above)
        parent = directory


async def _copy(reaper: Reaper, source: Place, target: Place) -> None:
    from hybrid.agent import archives  # what it needs takes long to load

    reader = Worker(reaper, source, archives.get("/."), writes=True)
    try:
        writer = Worker(reaper, target, archives.put("/", top=True), writes=False)
        try:
            await reader.report()
            while data := await reader.read():
                await writer.write(data)
            writer.end_data()
            await writer.report()
            await reader.report()
        finally:
            await writer.close()
    finally:
        await reader.close()


def _finish_mounts(container: Container) -> None:
    """With cgroup v1 crun makes the controllers' mounts read-only, but not the directory that holds them."""
    for mount in container.config["mounts"]:
        if mount["type"] == "cgroup" and "ro" in mount.get("options", []) and not cgroups.is_v2():
            mountns.make_read_only(container.namespaces["mnt"], mount["destination"])


def _kinds(config: dict[str, Any]) -> set[str]:
    return {namespace["type"] for namespace in config["linux"]["namespaces"]}


def _kill_quietly(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
