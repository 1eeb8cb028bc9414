"""The tools tree: helper programs of the guests' Debian release, whatever release the host is.

Each program runs through the tree's own dynamic loader, so the host's libraries don't matter to it.
Trees are content-addressed below ``paths.tools``; a running program keeps the tree it was started
from.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from hybrid.errors import NotFound
from hybrid.guest import bootstrap, tree
from hybrid.guest.recipe import Recipe, publish_link
from hybrid.paths import Paths, data_dir

_PROGRAM_DIRECTORIES = ("usr/bin", "usr/sbin", "usr/libexec")
_INPUTS = "inputs"


def build_tools(paths: Paths, progress: Callable[[str], None], *, fresh: bool = False) -> Path:
    """The tools tree, built if need be; it becomes the current one. ``fresh`` asks Debian again."""
    recipe = Recipe(data_dir() / "images/tools")
    current = paths.tools / "current"
    inputs = recipe.digest()
    if not fresh and (current / _INPUTS).exists() and (current / _INPUTS).read_text() == inputs:
        return current.resolve()
    paths.tools.mkdir(parents=True, exist_ok=True)
    packages = recipe.section("packages.conf")
    tar = bootstrap.packages_tar(paths.root / "cache", packages, progress, fresh=fresh)
    with tempfile.TemporaryDirectory(dir=paths.tools, prefix="build-") as scratch:
        unpacked, stage = Path(scratch) / "unpacked", Path(scratch) / "stage"
        bootstrap.unpack(tar, unpacked)
        rules = [*recipe.section("files.conf"), bootstrap.architecture().loader]
        chosen = tree.with_libraries(unpacked, tree.select(tree.files(unpacked), rules))
        tree.copy(unpacked, chosen, stage)
        name = _digest(stage, chosen)
        (stage / _INPUTS).write_text(inputs)
        stage.chmod(0o755)
        if not (paths.tools / name).exists():
            stage.rename(paths.tools / name)
        (paths.tools / name / _INPUTS).write_text(inputs)
    publish_link(current, name)
    progress(f"tools tree {name[:12]} is ready")
    return paths.tools / name


def _digest(stage: Path, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        path = stage / name
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def tool(paths: Paths, name: str) -> list[str]:
    """The start of the command line that runs a program of the tree; NotFound says what to do."""
    base = (paths.tools / "current").resolve()
    if not base.is_dir():
        raise NotFound("no tools tree: run 'hybrid guest build'")
    for directory in _PROGRAM_DIRECTORIES:
        program = base / directory / name
        if program.exists():
            return bootstrap.program(base, program)
    raise NotFound(f"the tools tree has no program {name}: run 'hybrid guest build'")
