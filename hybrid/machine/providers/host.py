"""This host itself as a machine: the agent on its own kernel, over a Unix socket.

There is exactly one, ``host``. Its agent is a process of its own, in a session and a control group of
its own, that outlives the daemon and is adopted by the next one; ``connect`` starts it when none
runs. It runs from a copy of the zip application that is named by its content, so a new version on
disk never pulls modules out from under a running agent; ``open`` puts the new version in place when
nothing runs in the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from hybrid.errors import Conflict, HybridError, NotFound, Unavailable, Unsupported
from hybrid.link import unix
from hybrid.link.client import AgentClient
from hybrid.link.transport import Transport
from hybrid.machine import orphans, standing
from hybrid.machine.provider import (
    Disk,
    Feature,
    MachineRequest,
    MachineStatus,
    Nic,
    ShareDevice,
    StoppedCallback,
)
from hybrid.paths import Paths
from hybrid.wire.messages import List, Shutdown

log = logging.getLogger(__name__)
MACHINE_ID = "host"
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 20.0
_LOG_TAIL = 2000


class HostProvider:
    """See the module. ``agent`` is the zip application to start, ``probe`` the program that tries
    a container's walls (it need not be there yet).
    """

    name = "host"
    features = frozenset({Feature.DIRECTORIES, Feature.NICS})

    def __init__(self, paths: Paths, agent: Path, probe: Path | None = None) -> None:
        self._agent = agent
        self._probe = probe
        self._directory = paths.host_agent
        self._group = f"hybrid-{paths.instance}"
        self._socket = self._directory / "agent.sock"
        self._pid_file = self._directory / "pid"
        self._log = self._directory / "log"
        self._callbacks: list[StoppedCallback] = []
        self._watched: _Watch | None = None
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<HostProvider pid={self._running()}>"

    async def open(self) -> None:
        """Adopts a running agent; replaces one of another version in which nothing runs."""
        async with self._lock:
            pid = self._running()
            if pid is None:
                return
            record = self._record()
            changed = record is not None and record[2] != str(self._copy())
            if changed and await self._idle():
                log.info("replacing the host's agent (pid %d): its program changed", pid)
                await self._stop(pid)
            else:
                self._watch(pid)

    async def close(self) -> None:
        """Stops watching; the agent and its containers run on."""
        self._unwatch()

    async def create(self, request: MachineRequest) -> None:
        """Starts the agent, if none runs."""
        self._check(request.id)
        if request.disks or request.nics or request.shares:
            raise Unsupported("the host takes no devices: give the agent paths and veth names")
        async with self._lock:
            await self._ensure()

    async def connect(self, machine_id: str) -> Transport:
        """A connection to the agent, which is started if none runs."""
        self._check(machine_id)
        async with self._lock:
            await self._ensure()
            return await unix.connect(self._socket)

    async def attach_disk(self, machine_id: str, disk: Disk) -> None:
        raise Unsupported("the host takes no disks: the agent reads files")

    async def detach_disk(self, machine_id: str, serial: str) -> None:
        raise Unsupported("the host takes no disks: the agent reads files")

    async def attach_nic(self, machine_id: str, nic: Nic) -> None:
        """Nothing to do: a veth end is on this kernel already, the agent finds it by its name."""
        self._check(machine_id)

    async def detach_nic(self, machine_id: str, mac: str) -> None:
        self._check(machine_id)

    async def attach_share(self, machine_id: str, share: ShareDevice) -> None:
        raise Unsupported("the host takes no shares: the agent mounts directories")

    async def detach_share(self, machine_id: str, tag: str) -> None:
        raise Unsupported("the host takes no shares: the agent mounts directories")

    async def destroy(self, machine_id: str) -> None:
        """Stops the agent and, with it, all of its containers."""
        if machine_id != MACHINE_ID:
            return
        async with self._lock:
            pid = self._running()
            if pid is None and self._abandoned():
                # The agent was killed, its containers were not: a new one knows how to end them.
                with contextlib.suppress(HybridError):
                    await self._ensure()
                    pid = self._running()
            if pid is not None:
                await self._stop(pid)
            shutil.rmtree(self._directory, ignore_errors=True)
            for group in (self._own_group, self._group):
                standing.remove(group)

    async def list(self) -> list[MachineStatus]:
        """The one, whether its agent runs yet or not: there is nothing else that could be down."""
        pid = self._running()
        return [MachineStatus(MACHINE_ID, True, details={"pid": str(pid)} if pid else {})]

    async def console(self, machine_id: str) -> bytes:
        raise Unsupported("the host has no console of its own")

    async def emulated(self, machine_id: str) -> bool:
        return False

    async def evidence(self, machine_id: str) -> dict[str, object]:
        """The agent's process; there is no boundary of the provider's to tell about."""
        self._check(machine_id)
        pid = self._running()
        if pid is None:
            raise NotFound("the host's agent does not run")
        return {"pid": pid, "uid": Path(f"/proc/{pid}").stat().st_uid}

    def on_stopped(self, callback: StoppedCallback) -> None:
        self._callbacks.append(callback)

    # --- the agent's process ----------------------------------------------------------------------

    def _check(self, machine_id: str) -> None:
        if machine_id != MACHINE_ID:
            raise NotFound(f"no such machine on the host provider: {machine_id}")

    def _record(self) -> tuple[int, str, str] | None:
        """Pid, start time and program of the agent that was started last."""
        try:
            pid, started, program = self._pid_file.read_text().rstrip("\n").split(" ", 2)
            return int(pid), started, program
        except (OSError, ValueError):
            return None

    def _running(self) -> int | None:
        """The agent's pid. A number that now belongs to another process does not count."""
        record = self._record()
        if record is not None and _start_time(record[0]) == record[1] != "-":
            return record[0]
        return None

    def _abandoned(self) -> bool:
        """Whether crun keeps a state of containers there."""
        state = self._directory / "state" / "crun"
        return state.is_dir() and any(state.iterdir())

    @property
    def _own_group(self) -> str:
        return f"{self._group}-agent"

    def _copy(self) -> Path:
        digest = hashlib.sha256(self._agent.read_bytes()).hexdigest()[:16]
        return self._directory / f"agent-{digest}.pyz"

    async def _ensure(self) -> None:
        pid = self._running()
        if pid is not None:
            self._watch(pid)
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        # Containers, whose root is nobody here, have to get through to their root file systems.
        self._directory.chmod(0o711)
        for stale in self._directory.glob("agent-*.pyz"):
            stale.unlink()
        self._socket.unlink(missing_ok=True)
        program = self._copy()
        shutil.copyfile(self._agent, program)
        pid = self._spawn(program)
        standing.move(pid, self._own_group)
        self._pid_file.write_text(f"{pid} {_start_time(pid)} {program}\n")
        self._watch(pid)
        await self._wait_ready(pid)

    def _spawn(self, program: Path) -> int:
        """Starts it in a session of its own, with nothing of the daemon's open."""
        arguments = [sys.executable, "-I", str(program), "--unix", str(self._socket)]
        arguments += ["--state", str(self._directory / "state")]
        arguments += ["--group", self._group]
        arguments += ["--probe", str(self._probe)] if self._probe else []
        output = (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        return os.posix_spawn(
            sys.executable,
            arguments,
            {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR") if key in os.environ},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self._log), *output),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE],
        )

    async def _wait_ready(self, pid: int) -> None:
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT
        while True:
            with contextlib.suppress(Unavailable):
                transport = await unix.connect(self._socket)
                await transport.close()
                return
            if self._running() != pid:
                raise Unavailable(
                    f"the host's agent did not start: {self._log_tail() or 'no reason given'}"
                )
            if asyncio.get_running_loop().time() > deadline:
                await self._stop(pid)
                what = f"the host's agent did not start within {_START_TIMEOUT:g} s"
                raise Unavailable(f"{what}: {self._log_tail() or 'no reason given'}")
            await asyncio.sleep(0.02)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = (
                self._log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip().splitlines()
            )
            return lines[-1] if lines else ""
        return ""

    async def _idle(self) -> bool:
        """Whether the running agent has no process that is alive; an agent that doesn't say has."""
        try:
            client = await AgentClient.connect(await unix.connect(self._socket), timeout=5)
        except HybridError as error:
            log.warning("the host's agent runs but does not answer: %s", error)
            return False
        try:
            return not (await client.call(List())).processes
        except HybridError:
            return False
        finally:
            await client.close()

    async def _stop(self, pid: int) -> None:
        """Containers first, by the agent itself; then the agent."""
        self._unwatch()
        with contextlib.suppress(HybridError):
            client = await AgentClient.connect(await unix.connect(self._socket), timeout=5)
            reaping = asyncio.create_task(orphans.reap_contained_for_ever())
            try:
                await client.call(Shutdown(), timeout=_STOP_TIMEOUT)
            finally:
                reaping.cancel()
                await client.close()
                orphans.reap_contained()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._running() != pid:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if await asyncio.to_thread(_await_exit, pid, 5000):
                break
        else:
            raise Conflict(f"the host's agent (pid {pid}) does not end")
        _reap(pid)
        self._pid_file.unlink(missing_ok=True)

    def _watch(self, pid: int) -> None:
        if self._watched is None or self._watched.pid != pid:
            self._unwatch()
            with contextlib.suppress(ProcessLookupError):
                self._watched = _Watch(pid, self._stopped)

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._watched.close()
            self._watched = None

    def _stopped(self, pid: int, code: int | None) -> None:
        self._unwatch()
        how = f"got signal {-code}" if code is not None and code < 0 else "ended"
        said = self._log_tail()
        reason = f"the host's agent (pid {pid}) {how}" + (f": {said}" if said else "")
        for callback in self._callbacks:
            callback(MACHINE_ID, reason)


class _Watch:
    """Tells, in the event loop, that a process ended (and how, if it is our child)."""

    def __init__(self, pid: int, ended: Callable[[int, int | None], None]) -> None:
        self.pid = pid
        self._ended = ended
        self._descriptor = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._fire)

    def _fire(self) -> None:
        self._ended(self.pid, _reap(self.pid))

    def close(self) -> None:
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat: with it a pid is unique until the next boot; "-" of the dead."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "-" if fields[0] in "ZX" else fields[19]
    return "-"


def _reap(pid: int) -> int | None:
    """Only this one, and only if it is ours; then its exit code (a signal's number negative)."""
    with contextlib.suppress(ChildProcessError):
        reaped, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if reaped else None
    return None


def _await_exit(pid: int, milliseconds: int) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(milliseconds))
    finally:
        os.close(descriptor)
