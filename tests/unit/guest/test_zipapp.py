"""The agent as one file."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hybrid.errors import Internal
from hybrid.guest import zipapp


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = zipapp.build(tmp_path / "one.pyz"), zipapp.build(tmp_path / "two.pyz")
    assert first.read_bytes() == second.read_bytes()


def test_it_holds_the_agent_and_what_the_agent_may_use(tmp_path: Path) -> None:
    with zipfile.ZipFile(zipapp.build(tmp_path / "agent.pyz")) as archive:
        names = archive.namelist()
    assert names[0] == "__main__.py"
    allowed = ("hybrid/__init__.py", "hybrid/errors.py", "hybrid/units.py")
    assert all(
        name in allowed or name.startswith(("hybrid/agent/", "hybrid/wire/")) for name in names[1:]
    )


def test_it_starts_without_this_package(tmp_path: Path) -> None:
    agent = zipapp.build(tmp_path / "agent.pyz")
    done = subprocess.run(
        [sys.executable, "-I", "-S", agent, "--nonsense"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("hybrid agent: ")


def test_a_missing_agent_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Internal, match="sources are missing"):
        zipapp.members(tmp_path)
