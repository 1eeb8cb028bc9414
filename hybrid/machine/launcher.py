"""Runs a program in namespaces of its own: ``launcher.py OPTIONS PROGRAM ARGUMENT…``.

OPTIONS is a JSON object: ``ready`` and ``go``, two descriptors, ask for a user namespace; ``source``
and ``directory`` for a mount namespace in which ``directory`` shows the directory ``source``, or
holds the one file ``source`` and nothing else. ``source`` is opened once, by the rights that the
program has, and no symlink is followed: what was checked is what is shown.

A program of its own, because a process with threads must not do this between fork and exec, and
because a user namespace's maps can only be written from outside: it gives up its groups, enters the
namespace, closes ``ready`` to say so, waits until ``go`` is at its end (the maps are written by
then) and becomes uid 0 in it. Standard library only; run it with -I -S.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import struct
import sys
from pathlib import Path

# linux/sched.h, linux/prctl.h, linux/mount.h
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_PR_SET_NO_NEW_PRIVS = 38
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_OPENAT2, _AT_FDCWD, _RESOLVE_NO_SYMLINKS = 437, -100, 0x04  # linux/openat2.h
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        sys.exit(f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), b"")
    _checked(_LIBC.mount(*arguments), target)


def enter_user_namespace(ready: int, go: int) -> None:
    """Root of a new user namespace, with the maps that the parent writes meanwhile."""
    os.setgroups([])
    _checked(_LIBC.unshare(_CLONE_NEWUSER), "user namespace")
    os.close(ready)
    os.read(go, 1)
    os.close(go)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _opened(path: str) -> int:
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    found = _LIBC.syscall(_OPENAT2, _AT_FDCWD, path.encode(), how, len(how))
    if found < 0:
        number = ctypes.get_errno()
        sys.exit(
            f"{path} is not any more what it was: a symbolic link is in its place"
            if number == errno.ELOOP
            else f"{path}: {os.strerror(number)}"
        )
    return int(found)


def show(source: str, directory: str) -> None:
    """In a new mount namespace ``directory`` is ``source``, or holds that file and takes no other."""
    _checked(_LIBC.unshare(_CLONE_NEWNS), "mount namespace")
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    opened = _opened(source)
    held = f"/proc/self/fd/{opened}"
    if stat.S_ISDIR(os.fstat(opened).st_mode):
        _mount(held, directory, "", _MS_BIND | _MS_REC)
        return
    safe = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount("tmpfs", directory, "tmpfs", safe)
    target = Path(directory) / Path(source).name
    target.touch()
    _mount(held, str(target), "", _MS_BIND)
    _mount("tmpfs", directory, "tmpfs", safe | _MS_REMOUNT | _MS_RDONLY)


def main(options: dict[str, str], program: list[str]) -> None:
    if "ready" in options:
        enter_user_namespace(int(options["ready"]), int(options["go"]))
    if "source" in options:
        show(options["source"], options["directory"])
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    os.execv(program[0], program)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
