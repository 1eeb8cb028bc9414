"""The unit file is one that systemd takes, and stopping it stops no container."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def unit(top: Path) -> str:
    return (top / "packaging/hybrid.service").read_text()


def test_only_the_daemon_is_stopped(unit: str) -> None:
    assert "\nKillMode=process\n" in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_it(unit: str, tmp_path: Path) -> None:
    there = unit.replace("/usr/local/bin/hybrid", str(Path(str(shutil.which("true"))).resolve()))
    assert there != unit
    (tmp_path / "hybrid.service").write_text(there)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "hybrid.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    own = [line for line in done.stderr.splitlines() if "hybrid" in line]
    assert own == [], done.stderr
