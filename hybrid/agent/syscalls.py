"""The system calls that Python does not wrap, by ctypes; nothing here knows what a container is.

Numbers at and above 424 are the same on every architecture. Constants cite their kernel header. Every function
raises ``OSError`` with the kernel's errno. ctypes is costly to load, so only what acts on the kernel imports this.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

# include/uapi/asm-generic/unistd.h
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442

# include/uapi/linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 0x1000, 0x4000, 1 << 18, 1 << 19
MNT_DETACH, UMOUNT_NOFOLLOW = 0x2, 0x8
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _AT_RECURSIVE = 0x1, 0x1000, 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_IDMAP = 0x1, 0x00100000

# include/uapi/linux/sched.h
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000

# include/uapi/linux/openat2.h
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x02, 0x04, 0x10

# include/uapi/linux/prctl.h, securebits.h
_PR_SET_PDEATHSIG, _PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 1, 27, 28
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECBIT_NO_SETUID_FIXUP = 1 << 2

# include/uapi/linux/personality.h
_ADDR_NO_RANDOMIZE = 0x0040000

# include/uapi/linux/reboot.h
_RB_POWER_OFF = 0x4321FEDC

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what or None)
    return result


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """``mount(2)``."""
    arguments = (source, target, kind, flags, data)
    encoded = [os.fsencode(a) if isinstance(a, str) else ctypes.c_ulong(a) for a in arguments]
    _check(_libc.mount(*encoded), target)


def umount(target: str, flags: int = UMOUNT_NOFOLLOW) -> None:
    """``umount2(2)``."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def clone_mount(path: str, *, directory: int = -100, recursive: bool = False) -> int:
    """A descriptor of a detached copy of the mount at ``path`` (``""``: of what ``directory`` refers to)."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    flags |= 0 if path else _AT_EMPTY_PATH
    return _check(_libc.syscall(_OPEN_TREE, directory, os.fsencode(path), flags), path)


def set_mount_attributes(descriptor: int, attributes: int, user_namespace: int = 0) -> None:
    """``mount_setattr(2)`` on the mount itself (``struct mount_attr``: set, clear, propagation, userns_fd)."""
    attr = struct.pack("=QQQQ", attributes, 0, 0, user_namespace)
    _check(_libc.syscall(_MOUNT_SETATTR, descriptor, b"", _AT_EMPTY_PATH, attr, len(attr)))


def attach_mount(descriptor: int, target: str) -> None:
    """``move_mount(2)`` of a detached mount to ``target``."""
    _check(
        _libc.syscall(
            _MOVE_MOUNT, descriptor, b"", -100, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH
        ),
        target,
    )


def open_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """``openat2(2)``: ``path`` as a process whose root is ``root`` would see it; nothing leads out of it."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    return _check(_libc.syscall(_OPENAT2, root, os.fsencode(path), how, len(how)), path)


def open_plain(path: str, flags: int) -> int:
    """``openat2(2)`` of an absolute path in which no symlink is followed (ELOOP if there is one)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS)
    return _check(_libc.syscall(_OPENAT2, -100, os.fsencode(path), how, len(how)), path)


def unshare(flags: int) -> None:
    """``unshare(2)``."""
    _check(_libc.unshare(flags))


def setns(descriptor: int, kind: int = 0) -> None:
    """``setns(2)``."""
    _check(_libc.setns(descriptor, kind))


def become_subreaper() -> None:
    """Orphans below this process become its children (``prctl(2)``)."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with_parent(signal: int) -> None:
    """The calling process gets ``signal`` when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0))


def set_no_new_privileges() -> None:
    """Nothing that this process executes gains privileges any more."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def keep_capabilities(mask: int) -> None:
    """Reduces the effective, permitted and inheritable capability sets to ``mask`` (``capset(2)``, version 3)."""
    header = struct.pack("=Ii", 0x20080522, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _check(_libc.capset(header, struct.pack("=IIIIII", low, low, 0, high, high, 0)))


def watch_file(path: str) -> int:
    """An inotify descriptor that becomes readable when the file changes (IN_MODIFY is 2)."""
    descriptor = _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        _check(_libc.inotify_add_watch(descriptor, os.fsencode(path), 2), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def power_off() -> None:
    """``reboot(2)``: stops the machine at once; sync first."""
    _check(_libc.reboot(ctypes.c_int(_RB_POWER_OFF)))


@contextmanager
def fixed_addresses() -> Iterator[None]:
    """What is started inside the block is laid out in memory alike each time (``personality(2)``)."""
    before = _check(_libc.personality(_ADDR_NO_RANDOMIZE))
    try:
        yield
    finally:
        _check(_libc.personality(before))


@contextmanager
def file_system_ids(uid: int, gid: int) -> Iterator[None]:
    """Files are made, and checked, as ``uid`` and ``gid`` inside the block, with all capabilities kept.

    Through an idmapped mount only ids of its map can create anything; the machine's root (0) is not among them.
    ``SECBIT_NO_SETUID_FIXUP`` keeps the capabilities; it is inherited by children, so it never outlives the block.
    """
    bits = _check(_libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0))
    _check(_libc.prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
    try:
        _libc.setfsgid(gid)
        _libc.setfsuid(uid)
        # these two calls report no failure: asking again tells the value in force
        if _libc.setfsuid(-1) != uid or _libc.setfsgid(-1) != gid:
            raise PermissionError(f"cannot act with file system ids {uid}:{gid}")
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)
        _check(_libc.prctl(_PR_SET_SECUREBITS, bits, 0, 0, 0))
