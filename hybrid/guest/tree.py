"""Chooses what of an unpacked Debian tree goes into the guest's root, and copies it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from hybrid.errors import Internal
from hybrid.guest import elf


def _pattern(glob: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?)", glob)
    words = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(words.get(part) or re.escape(part) for part in parts))


def select(names: Iterable[str], rules: Iterable[str]) -> list[str]:
    """The names that the rules keep:

    A glob takes in, ``!glob`` takes out again, the last one that matches decides.
    """
    compiled = [(not rule.startswith("!"), _pattern(rule.removeprefix("!"))) for rule in rules]
    chosen = []
    for name in names:
        verdicts = [keep for keep, pattern in compiled if pattern.fullmatch(name)]
        if verdicts and verdicts[-1]:
            chosen.append(name)
    return sorted(chosen)


def files(tree: Path) -> list[str]:
    """Every file and symbolic link, relative to the tree; links to directories are not followed."""
    found = []
    for directory, _, names in os.walk(tree):
        found += [os.path.relpath(os.path.join(directory, name), tree) for name in names]
    return sorted(found)


def with_libraries(tree: Path, chosen: Iterable[str]) -> list[str]:
    """``chosen`` and the shared libraries these files are linked with, link names included."""
    directories = [
        path
        for path in (*tree.glob("usr/lib/*-linux-gnu"), tree / "usr/lib64", tree / "usr/lib")
        if path.is_dir()
    ]
    result: set[str] = set()
    queue = list(chosen)
    while queue:
        name = queue.pop()
        if name in result:
            continue
        result.add(name)
        path = tree / name
        if path.is_symlink():
            target = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(path)))
            queue.append(target.lstrip("/"))
            continue
        with path.open("rb") as file:
            head = file.read(6)
        if elf.is_elf(head):
            queue += [
                _library(tree, directories, library, name)
                for library in elf.needed(path.read_bytes())
            ]
    return sorted(result)


def _library(tree: Path, directories: list[Path], library: str, user: str) -> str:
    for directory in directories:
        if (directory / library).exists():
            return str((directory / library).relative_to(tree))
    raise Internal(f"guest image: {user} needs {library}, which none of the packages has")


def copy(tree: Path, names: Iterable[str], target: Path) -> None:
    """Copies the files;

    Only "executable or not" is left of their permissions (no setuid, no odd modes).
    """
    for name in names:
        source, destination = tree / name, target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            destination.symlink_to(os.readlink(source))
        else:
            shutil.copyfile(source, destination)
            destination.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
            os.utime(destination, (source.stat().st_mtime, source.stat().st_mtime))
