"""Reaping the QEMU processes that libvirt lets go of.

libvirt starts QEMU through a double fork and then waits until the pid of a QEMU that it ended is
free again. Where PID 1 is slow to reap (containers, sandboxes) that took more than a minute. So
this process becomes the reaper of its orphaned descendants (``prctl(2)``, PR_SET_CHILD_SUBREAPER)
and reaps those, and only those, that libvirt detached. Children of our own are left to whoever
started them: they are in our session, or lead one themselves, while what libvirt detached is in the
session of its dead parent.

An agent of this host that was killed leaves its containers' processes to this process as well. The
kernel does not end a pid namespace before the processes in it that came from outside are reaped, so
somebody has to, while they are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# /proc/PID/stat holds the first 15 bytes of the program's name.
_QEMU = "qemu-system-"
_INTERVAL = 0.02
_FORGOTTEN = 10.0


def become_subreaper() -> None:
    """Orphaned descendants of this process become its children from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def is_dead_orphan(stat: str, pid: int, session: int) -> bool:
    """Whether ``stat`` (a line of /proc/N/stat) is a QEMU that died after libvirt detached it from
    ``pid``.
    """
    opening, closing = stat.find("("), stat.rfind(")")
    fields = stat[closing + 2 :].split()
    if opening < 0 or len(fields) < 4:
        return False
    own, name = int(stat[:opening]), stat[opening + 1 : closing]
    state, parent, its_session = fields[0], int(fields[1]), int(fields[3])
    detached = its_session not in (session, pid, own)
    return state == "Z" and parent == pid and name.startswith(_QEMU) and detached


class OrphanReaper:
    """Reaps detached QEMUs while at least one libvirt call that may wait for one is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._idle = threading.Event()

    @contextmanager
    def active(self) -> Iterator[None]:
        """While this is held a thread looks for dead orphans. Many threads may hold it at once."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._idle = threading.Event()
                threading.Thread(
                    target=self._run, args=(self._idle,), name="orphans", daemon=True
                ).start()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._idle.set()

    def _run(self, idle: threading.Event) -> None:
        while not idle.wait(_INTERVAL):
            self.reap_all()

    def reap_all(self) -> None:
        """Reaps every dead orphan there is now."""
        pid, session = os.getpid(), os.getsid(0)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                stat = (entry / "stat").read_text(errors="replace")
            except OSError:
                continue
            if is_dead_orphan(stat, pid, session):
                reap(int(entry.name))


async def reap_forgotten_for_ever() -> None:
    """Reaps dead children that nobody has waited for in a while, until cancelled.

    Daemons that others start through a double fork end up here (dnsmasq, the QEMUs that libvirt asks
    for their abilities). What this process starts itself is waited for at once.
    """
    before: set[int] = set()
    while True:
        await asyncio.sleep(_FORGOTTEN)
        dead = set(_dead_children()) if _any_dead_child() else set()
        for pid in dead & before:
            reap(pid)
        before = dead


def _any_dead_child() -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _dead_children() -> Iterator[int]:
    parent = str(os.getpid())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] == "Z" and fields[1] == parent:
                yield int(entry.name)


async def reap_contained_for_ever() -> None:
    """``reap_contained`` again and again, until cancelled."""
    while True:
        reap_contained()
        await asyncio.sleep(_INTERVAL)


def reap_contained() -> None:
    """Reaps dead children of ours in pid namespaces below ours. Those came to us as orphans: what this
    process starts itself is in its own pid namespace.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = dict(
                line.split(":", 1) for line in (entry / "status").read_text().splitlines()
            )
        except (OSError, ValueError):
            continue
        if is_contained_zombie(fields, os.getpid()):
            reap(int(entry.name))


def is_contained_zombie(status: Mapping[str, str], parent: int) -> bool:
    """Whether these fields of /proc/N/status are of a dead child of ``parent`` in a deeper pid
    namespace.
    """
    dead = status.get("State", "").strip().startswith("Z")
    own = int(status.get("PPid", "0")) == parent
    return dead and own and len(status.get("NSpid", "").split()) > 1


def reap(pid: int) -> None:
    """Reaps ``pid`` if it is a dead child of ours; nothing otherwise."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
