"""Processes on the machine itself, beside its containers: an administrator's shell."""

from __future__ import annotations

import fcntl
import os
import signal
import termios
from typing import Any, NoReturn

from hybrid.agent import bundle, descriptors, users
from hybrid.agent.process import Process
from hybrid.agent.reaper import Reaper
from hybrid.errors import Conflict, InvalidInput, NotFound
from hybrid.wire.messages import CreateExec, Exited, Started

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class MachineProcesses:
    """Execs whose container is "". ``emit`` is called when one ends."""

    def __init__(self, reaper: Reaper, emit: Any) -> None:
        self._reaper, self._emit = reaper, emit
        self._processes: dict[str, tuple[Process, dict[str, Any]]] = {}

    def all(self) -> list[Process]:
        return [process for process, _ in self._processes.values()]

    def get(self, exec_id: str) -> Process:
        if exec_id not in self._processes:
            raise NotFound(f"no such exec on the machine: {exec_id}")
        return self._processes[exec_id][0]

    def create(self, request: CreateExec) -> None:
        """Readies one; idempotent for an equal request."""
        known = self._processes.get(request.exec)
        if known is not None and known[1] == request.process:
            return
        if known is not None or not request.exec:
            raise Conflict(f"exec {request.exec!r} exists already")
        terminal = bool(request.process.get("terminal"))
        process = Process("", request.exec, terminal=terminal, stdin=request.stdin)
        size = request.process.get("consoleSize") or {}
        if terminal and size:
            process.resize(int(size.get("height", 0)), int(size.get("width", 0)))
        self._processes[request.exec] = (process, request.process)

    def start(self, exec_id: str) -> Started:
        process, given = self._processes.get(exec_id) or (self.get(exec_id), {})
        if process.status != "created":
            raise Conflict(f"exec {exec_id} has run already")
        root = os.open("/", os.O_PATH | os.O_DIRECTORY)
        try:
            asked = given.get("user") or {}
            name = str(
                asked.get("username") or f"{int(asked.get('uid', 0))}:{int(asked.get('gid', 0))}"
            )
            user = users.resolve(root, name, asked.get("additionalGids") or [])
        finally:
            os.close(root)
        spec = bundle.process(given, user, process.terminal)
        pid = _spawn(process, spec)
        process.started(pid)
        self._reaper.watch(pid, lambda code: self._ended(process, code))
        return Started(pid, process.started_ns)

    async def delete(self, exec_id: str) -> None:
        """Kills and forgets one; nothing if there is none."""
        if exec_id not in self._processes:
            return
        process = self.get(exec_id)
        if process.pid and self._reaper.kill(process.pid, signal.SIGKILL):
            await process.finished.wait()
        process.close()
        del self._processes[exec_id]

    def _ended(self, process: Process, code: int) -> None:
        process.ended(code)
        self._emit(Exited(process.state()))


def _spawn(process: Process, spec: dict[str, Any]) -> int:
    user = spec["user"]
    master = -1
    if process.terminal:
        master, slave = os.openpty()
        os.fchown(slave, user["uid"], user["gid"])
        stdio = (slave, slave, slave)
    else:
        stdio = process.make_pipes(user["uid"], user["gid"])
    failure, report = descriptors.pipe()
    pid = os.fork()
    if pid == 0:
        _become(spec, stdio, report)
    descriptors.close(report, *set(stdio))
    with open(failure, "rb") as pipe:
        problem = pipe.read(4096).decode("utf-8", "replace")  # empty: it executes the program now
    if problem:
        os.waitpid(pid, 0)
        descriptors.close(master)
        process.failed(problem)
        raise InvalidInput(problem)
    if process.terminal:
        process.take_terminal(master)
    return pid


def _become(spec: dict[str, Any], stdio: tuple[int, int, int], report: int) -> NoReturn:
    """In the child: the process that ``spec`` describes."""
    program = spec["args"][0]
    try:
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            if (
                number not in (signal.SIGKILL, signal.SIGSTOP)
                and signal.getsignal(number) is not None
            ):
                signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for number, descriptor in enumerate(stdio):
            os.dup2(descriptor, number)
        if spec["terminal"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(spec["oomScoreAdj"]))
        user = spec["user"]
        os.setgroups(user["additionalGids"])
        os.setresgid(user["gid"], user["gid"], user["gid"])
        os.setresuid(user["uid"], user["uid"], user["uid"])
        os.chdir(spec["cwd"])
        environment = dict(entry.partition("=")[::2] for entry in spec["env"])
        environment.setdefault("PATH", _PATH)
        os.execvpe(program, spec["args"], environment)
    except FileNotFoundError:
        text = (
            "no such file or directory" if "/" in program else "executable file not found in $PATH"
        )
        os.write(report, f'exec: "{program}": {text}'.encode())
    except PermissionError:
        os.write(report, f'exec: "{program}": permission denied'.encode())
    except BaseException as error:
        os.write(report, f'exec: "{program}": {error}'.encode())
    finally:
        os._exit(127)
