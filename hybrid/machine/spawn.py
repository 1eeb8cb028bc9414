"""Starting a program that outlives us: in a session of its own, with one descriptor and a log."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import Unavailable

INHERITED = 3
_READY, _GO = 4, 5
# Sources are moved above all targets, so that none is overwritten before it is copied.
_ABOVE = 10
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_Action = tuple[int, int, str, int, int] | tuple[int, int, int]


@dataclass(frozen=True)
class IdMaps:
    """The texts of uid_map and gid_map (``user_namespaces(7)``)."""

    uid: str
    gid: str


@dataclass(frozen=True)
class Shown:
    """``directory`` (an empty one) is to show ``source``, in the program's mount namespace: that directory, or
    that file alone. A symlink anywhere in ``source`` is not followed, but an error.
    """

    source: Path
    directory: Path


def detached(
    command: list[str],
    inherited: int,
    log: Path,
    *,
    maps: IdMaps | None = None,
    shown: Shown | None = None,
) -> int:
    """Starts ``command`` with descriptor ``inherited`` as number 3; its pid, which is also its
    group.

    With ``maps`` it is root of a new user namespace that has them.
    """
    options: dict[str, str] = {}
    if shown is not None:
        options |= {"source": str(shown.source), "directory": str(shown.directory)}
    with ExitStack() as ours, ExitStack() as childs:
        copies = [(inherited, INHERITED)]
        ready = -1
        if maps is not None:
            options |= {"ready": str(_READY), "go": str(_GO)}
            ready, ready_in = _pipe(ours, childs)
            go, _ = _pipe(childs, ours)
            copies += [(ready_in, _READY), (go, _GO)]
        if options:
            launcher = str(Path(__file__).with_name("launcher.py"))
            command = [sys.executable, "-I", "-S", launcher, json.dumps(options), *command]
        actions = _standard(childs, log)
        actions += [
            (os.POSIX_SPAWN_DUP2, _high(childs, source), target) for source, target in copies
        ]
        pid = os.posix_spawn(command[0], command, _ENVIRONMENT, file_actions=actions, setsid=True)
        childs.close()
        if maps is not None:
            # At its end when the child is in its namespace, or dead.
            os.read(ready, 1)
            _write_maps(pid, maps)
        # Leaving the block closes our end of the other pipe: then the child goes on.
    return pid


def _write_maps(pid: int, maps: IdMaps) -> None:
    try:
        Path(f"/proc/{pid}/uid_map").write_text(maps.uid)
        Path(f"/proc/{pid}/gid_map").write_text(maps.gid)
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise Unavailable(f"cannot make a user namespace: {error.strerror}") from error


def _standard(held: ExitStack, log: Path) -> list[_Action]:
    """No input; output and errors to ``log``, made anew. Appended: whoever bounds the log may cut it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    output = os.open(log, flags, 0o600)
    held.callback(os.close, output)
    high = _high(held, output)
    return [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, high, 1),
        (os.POSIX_SPAWN_DUP2, high, 2),
    ]


def _high(held: ExitStack, descriptor: int) -> int:
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    held.callback(os.close, copy)
    return copy


def _pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, int]:
    """A pipe whose ends close with the given stacks."""
    read_end, write_end = os.pipe()
    reading.callback(os.close, read_end)
    writing.callback(os.close, write_end)
    return read_end, write_end
