"""crun, the OCI runtime: its calls, and its failures in Docker's words."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from hybrid.agent import descriptors, limits, syscalls
from hybrid.agent.reaper import Reaper
from hybrid.errors import HybridError, Internal, InvalidInput, Unavailable, Unsupported

PROGRAM = "crun"
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_LARGEST_LOG = 1 << 16
_TIMEOUT = 120.0

# crun's words (1.8 to 1.21) for a program that cannot be started, and Docker's
_START_FAILURES = (
    (re.compile(r"executable file `.*` not found in \$PATH"), "executable file not found in $PATH"),
    (
        re.compile(
            r"open executable: Permission denied|exec.*: Permission denied|exists but it is not executable"
        ),
        "permission denied",
    ),
    (
        re.compile(r"open executable: Operation not permitted|is not a regular file"),
        "is a directory: permission denied",
    ),
    (
        re.compile(r"open executable: No such file|exec.*: No such file"),
        "no such file or directory",
    ),
    (re.compile(r"exec.*: Exec format error"), "exec format error"),
)


class Crun:
    """Calls of one crun state directory. Each raises what went wrong; nothing is retried.

    ``emulated``: an emulator keeps its translation of a program by address, so a crun that lies elsewhere at
    each start would be translated anew each time. It is given up for crun alone: the configuration of every
    container sets its personality, in ``create`` and in ``exec``, before the container's program is executed.
    """

    def __init__(self, state: Path, reaper: Reaper) -> None:
        self.emulated = False
        self._root = state / "crun"
        self._files = str(state / "calls")  # what is passed to and from crun, by the call's number
        os.makedirs(self._files, exist_ok=True)
        self._reaper = reaper
        self._number = itertools.count(1)

    async def create(
        self,
        container: str,
        bundle: Path,
        process: dict[str, Any],
        stdio: Sequence[int] | None,
        console: str = "",
    ) -> int:
        """Makes the container up to just before its program, that of the config's ``process``; returns its init's pid.
        ``console`` takes the terminal."""
        arguments = ["--bundle", str(bundle), *(["--console-socket", console] if console else [])]
        return await self._start("create", [*arguments, container], stdio, process)

    async def start(self, container: str) -> None:
        """Lets the container's program run."""
        await self._call(["start", container])

    async def execute(
        self,
        container: str,
        process: dict[str, Any],
        stdio: Sequence[int] | None,
        console: str = "",
    ) -> int:
        """Starts one more process in the container; returns its pid. Descriptors above 2 in ``stdio`` are passed on."""
        file = f"{self._files}/{next(self._number)}.json"
        arguments = ["--detach", "--process", file]
        if console:
            arguments += ["--console-socket", console]
        if stdio is not None and len(stdio) > 3:
            arguments += ["--preserve-fds", str(len(stdio) - 3)]
        descriptors.write_private(file, json.dumps(process))
        try:
            return await self._start("exec", [*arguments, container], stdio, process)
        finally:
            os.unlink(file)

    async def delete(self, container: str) -> None:
        """Kills what is left and removes crun's state and control groups; nothing if there is none."""
        if (self._root / container).exists():
            await self._call(["delete", "--force", container])

    async def pause(self, container: str, paused: bool) -> None:
        await self._call(["pause" if paused else "resume", container])

    async def update(self, container: str, resources: dict[str, Any], directory: Path) -> None:
        file = directory / "resources.json"
        file.write_text(json.dumps(resources))
        await self._call(["update", "--resources", str(file), container])

    def containers(self) -> list[str]:
        """What crun has a state of."""
        names = os.listdir(self._root) if self._root.is_dir() else []
        return [name for name in names if not name.startswith(".")]  # .cache: compiled filters

    async def _start(
        self,
        verb: str,
        arguments: list[str],
        stdio: Sequence[int] | None,
        process: dict[str, Any],
    ) -> int:
        file = f"{self._files}/{next(self._number)}.pid"
        try:
            await self._call([verb, "--pid-file", file, *arguments], stdio, process)
            with open(file, "rb", buffering=0) as written:
                return int(written.read())
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file)

    async def _call(
        self,
        arguments: list[str],
        stdio: Sequence[int] | None = None,
        process: dict[str, Any] | None = None,
    ) -> None:
        log = f"{self._files}/{next(self._number)}.log"
        argv = [PROGRAM, "--root", str(self._root), "--cgroup-manager", "cgroupfs"]
        argv += ["--log", f"file:{log}", *arguments]
        try:
            code = await self._reaper.run(
                argv, _ENVIRONMENT, stdio, _TIMEOUT, inheriting=self._inherited(process)
            )
            if code:
                program = process["args"][0] if process else ""
                raise failure(arguments[0], _read_log(log) or f"exit code {code}", program)
        except FileNotFoundError:
            raise Unsupported("crun is not installed on this machine") from None
        except TimeoutError:
            raise Unavailable(f"crun {arguments[0]} did not end in {_TIMEOUT:.0f} s") from None
        finally:
            with suppress(FileNotFoundError):
                os.unlink(log)

    @contextmanager
    def _inherited(self, process: dict[str, Any] | None) -> Iterator[None]:
        with ExitStack() as stack:
            if self.emulated:
                stack.enter_context(syscalls.fixed_addresses())
            if process is not None:
                stack.enter_context(limits.out_of_memory_score(process["oomScoreAdj"]))
            yield

    async def version(self) -> str:
        """``crun 1.21``; "" if there is none."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        read, write = descriptors.pipe()
        try:
            await self._reaper.run([PROGRAM, "--version"], _ENVIRONMENT, (null, write, null))
        except FileNotFoundError:
            return ""
        finally:
            descriptors.close(null, write)
            with open(read, "rb") as output:
                line = output.read(4096).decode("utf-8", "replace").partition("\n")[0]
        return line.replace("crun version", "crun")


def failure(verb: str, log: str, program: str) -> HybridError:
    """The error that crun's log tells of."""
    for pattern, text in _START_FAILURES:
        if program and pattern.search(log):
            if "/" in program and "$PATH" in text:
                text = "no such file or directory"
            return InvalidInput(f'exec: "{program}": {text}')
    lines = [_without_time(line) for line in log.splitlines() if line.strip()]
    return Internal(f"crun {verb}: {'; '.join(lines[-3:])}")


def _without_time(line: str) -> str:
    return re.sub(r"^\d{4}-\d\d-\d\dT[\d:.]+Z?:?\s*", "", line).strip()


def _read_log(log: str) -> str:
    try:
        with open(log, "rb") as file:
            return file.read(_LARGEST_LOG).decode("utf-8", "replace")
    except OSError:
        return ""
