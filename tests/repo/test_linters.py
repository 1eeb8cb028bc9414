"""The linters, as tests: the one command that runs the tests is the whole gate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "imports": ["lint-imports"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", COMMANDS)
def test_linter(name: str, top: Path) -> None:
    program, *arguments = COMMANDS[name]
    command = [str(Path(sys.executable).parent / program), *arguments]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
