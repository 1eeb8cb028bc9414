"""Control groups: one of its own for a program that outlives the daemon, and those that others left.

systemd finds the processes of a service by their control group. A program that must run on when the
daemon's service is stopped therefore leaves that group. It is moved in the hierarchies that only name
processes (v2, and v1's ``name=systemd``), not in those v1 ones that limit them.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

log = logging.getLogger(__name__)

_ROOT = Path("/sys/fs/cgroup")


def hierarchies(root: Path = _ROOT) -> list[Path]:
    """Where processes are told apart: the one v2 hierarchy, or v1's ``systemd`` and ``unified``."""
    if (root / "cgroup.controllers").exists():
        return [root]
    found = (root / name for name in ("systemd", "unified"))
    return [path for path in found if (path / "cgroup.procs").exists()]


def move(pid: int, group: str, root: Path = _ROOT) -> None:
    """The process is in ``group``, made if need be. Where groups cannot be made it stays where it is."""
    for hierarchy in hierarchies(root):
        directory = hierarchy / group
        try:
            directory.mkdir(exist_ok=True)
            (directory / "cgroup.procs").write_text(f"{pid}\n")
        except OSError as error:
            log.info("process %d stays in the daemon's control group: %s", pid, error)


def remove(group: str, root: Path = _ROOT) -> None:
    """The group is gone from every hierarchy, if nothing is in it."""
    unified = (root / "cgroup.controllers").exists()
    for hierarchy in [root] if unified else list(root.iterdir()):
        try:
            (hierarchy / group).rmdir()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            log.info("control group %s stays: %s", group, error)


def find(pattern: str, root: Path = _ROOT) -> list[Path]:
    """All groups, in every hierarchy, whose path matches."""
    return [*root.glob(pattern), *root.glob(f"*/{pattern}")]


def remove_tree(group: Path) -> None:
    """The group is gone with all below it, if no process is in them."""
    below = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
    for directory in [*below, group]:
        with contextlib.suppress(OSError):
            directory.rmdir()
