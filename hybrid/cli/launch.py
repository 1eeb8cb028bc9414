"""Starts a daemon in the background and waits until it answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from hybrid.cli.progress import progress
from hybrid.client.engine import Engine
from hybrid.errors import HybridError, Unavailable
from hybrid.paths import Paths

DEADLINE = 120.0  # the first start probes the accelerator by booting a guest
INTERVAL = 0.05


def launch(found: Engine, root: Path) -> None:
    """Starts the daemon of ``root``; returns once it answers, Unavailable with its last words
    else."""
    log = Paths.of(root).daemon_log
    root.mkdir(parents=True, exist_ok=True, mode=0o711)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(descriptor, "ab") as output:
        start = output.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "hybrid.cli.main", "--root", str(root), "daemon"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    with progress("starting the daemon"):
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if _answers(found):
                return
            if child.poll() is not None and not _answers(found):
                raise Unavailable(
                    f"the daemon did not start (exit code {child.returncode}); "
                    f"{log} says: {_last_words(log, start)}"
                )
            time.sleep(INTERVAL)
    raise Unavailable(f"the daemon did not answer within {DEADLINE:.0f} s; its log is {log}")


def _answers(found: Engine) -> bool:
    try:
        found.ping()
    except HybridError:
        return False
    return True


def _last_words(log: Path, start: int) -> str:
    with log.open("rb") as written:
        written.seek(start)
        lines = written.read(64 << 10).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing"
