"""Starting a program that outlives us: in a session of its own, with one descriptor and a log.

``in_user_namespace`` does so in a new user namespace whose maps the caller chooses.
"""

from __future__ import annotations

import fcntl
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


@dataclass(frozen=True)
class IdMaps:
    """The texts of uid_map and gid_map (``user_namespaces(7)``)."""

    uid: str
    gid: str


def detached(command: list[str], inherited: int, log: Path) -> int:
    """Starts ``command`` with descriptor ``inherited`` as number 3; its pid, which is also its
    group.
    """
    with ExitStack() as held:
        actions = _standard(held, log)
        actions += [(os.POSIX_SPAWN_DUP2, _high(held, inherited), INHERITED)]
        return os.posix_spawn(command[0], command, _ENVIRONMENT, file_actions=actions, setsid=True)


def in_user_namespace(command: list[str], inherited: int, log: Path, maps: IdMaps) -> int:
    """As ``detached``, as root of a new user namespace with ``maps``."""
    launcher = str(Path(__file__).with_name("userns_exec.py"))
    program = [sys.executable, "-I", "-S", launcher, str(_READY), str(_GO), *command]
    with ExitStack() as ours:
        with ExitStack() as childs:
            ready, ready_in = _pipe(ours, childs)
            go, _ = _pipe(childs, ours)
            actions = _standard(childs, log)
            for source, target in ((inherited, INHERITED), (ready_in, _READY), (go, _GO)):
                actions.append((os.POSIX_SPAWN_DUP2, _high(childs, source), target))
            pid = os.posix_spawn(
                program[0], program, _ENVIRONMENT, file_actions=actions, setsid=True
            )
        # At its end when the child is in its namespace, or dead.
        os.read(ready, 1)
        try:
            Path(f"/proc/{pid}/uid_map").write_text(maps.uid)
            Path(f"/proc/{pid}/gid_map").write_text(maps.gid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Unavailable(f"cannot map user ids for {command[0]}: {error.strerror}") from error
    # Leaving the block closed our end of the other pipe: the child goes on.
    return pid


_Action = tuple[int, int, str, int, int] | tuple[int, int, int]


def _standard(held: ExitStack, log: Path) -> list[_Action]:
    """No input; output and errors to ``log``, made anew."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
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
