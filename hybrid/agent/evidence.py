"""The effective confinement of a container, as the machine's kernel tells it; no configuration is consulted."""

from __future__ import annotations

import os
from pathlib import Path

from hybrid.agent import syscalls
from hybrid.agent.cgroups import Group
from hybrid.wire.messages import ContainerEvidence

_LIMITS = {
    "memory.max": ("memory", "memory.max", "memory.limit_in_bytes"),
    "memory.swap.max": ("memory", "memory.swap.max", "memory.memsw.limit_in_bytes"),
    "pids.max": ("pids", "pids.max", "pids.max"),
    "cpu.max": ("cpu", "cpu.max", "cpu.cfs_quota_us"),
    "cpu.weight": ("cpu", "cpu.weight", "cpu.shares"),
    "cpuset.cpus": ("cpuset", "cpuset.cpus", "cpuset.cpus"),
    "io.max": ("blkio", "io.max", "blkio.throttle.write_bps_device"),
}


def read(group: Group, pid: int, root: int, paths: list[str]) -> ContainerEvidence:
    """Evidence of the container whose init is ``pid``, a child of ours that was not reaped: the pid is still its.

    ``paths`` are looked for below the descriptor ``root``.
    """
    process = Path(f"/proc/{pid}")
    status = {}
    for line in (process / "status").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        status[name] = value.strip()
    limits = {}
    for name, (controller, v2, v1) in _LIMITS.items():
        value = group.text(controller, v2 if group.unified else v1)
        if value:
            limits[name] = value
    return ContainerEvidence(
        pid=pid,
        status=status,
        namespaces=_namespaces(process),
        machine_namespaces=_namespaces(Path("/proc/self")),
        uid_map=(process / "uid_map").read_text(),
        gid_map=(process / "gid_map").read_text(),
        mounts=(process / "mountinfo").read_text(errors="replace").splitlines(),
        cgroup=group.path,
        limits=limits,
        apparmor=_optional(process / "attr/apparmor/current")
        or _optional(process / "attr/current"),
        boot_id=_optional(Path("/proc/sys/kernel/random/boot_id")),
        kernel=os.uname().release,
        personality=personality(pid),
        randomize_va_space=_optional(Path("/proc/sys/kernel/randomize_va_space")),
        present=[path for path in paths if _exists(root, path)],
    )


def personality(pid: int) -> str:
    """The process's personality(2) in hexadecimal; "" if it cannot be told."""
    return _optional(Path(f"/proc/{pid}/personality"))


def _exists(root: int, path: str) -> bool:
    try:
        os.close(syscalls.open_in_root(root, path, os.O_PATH))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # there, though it cannot be opened
    return True


def _namespaces(process: Path) -> dict[str, int]:
    found = {}
    for entry in (process / "ns").iterdir():
        if not entry.name.endswith("_for_children"):
            found[entry.name] = entry.stat().st_ino
    return found


def _optional(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return ""
