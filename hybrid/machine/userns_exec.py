"""Runs a program as root of a user namespace of its own: ``userns_exec.py READY GO PROGRAM
ARGUMENT…``.

A program of its own, because a process with threads must not do this between fork and exec, and
because the maps can only be written by a process that is outside. It gives up its groups, enters a
new user namespace, closes descriptor READY to say so, waits until descriptor GO is at its end (the
parent has written the maps by then), becomes uid 0 of the namespace and executes the program.
Standard library only; run it with -I -S.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


def main(ready: int, go: int, program: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    os.setgroups([])
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER)")
    os.close(ready)
    os.read(go, 1)
    os.close(go)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    os.execv(program[0], program)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
