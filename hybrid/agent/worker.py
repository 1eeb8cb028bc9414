"""Work on a container's files, done by a child process that is confined to them.

The child changes its root to the container's and joins its user namespace, so that it has the rights of the
container's own root and no path, symlink or device of the container can lead it anywhere else. It never imports
after that: modules (and what the C library would load, such as name services) would come from the container.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hybrid.agent import descriptors, syscalls
from hybrid.agent.reaper import Reaper
from hybrid.errors import HybridError, Internal, from_kind

# include/uapi/linux/capability.h: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, MKNOD, SETFCAP
_CAPABILITIES = sum(1 << n for n in (0, 1, 2, 3, 4, 27, 31))
_LARGEST_RESULT = 1 << 16


@dataclass(frozen=True, slots=True)
class Place:
    """A container's files: descriptors of its root directory and of its user namespace (-1: the machine's)."""

    root: int
    user_namespace: int = -1


class Worker:
    """A running child. ``report`` lines are JSON; the last one is the outcome, told by ``finish``."""

    def __init__(
        self,
        reaper: Reaper,
        place: Place,
        work: Callable[[int, Callable[[Any], None]], Any],
        writes: bool,
    ) -> None:
        """``work(data, report)`` runs in the child; ``data`` is a pipe that it reads, or ``writes`` to."""
        reports, report = descriptors.pipe()
        read, write = descriptors.pipe()
        ours, theirs = (read, write) if writes else (write, read)
        pid = os.fork()
        if pid == 0:
            _child(place, work, theirs, report)
        descriptors.close(report, theirs)
        for descriptor in (reports, ours):
            os.set_blocking(descriptor, False)
        self._pid, self._reaper = pid, reaper
        self._data, self._reports = ours, reports
        self._pending = bytearray()
        self._ended = asyncio.Event()
        reaper.watch(pid, lambda code: self._ended.set())

    async def read(self) -> bytes:
        """What the child wrote next to its data pipe; b"" at the end."""
        return await descriptors.read(self._data)

    async def write(self, data: bytes) -> None:
        """Feeds the child's data pipe."""
        await descriptors.write_all(self._data, data)

    def end_data(self) -> None:
        """Closes our end of the data pipe."""
        descriptors.close(self._data)
        self._data = -1

    async def report(self) -> Any:
        """The child's next report; raises the error if it failed."""
        while b"\n" not in self._pending:
            data = await descriptors.read(self._reports)
            self._pending += data
            if not data or len(self._pending) > _LARGEST_RESULT:
                raise Internal(
                    "the process that works on the container's files ended without a word"
                )
        line, _, rest = bytes(self._pending).partition(b"\n")
        self._pending[:] = rest
        told = json.loads(line)
        if "kind" in told:
            raise from_kind(str(told["kind"]), str(told["message"]))
        return told["value"]

    async def close(self) -> None:
        """Ends the child if it still runs."""
        self._reaper.kill(self._pid, signal.SIGKILL)
        await self._ended.wait()
        descriptors.close(self._data, self._reports)


def _child(
    place: Place, work: Callable[[int, Callable[[Any], None]], Any], data: int, report: int
) -> None:
    code = 1
    try:
        with contextlib.suppress(BaseException):
            _confine(place, data, report)
            try:
                result: dict[str, Any] = {
                    "value": work(data, lambda value: _tell(report, {"value": value}))
                }
                code = 0
            except HybridError as error:
                result = {"kind": error.kind, "message": error.message}
            except OSError as error:
                name = os.fsdecode(error.filename) if error.filename else "the container's files"
                result = {"kind": _kind(error), "message": f"{name}: {error.strerror}"}
            except Exception as error:
                result = {"kind": "internal", "message": f"{type(error).__name__}: {error}"}
            os.close(data)
            _tell(report, result)
    finally:
        os._exit(code)


def _confine(place: Place, data: int, report: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    syscalls.die_with_parent(signal.SIGKILL)
    # nothing may be imported from the container's files
    sys.meta_path.clear()
    sys.path_hooks.clear()
    os.fchdir(place.root)
    if place.user_namespace >= 0:
        syscalls.setns(place.user_namespace, syscalls.CLONE_NEWUSER)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    os.chroot(".")
    os.chdir("/")
    _close_others({data, report})
    os.umask(0)
    syscalls.set_no_new_privileges()
    syscalls.keep_capabilities(_CAPABILITIES)


def _close_others(keep: set[int]) -> None:
    low = 0
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _tell(report: int, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode() + b"\n"
    while data:
        data = data[os.write(report, data) :]


def _kind(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "not_found"
    if isinstance(error, (NotADirectoryError, IsADirectoryError)):
        return "invalid"
    return "forbidden" if isinstance(error, PermissionError) or error.errno == 30 else "internal"
