"""What no linter checks: rules of this repository about its own files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent.parent
# What the agent may import: the standard library and what travels in its zipapp.
AGENT_MAY = ("hybrid.wire", "hybrid.errors", "hybrid.units", "hybrid.agent")
LINES_MAX = 520
VAGUE = {"util", "utils", "helper", "helpers", "manager", "common", "base", "misc"}
# A machine's own paths, and hosts that packages come from: neither belongs in a file that travels.
OWN_PATH = re.compile(r"/(?:home|Users)/\w+/|/work/|/opt/pypi|/tmp/venv")
HOST = re.compile(
    r"https?://(?:[\w-]+\.)*(?:pypi|pythonhosted|debian|docker|ghcr|npmjs)\.\w+", re.I
)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, check=True)
    names = listed.stdout.decode().split("\0")
    return [TOP / name for name in names if name and (TOP / name).is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        if path != Path(__file__):
            try:
                yield path, path.read_text()
            except UnicodeDecodeError:
                continue


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""


@pytest.mark.parametrize("package", ["agent", "wire"])
def test_what_travels_into_the_guest_is_standard_library(package: str) -> None:
    for path in sorted((TOP / "hybrid" / package).rglob("*.py")):
        for name in imports(path):
            own = name.startswith(AGENT_MAY)
            assert own or name.split(".")[0] in sys.stdlib_module_names, f"{path}: imports {name}"


def test_the_client_imports_nothing_that_is_slow_to_import() -> None:
    slow = {"aiohttp", "asyncio", "pydantic", "requests", "rich", "paramiko", "http", "ssl"}
    code = (
        "import sys, hybrid.cli.main, hybrid.client.engine;"
        f"print(sorted({slow!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_package_itself_imports_nothing() -> None:
    assert not list(imports(TOP / "hybrid" / "__init__.py"))


def test_no_path_of_a_machine_and_no_registry_host() -> None:
    for path, text in texts():
        for pattern in (OWN_PATH, HOST):
            found = pattern.search(text)
            assert not found, f"{path}: {found and found[0]}"


def test_modules_are_small_and_named_for_what_they_hold() -> None:
    for path in (TOP / "hybrid").rglob("*.py"):
        assert path.stem not in VAGUE, path
        lines = path.read_text().count("\n")
        assert lines <= LINES_MAX, f"{path} has {lines} lines: split it"


def test_nothing_is_left_undone() -> None:
    mark = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
    for path, text in texts():
        if path.suffix == ".py":
            found = mark.search(text)
            assert not found, f"{path}: {found and found[0]}"


def test_the_lock_pins_every_dependency_by_hash() -> None:
    text = (TOP / "requirements.lock").read_text()
    pinned = re.findall(r"^([\w.-]+)==", text, re.M)
    assert len(re.findall(r"^[\w.-]+==[^\n]*\\\n    --hash=sha256:", text, re.M)) == len(pinned)
    declared = (TOP / "pyproject.toml").read_text()
    for name in ("aiohttp", "libvirt-python", "paramiko", "pydantic", "pyroute2", "typer"):
        assert f'"{name}' in declared
        assert name in pinned
    assert "://" not in text
