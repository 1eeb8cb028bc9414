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
from hybrid.wire.messages import Exited, Started, StartExec
from hybrid.wire.session import Stream

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class MachineProcesses:
    """Execs whose container is "". ``emit`` is called when one ends."""

    def __init__(self, reaper: Reaper, emit: Any) -> None:
        self._reaper, self._emit = reaper, emit
        self._processes: dict[str, Process] = {}

    def all(self) -> list[Process]:
        return list(self._processes.values())

    def get(self, exec_id: str) -> Process:
        if exec_id not in self._processes:
            raise NotFound(f"no such exec on the machine: {exec_id}")
        return self._processes[exec_id]

    def start(self, request: StartExec, stream: Stream | None) -> Started:
        """Runs one. Nothing is left of it if that fails."""
        if request.exec in self._processes or not request.exec:
            raise Conflict(f"exec {request.exec!r} exists already")
        process = Process.asked_for(request)
        if stream is not None:
            process.read_output(stream, 0)
        try:
            pid = _spawn(
                process, bundle.process(request.process, _user(request.process), process.terminal)
            )
        except BaseException:
            process.close()
            raise
        self._processes[request.exec] = process
        process.started(pid)
        self._reaper.watch(pid, lambda code: self._ended(process, code))
        return Started(pid, process.started_ns)

    async def delete(self, exec_id: str) -> None:
        """Kills and forgets one; nothing if there is none."""
        if exec_id not in self._processes:
            return
        process = self._processes[exec_id]
        if process.pid and self._reaper.kill(process.pid, signal.SIGKILL):
            await process.finished.wait()
        process.close()
        del self._processes[exec_id]

    def _ended(self, process: Process, code: int) -> None:
        process.ended(code)
        self._emit(Exited(process.state()))


def _user(process: dict[str, Any]) -> users.User:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        asked = process.get("user") or {}
        name = asked.get("username") or f"{int(asked.get('uid', 0))}:{int(asked.get('gid', 0))}"
        return users.resolve(root, str(name), asked.get("additionalGids") or [])
    finally:
        os.close(root)


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
