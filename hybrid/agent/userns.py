"""User namespaces that serve as id maps for mounts, one held descriptor a map."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from hybrid.agent import syscalls
from hybrid.errors import InvalidInput
from hybrid.wire.messages import IdMap

_LIMIT = 1 << 32  # ids are 32 bits wide; the last one (-1) means "none"


class UserNamespaces:
    """Makes a user namespace for each map that is asked for, once, and keeps it open."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], int] = {}

    def descriptor(self, id_map: IdMap) -> int:
        """An open user namespace whose ids 0… are ``id_map``'s; it stays open as long as this object."""
        key = (id_map.base, id_map.size)
        if key not in self._held:
            if not (id_map.base > 0 and id_map.size > 0 and id_map.base + id_map.size < _LIMIT):
                raise InvalidInput(f"id map {id_map.base}+{id_map.size}: out of range")
            self._held[key] = _make(id_map)
        return self._held[key]


def _make(id_map: IdMap) -> int:
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:  # makes the namespace and stays until it is killed; touches nothing else
        try:
            syscalls.die_with_parent(signal.SIGKILL)
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(ready_write, b"1")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(ready_write)
        if os.read(ready_read, 1) != b"1":
            raise OSError(f"cannot make a user namespace for ids from {id_map.base}")
        line = f"0 {id_map.base} {id_map.size}\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(line)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
