"""Control groups of this machine: which layout and controllers there are, and where a container's files are."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybrid.agent import syscalls
from hybrid.errors import Unsupported

ROOT = Path("/sys/fs/cgroup")
Layout = Literal["v2", "v1", "hybrid"]

# what of an OCI ``linux.resources`` object needs which controller (v2 name)
_NEEDS = {
    "memory": "memory",
    "pids": "pids",
    "blockIO": "io",
    "hugepageLimits": "hugetlb",
    "rdma": "rdma",
}
_V1_NAMES = {"io": "blkio"}
_CPUSET = ("cpus", "mems")


def layout() -> Layout:
    """How the control groups are mounted, as the machine's init left them."""
    kinds = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        kinds[target] = kind
    if kinds.get(str(ROOT)) == "cgroup2":
        return "v2"
    return "hybrid" if "cgroup2" in kinds.values() else "v1"


def hide_unified() -> None:
    """Makes the hybrid layout look like plain v1, in this process's own mount namespace only.

    crun refuses the hybrid layout when any controller is left to the v2 hierarchy, even one that nobody uses.
    """
    target = ROOT / "unified"
    if target.is_mount():
        syscalls.umount(str(target), syscalls.MNT_DETACH)


def is_v2() -> bool:
    """All controllers are in the one v2 hierarchy."""
    return (ROOT / "cgroup.controllers").exists()


@functools.cache
def controllers() -> frozenset[str]:
    """Controllers that can limit a container here."""
    try:
        present = (ROOT / "cgroup.controllers").read_text().split()
        return frozenset(name for name in present if _handed_down(name))
    except FileNotFoundError:
        names = {
            part for entry in ROOT.iterdir() if entry.is_dir() for part in entry.name.split(",")
        }
        return frozenset(names)


def _handed_down(controller: str) -> bool:
    """Whether groups below the root have the v2 ``controller``: crun would only find its files missing.

    Inside somebody's container the root seen here is no real one, and while it holds processes of its own the
    kernel refuses to hand anything down (cgroup-v2.rst, "No Internal Process Constraint").
    """
    control = ROOT / "cgroup.subtree_control"
    if controller in control.read_text().split():
        return True
    try:
        control.write_text(f"+{controller}")
    except OSError:
        return False
    return True


def place_throttles(resources: dict[str, Any], directory: str) -> dict[str, Any]:
    """``resources`` with the disk that holds ``directory`` as the device of its I/O throttles.

    Unsupported if that file system is on no single disk.
    """
    block = dict(resources.get("blockIO") or {})
    throttles = [key for key in block if key.startswith("throttle")]
    if not throttles:
        return resources
    number = os.stat(directory).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        raise Unsupported("cannot limit I/O: the container's own file system is not on a disk")
    if (device / "partition").exists():  # the kernel throttles whole disks
        device = device.resolve().parent
    major, minor = (int(part) for part in (device / "dev").read_text().split(":"))
    for key in throttles:
        block[key] = [{**entry, "major": major, "minor": minor} for entry in block[key]]
    return {**resources, "blockIO": block}


def refuse_unsupported(resources: dict[str, Any]) -> None:
    """Unsupported if ``resources`` asks for a limit that this machine's kernel could not enforce."""
    present = controllers()

    def need(controller: str, what: str) -> None:
        if controller not in present and _V1_NAMES.get(controller) not in present:
            where = f" for containers (see {ROOT}/cgroup.subtree_control)" if is_v2() else ""
            raise Unsupported(
                f"cannot limit {what}: this machine has no {controller!r} cgroup controller{where}"
            )

    for part, controller in _NEEDS.items():
        if any(
            value not in (None, 0, -1, [], {}) for value in dict(resources.get(part) or {}).values()
        ):
            need(controller, part)
    cpu = dict(resources.get("cpu") or {})
    if any(cpu.get(name) for name in _CPUSET):
        need("cpuset", "the set of CPUs")
    if any(value for name, value in cpu.items() if name not in _CPUSET):
        need("cpu", "CPU time")


@dataclass(frozen=True, slots=True)
class Group:
    """One container's control group: its directory, for v1 one a controller."""

    directories: dict[str, Path]  # controller to directory; "" is the v2 one
    path: str = ""  # below the hierarchy's root, for people

    @classmethod
    def of(cls, pid: int, group: str) -> Group:
        """The group named ``group`` of the process ``pid`` (``/proc/PID/cgroup``: ``id:controllers:path``)."""
        found = {}
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                mounted = ROOT / name if name else ROOT
                directory = mounted / path.lstrip("/")
                if directory.is_dir() and path.startswith(group):
                    found[name] = directory
        return cls(found, group)

    @property
    def unified(self) -> Path | None:
        return self.directories.get("")

    def text(self, controller: str, name: str) -> str:
        """Contents of a file of the group, "" if there is none (no such controller, or the group is gone)."""
        directory = self.unified or self.directories.get(controller)
        if directory is None:
            return ""
        try:
            return (directory / name).read_text().strip()
        except OSError:
            return ""

    def number(self, controller: str, name: str) -> int:
        """Its value as a number; 0 for "max" and for no such file."""
        text = self.text(controller, name)
        return int(text) if text.lstrip("-").isdecimal() else 0

    def table(self, controller: str, name: str) -> dict[str, int]:
        """A file of ``name value`` lines."""
        pairs = (line.split() for line in self.text(controller, name).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}

    def oom_kills(self) -> int:
        """How many processes of the group the kernel killed for want of memory."""
        name = "memory.events" if self.unified else "memory.oom_control"
        return self.table("memory", name).get("oom_kill", 0)

    def processes(self) -> list[int]:
        """Every process in the group and in groups below it."""
        directory = (
            self.unified
            or self.directories.get("pids")
            or next(iter(self.directories.values()), None)
        )
        if directory is None:
            return []
        pids: set[int] = set()
        for file in directory.rglob("cgroup.procs"):
            try:
                pids.update(int(line) for line in file.read_text().split())
            except OSError:
                continue
        return sorted(pids - {0})
