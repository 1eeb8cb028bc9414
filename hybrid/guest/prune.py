"""Removes guest images, tools trees and fetched packages of earlier builds.

Kept are the current one, the one before it, and whatever a running process uses: a guest's QEMU has
its root open, a file server runs from its tools tree. Fetched packages are kept for two weeks after
their last use; they only save fetching them again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hybrid.paths import Paths

_PACKAGES_KEPT = 14 * 86400.0


def prune(paths: Paths, progress: Callable[[str], None]) -> None:
    """Removes what nothing needs any more. Only while nothing is built in that root."""
    opened = frozenset(_open_files())
    for directory in (paths.guest, paths.tools):
        for old in unneeded(directory, opened):
            progress(f"removing the unused {old.parent.name}/{old.name[:12]}")
            shutil.rmtree(old, ignore_errors=True)
    for tar in (paths.root / "cache/packages").glob("*.tar"):
        if tar.stat().st_mtime < time.time() - _PACKAGES_KEPT:
            tar.unlink(missing_ok=True)


def unneeded(directory: Path, opened: frozenset[str]) -> list[Path]:
    """The builds in ``directory`` that may go. ``opened``: the files that processes have open."""
    real = directory.resolve()
    current = (real / "current").resolve()
    if not current.is_dir():
        return []
    builds = [path for path in real.iterdir() if path.is_dir() and len(path.name) == 64]
    others = sorted(
        (path for path in builds if path.resolve() != current),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    return [path for path in others[1:] if not any(name.startswith(f"{path}/") for name in opened)]


def _open_files() -> Iterator[str]:
    """Every file that some process has open or mapped."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            for entry in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield os.readlink(entry)
            for line in (process / "maps").read_text(errors="replace").splitlines():
                if "/" in line:
                    yield line[line.index("/") :]
