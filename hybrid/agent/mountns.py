"""Changes to mounts inside a container that the runtime leaves undone."""

from __future__ import annotations

import os

from hybrid.agent import syscalls
from hybrid.errors import Internal


def make_read_only(namespace: int, path: str) -> None:
    """Makes the mount at ``path`` read-only in another mount namespace, whose program does not run yet."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            syscalls.setns(namespace, syscalls.CLONE_NEWNS)
            mounted = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            syscalls.set_mount_attributes(mounted, syscalls.MOUNT_ATTR_RDONLY)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise Internal(f"cannot make {path} of the container read-only")
