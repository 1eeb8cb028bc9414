"""Directories of this host for guests: one sandboxed virtiofsd a share.

Two kinds. A named volume is served by root of the host, for the whole id range is the volume's own,
from a directory that nobody else can enter. A bind mount is served with no more rights than the
caller has: the server is root of a user namespace in which 0 is the caller and 1… are the caller's
subordinate ids, if it has any; so it is the host's kernel that refuses what the caller may not do.

Servers outlive the process that started them, as guests do; ``open`` adopts them by their pid
files. A server ends by itself when its guest is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import resource
import signal
import socket as sockets
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hybrid.errors import Conflict, NotFound, Unavailable
from hybrid.machine import spawn
from hybrid.machine.access import let_through
from hybrid.machine.console import printable
from hybrid.machine.spawn import IdMaps, Shown
from hybrid.paths import SOCKET_PATH_MAX, Paths, checked

LostCallback = Callable[[str, str, str], None]

_WAITING = b"Waiting for vhost-user socket connection"
_START = 10.0  # seconds for a server to be ready
_POLL = 0.01
_STOP = 5.0  # seconds for a killed server to be gone
_MAX_FILES = 1_000_000
_MAX_LOG = 4 << 10
_LOG_BOUND, _LOG_PERIOD = 64 << 10, 2.0  # a guest can make its server write
_SUBORDINATE_IDS = 65535


@dataclass(frozen=True)
class ServerRecord:
    """A server's pid file. ``started`` (clock ticks since boot) tells its pid from a later one."""

    machine_id: str
    tag: str
    socket: str
    pid: int
    started: int


@dataclass
class _Server:
    record: ServerRecord
    pidfd: int
    gone: asyncio.Event
    stopping: bool = False
    ready: bool = False  # until then its log is read for why it does not start


def start_time(stat: str) -> int:
    """Field 22 of /proc/PID/stat."""
    return int(stat[stat.rfind(")") + 2 :].split()[19])


def arguments(virtiofsd: list[str], directory: Path, max_files: int, read_only: bool) -> list[str]:
    """The server's command line; its listening socket is descriptor 3."""
    return [
        *virtiofsd,
        f"--fd={spawn.INHERITED}",
        f"--shared-dir={directory}",
        "--sandbox=namespace",
        "--seccomp=kill",
        # Extended attributes carry file capabilities. Device nodes have no place in a share.
        *("--xattr", "--modcaps=-mknod"),
        f"--rlimit-nofile={max_files}",
        *(["--readonly"] if read_only else []),
    ]


def subordinate_range(text: str, user: str, uid: int) -> tuple[int, int] | None:
    """The user's first (start, count) in a subuid(5) or subgid(5) file."""
    for line in text.splitlines():
        name, _, numbers = line.strip().partition(":")
        start, _, count = numbers.partition(":")
        if name in (user, str(uid)) and start.isdigit() and count.isdigit() and int(count) > 0:
            return int(start), min(int(count), _SUBORDINATE_IDS)
    return None


def id_map(own: int, subordinate: tuple[int, int] | None) -> str:
    """The text for /proc/PID/uid_map or gid_map."""
    lines = [f"0 {own} 1"]
    if subordinate is not None:
        lines.append(f"1 {subordinate[0]} {subordinate[1]}")
    return "\n".join(lines) + "\n"


class ShareServer:
    """Starts, adopts and stops the servers. ``virtiofsd`` gives the program's argument prefix."""

    def __init__(self, paths: Paths, virtiofsd: Callable[[], list[str]]) -> None:
        self._paths = paths
        self._virtiofsd = virtiofsd
        self._servers: dict[tuple[str, str], _Server] = {}
        self._callbacks: list[LostCallback] = []
        self._bounding: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<ShareServer {sorted(tag for _, tag in self._servers)}>"

    def on_lost(self, callback: LostCallback) -> None:
        """Call ``callback(machine id, tag, reason)`` when a server ends that nobody stopped.

        A server also ends when its guest does; after an adoption that looks the same. In a guest
        that still runs all I/O on the share hangs from now on: QEMU cannot be given another server,
        and Linux has no abort for virtiofs. The guest has to be destroyed.
        """
        self._callbacks.append(callback)

    async def open(self) -> None:
        """Takes over the servers of an earlier process; removes what dead ones left."""
        volumes = self._paths.root / "volumes"
        volumes.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A volume may hold set-user-id programs that a guest wrote: no user of the host may reach
        # them.
        volumes.chmod(0o700)
        for file in sorted((self._paths.run / "m").glob("*/*.pid")):
            try:
                record = ServerRecord(**json.loads(file.read_text()))
                server = self._watch(record)
            except (OSError, ValueError, TypeError, KeyError):
                server = None
            if server is not None:
                server.ready = True
            else:
                _end_strays(_file(file.parent, file.stem, "log"))
                _remove_files(file.parent, file.stem)
        self._bounding = asyncio.create_task(self._bound_logs(), name="share logs")

    def serving(self) -> list[tuple[str, str]]:
        """Machine id and tag of every server that runs."""
        return sorted(self._servers)

    async def close(self) -> None:
        """Lets go; the servers serve on."""
        if self._bounding is not None:
            self._bounding.cancel()
        for server in self._servers.values():
            self._release(server)
        self._servers.clear()

    async def serve(
        self,
        machine_id: str,
        tag: str,
        directory: Path,
        socket: Path,
        *,
        owner: tuple[int, int] | None,
        read_only: bool,
    ) -> None:
        """Serves ``directory`` on ``socket``, which is the provider's to hand to the guest.

        A regular file in its place is served as a directory that holds nothing but that file, by
        its name; replacing the file (rename) is not seen by the guest, writing to it is. ``owner``
        is the (uid, gid) whose rights bound the share; None (a named volume) and root have all. A path
        with an owner is opened once and no symlink in it is followed: it was resolved when it was checked.
        Conflict when the machine has that tag already; Unavailable, with the server's own words,
        when it does not start.
        """
        if (machine_id, tag) in self._servers:
            raise Conflict(f"machine {machine_id[:12]} already has a share {tag}")
        if not directory.is_dir() and not directory.is_file():
            raise NotFound(f"cannot share {directory}: no such directory or regular file")
        if len(os.fsencode(socket)) > SOCKET_PATH_MAX:
            raise Unavailable(f"the path {socket} is too long for a socket: use a shorter --root")
        limit = min(_MAX_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        run = self._paths.machine_run(machine_id)
        run.mkdir(mode=0o711, parents=True, exist_ok=True)
        log, shown = _file(run, tag, "log"), None
        if owner is not None or directory.is_file():
            shown = Shown(directory, _file(run, tag, "d"))
            shown.directory.mkdir(mode=0o711, exist_ok=True)
        served = shown.directory if shown else directory
        command = arguments(self._virtiofsd(), served, limit, read_only)
        # Before there is anything to find: whoever dies from here on leaves a trace for the next.
        record = ServerRecord(machine_id, tag, str(socket), 0, 0)
        _file(run, tag, "pid").write_text(json.dumps(asdict(record)))
        try:
            with _listening(socket) as listener:
                pid = await _finished(
                    asyncio.to_thread(self._spawn, command, listener, log, owner, shown)
                )
        except BaseException:
            socket.unlink(missing_ok=True)
            _remove_files(run, tag)
            raise
        record = replace(record, pid=pid, started=start_time(_stat(pid)))
        _file(run, tag, "pid").write_text(json.dumps(asdict(record)))
        server = self._watch(record)
        assert server is not None, "a child is there until it is reaped"
        try:
            await self._ready(server, log, directory)
            server.ready = True
        except BaseException:
            await asyncio.shield(self._give_up(server))
            raise

    async def stop(self, machine_id: str, tag: str) -> None:
        """Ends the server at once and removes its files; idempotent."""
        server = self._servers.get((machine_id, tag))
        if server is not None:
            await self._give_up(server)
        _remove_files(self._paths.machine_run(machine_id), tag)

    async def _give_up(self, server: _Server) -> None:
        record, server.stopping = server.record, True
        if not server.gone.is_set():
            # It leads a session; with it go the children of its sandbox.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.gone.wait(), _STOP)
        self._clear(record)

    def _clear(self, record: ServerRecord) -> None:
        Path(record.socket).unlink(missing_ok=True)
        _remove_files(self._paths.machine_run(record.machine_id), record.tag)

    def _spawn(
        self,
        command: list[str],
        listener: int,
        log: Path,
        owner: tuple[int, int] | None,
        shown: Shown | None,
    ) -> int:
        if owner is None or owner[0] == 0:
            return spawn.detached(command, listener, log, shown=shown)
        # The server is executed as the caller: it must be able to reach the program.
        for part in command:
            if part.startswith(str(self._paths.root)):
                let_through(Path(part), (self._paths.root,))
        return spawn.detached(command, listener, log, maps=_maps(*owner), shown=shown)

    def _watch(self, record: ServerRecord) -> _Server | None:
        """Holds the process of ``record``; None if it is not there any more."""
        try:
            pidfd = os.pidfd_open(record.pid)
        except ProcessLookupError:
            return None
        # Compared after the descriptor is held: the pid cannot come to mean another process now.
        with contextlib.suppress(OSError):
            if start_time(_stat(record.pid)) == record.started:
                server = _Server(record, pidfd, asyncio.Event())
                self._servers[record.machine_id, record.tag] = server
                asyncio.get_running_loop().add_reader(pidfd, self._ended, server)
                return server
        os.close(pidfd)
        return None

    def _ended(self, server: _Server) -> None:
        record = server.record
        self._release(server)
        how = "is gone"
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(record.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status)
            # A server ends well when its guest has let go of it: nobody lost anything.
            server.stopping = server.stopping or code == 0
            how = f"got signal {-code}" if code < 0 else f"failed (exit code {code})"
        server.gone.set()
        self._servers.pop((record.machine_id, record.tag), None)
        if server.ready:
            self._clear(record)  # its guest may be nobody's, and then nobody stops it
        if not server.stopping:
            for callback in self._callbacks:
                callback(record.machine_id, record.tag, f"the share's file server {how}")

    async def _bound_logs(self) -> None:
        """Cuts logs that have grown too long, until cancelled."""
        while True:
            for machine_id, tag in self._servers:
                log = _file(self._paths.machine_run(machine_id), tag, "log")
                with contextlib.suppress(OSError):
                    if log.stat().st_size > _LOG_BOUND:
                        os.truncate(log, 0)
            await asyncio.sleep(_LOG_PERIOD)

    def _release(self, server: _Server) -> None:
        if server.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(server.pidfd)
            os.close(server.pidfd)
            server.pidfd = -1

    async def _ready(self, server: _Server, log: Path, directory: Path) -> None:
        """Returns when the server waits for its guest; Unavailable with its last line otherwise."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START):
                while not server.gone.is_set():
                    if _WAITING in log.read_bytes()[:_MAX_LOG]:
                        return
                    await asyncio.sleep(_POLL)
        said = printable(log.read_bytes()[-_MAX_LOG:], 1) or "no reason given"
        raise Unavailable(f"cannot share {directory}: {said}")


async def _finished(starting: Coroutine[None, None, int]) -> int:
    """The pid of a process that a thread starts. Whoever gives up meanwhile leaves none behind: the thread
    cannot be stopped, so what it started is ended.
    """
    task = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if task.exception() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(task.result(), signal.SIGKILL)
            os.waitpid(task.result(), 0)
        raise


def _file(directory: Path, tag: str, suffix: str) -> Path:
    return directory / f"{checked(tag)}.{suffix}"


def _remove_files(directory: Path, tag: str) -> None:
    for suffix in ("sock", "pid", "log"):
        _file(directory, tag, suffix).unlink(missing_ok=True)
    for empty in (_file(directory, tag, "d"), directory):
        with contextlib.suppress(OSError):
            empty.rmdir()


def _end_strays(log: Path) -> None:
    """Ends the processes that write to ``log``: a server whose pid its starter did not live to write down."""
    for output in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):
            if os.readlink(output) == str(log):
                os.kill(int(output.parts[2]), signal.SIGKILL)


def _maps(uid: int, gid: int) -> IdMaps:
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    subuids, subgids = (
        subordinate_range(file.read_text(), user, uid) if file.exists() else None
        for file in (Path("/etc/subuid"), Path("/etc/subgid"))
    )
    return IdMaps(id_map(uid, subuids), id_map(gid, subgids))


def _stat(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(errors="replace")


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[int]:
    """A Unix socket listening on ``path``, closed here afterwards: the server has its own copy."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1)
        yield listener.fileno()
