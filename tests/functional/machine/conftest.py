"""The real agent as a zip application, and real OpenSSH servers."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.guest import zipapp
from hybrid.paths import Paths
from tests.sshbox import AVAILABLE, SshServer, serving


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zipapp.build(tmp_path_factory.mktemp("agent") / "agent.pyz")


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path that containers could get through.

    Nothing that runs from it survives the test.
    """
    if os.geteuid():
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(prefix="hym", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for process in agents_below(name):
            os.kill(process, signal.SIGKILL)


def agents_below(directory: str) -> list[int]:
    """Processes whose command line names something below the test's own directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(directory.encode() + b"/") for word in words):
                found.append(int(entry.name))
    return found


@pytest.fixture
def paths(place: Path) -> Paths:
    return Paths(place / "root", place / "run")


@pytest.fixture
def box(place: Path) -> Iterator[SshServer]:
    if not AVAILABLE:
        pytest.skip("no OpenSSH server")
    with serving(place) as server:
        yield server
