"""A prison for one short-lived program that reads what strangers wrote. Linux, root, standard
library only.

``enter`` turns the calling process into: an unprivileged user of its own, no capabilities, no new
privileges; new mount, pid, network, ipc, uts and cgroup namespaces, in which only a read-only /usr
and one writable file exist; rlimits; a seccomp filter that leaves no way to the kernel's wider
surface. It forks once (to be process 1 of its pid namespace) and dies with its parent. Runs in a
fresh single-threaded process only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# sched.h, mount.h, prctl.h, seccomp.h, audit.h, filter.h
_NAMESPACES = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_DUMPABLE = 1, 38, 22, 4
_SECCOMP_ERRNO_EPERM, _SECCOMP_ALLOW = 0x00050000 | 1, 0x7FFF0000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
# Calls that neither a decompressor nor tar2sqfs makes, and that have been ways into the kernel.
# (x86_64, generic)
_REFUSED = {
    "socket": (41, 198), "socketpair": (53, 199), "ptrace": (101, 117), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "unshare": (272, 97), "setns": (308, 268),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kexec_load": (246, 104),
    "init_module": (175, 105), "finit_module": (313, 273), "open_by_handle_at": (304, 265),
    "fsopen": (430, 430), "move_mount": (429, 429), "open_tree": (428, 428),
    "mount_setattr": (442, 442), "pidfd_getfd": (438, 438), "personality": (135, 92),
    "splice": (275, 76), "vmsplice": (278, 75), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mknodat": (259, 33), "symlinkat": (266, 36), "linkat": (265, 37),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Cell:
    """What the confined process may use. ``writable``: the one file it may write (as ``/out``)."""

    uid: int
    writable: str = ""
    file_size: int = 0
    memory: int = 2 << 30
    cpu_seconds: int = 3600


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (os.fsencode(text) for text in (source, target, kind))
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data)), f"mount {target}")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def enter(cell: Cell) -> None:
    """Returns inside the prison, in a child; the caller waits for that child and ends with its exit
    status.
    """
    os.closerange(3, 1 << 20)  # whoever started this may have been careless
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _check(_libc.unshare(_NAMESPACES), "unshare")
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _new_root(cell.writable)
    _limit(cell)
    os.setgroups([])
    os.setresgid(cell.uid, cell.uid, cell.uid)
    os.setresuid(cell.uid, cell.uid, cell.uid)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # changing ids cleared it
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _filter()


def _new_root(writable: str) -> None:
    """A tiny read-only tmpfs as the root: /usr, the links into it, an empty /tmp, and ``writable``
    as /out.
    """
    root = "/tmp"
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    out = os.open(writable, os.O_PATH) if writable else -1
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=64k")
    os.mkdir(root + "/usr")
    _mount("/usr", root + "/usr", "", _MS_BIND)
    _mount("none", root + "/usr", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    for name in ("bin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            os.symlink(os.readlink("/" + name), f"{root}/{name}")
    if writable:
        Path(root, "out").touch()
        _mount(f"/proc/self/fd/{out}", root + "/out", "", _MS_BIND)
        os.close(out)
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")
    _mount("none", "/", "", _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _limit(cell: Cell) -> None:
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, cell.file_size),
        (resource.RLIMIT_AS, cell.memory),
        (resource.RLIMIT_CPU, cell.cpu_seconds),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 64),
    ):
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def _filter() -> None:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(f"no system-call numbers are known for {machine}")
    code = _program(*_ARCHITECTURES[machine])
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    result = _libc.prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0)
    _check(result, "seccomp")


def _program(architecture: int, column: int) -> bytes:
    """Classic BPF: another architecture, x32 numbers and the refused calls fail with EPERM, the
    rest is allowed.
    """
    numbers = [
        (_JUMP_GREATER_EQUAL, 0x40000000),
        *((_JUMP_EQUAL, row[column]) for row in _REFUSED.values()),
    ]
    deny = len(numbers) + 1
    lines = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 0, deny + 1, architecture), (_LOAD, 0, 0, 0)]
    lines += [(code, deny - index - 1, 0, value) for index, (code, value) in enumerate(numbers)]
    lines += [(_RETURN, 0, 0, _SECCOMP_ALLOW), (_RETURN, 0, 0, _SECCOMP_ERRNO_EPERM)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def run(cell: Cell, argv: Sequence[str]) -> None:
    """Enters the prison and becomes the program ``argv``."""
    enter(cell)
    os.execve(argv[0], list(argv), {"PATH": "/usr/bin", "LC_ALL": "C.UTF-8"})


if __name__ == "__main__":
    # confine.py UID FILE_SIZE MEMORY PROGRAM ARGUMENT…
    run(Cell(int(sys.argv[1]), file_size=int(sys.argv[2]), memory=int(sys.argv[3])), sys.argv[4:])
