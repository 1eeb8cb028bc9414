"""A real daemon with a root of its own, driven by the real command line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hybrid.client.address import UnixAddress
from hybrid.client.engine import Engine
from hybrid.errors import HybridError
from hybrid.machine import standing
from hybrid.paths import Paths
from tests.built import BUILT, example

DEADLINE = 60.0

Done = subprocess.CompletedProcess[bytes]


class LiveDaemon:
    """The daemon of one root. The first command starts it, as it does for a user."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths.of(root)

    def __repr__(self) -> str:
        return f"<LiveDaemon {self.paths.root}>"

    def argv(self, *arguments: str) -> list[str]:
        """The command line that talks to this daemon."""
        return [
            sys.executable,
            "-m",
            "hybrid.cli.main",
            "--root",
            str(self.paths.root),
            *arguments,
        ]

    def run(self, *arguments: str, stdin: bytes = b"", timeout: float = 300, **more: Any) -> Done:
        """One command to its end."""
        return subprocess.run(
            self.argv(*arguments), input=stdin, capture_output=True, timeout=timeout, **more
        )

    def out(self, *arguments: str, stdin: bytes = b"") -> str:
        """The output of a command that must succeed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}: {done.stderr.decode()}"
        return done.stdout.decode()

    def inspect(self, name: str) -> dict[str, Any]:
        """What the daemon knows about a container or image."""
        found: list[dict[str, Any]] = json.loads(self.out("inspect", name))
        return found[0]

    def load(self, name: str) -> None:
        """Loads the example image of that name."""
        self.out("image", "load", "-q", "-i", str(example(name)))

    @property
    def pid(self) -> int:
        return int(self.paths.pid_file.read_text())

    def start(self) -> None:
        """As any command does when no daemon runs."""
        self.out("info")

    def end(self, number: int = signal.SIGTERM) -> None:
        """The signal, and the daemon is gone; what it runs stays."""
        pid = self.pid
        os.kill(pid, number)
        until(lambda: not _alive(pid))

    def kill(self) -> None:
        """kill -9, and nothing else."""
        self.end(signal.SIGKILL)

    def kill_during(self, moment: float, request: Callable[[Engine], object]) -> None:
        """Kills the daemon so long after the request was sent; then another one is there."""

        def send() -> None:
            with contextlib.suppress(HybridError, OSError):
                request(Engine(UnixAddress(self.paths.socket)))

        thread = threading.Thread(target=send)
        thread.start()
        time.sleep(moment)
        self.kill()
        thread.join()
        self.start()

    def close(self) -> None:
        """Removes all that was made and stops the daemon."""
        try:
            if names := self.out("ps", "-aq").split():
                self.run("rm", "-fv", *names)
            self.end()
        finally:
            self._sweep()

    def _sweep(self) -> None:
        """What outlives a daemon by design must not outlive a test: agents, name servers, networks."""
        own = str(self.paths.run).encode() + b"/"
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if own in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        for device in Path("/sys/class/net").glob(f"hy{self.paths.instance[:4]}*"):
            subprocess.run(["ip", "link", "delete", device.name], capture_output=True)
        for family in ("inet", "bridge"):
            table = ["nft", "delete", "table", family, f"hybrid_{self.paths.instance}"]
            subprocess.run(table, capture_output=True)
        for group in (f"hybrid-{self.paths.instance}-agent", f"hybrid-{self.paths.instance}"):
            standing.remove(group)
        shutil.rmtree(self.paths.run, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Waits for something that must become true."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def live_daemon(
    *, guest: bool = False, root: Path | None = None, pool: int = 0
) -> Iterator[LiveDaemon]:
    """A daemon that is gone with all that it made when the block ends. ``root``: a directory for it, empty but for
    its configuration; without one ``pool`` says how many guests stand ready.
    """
    with contextlib.ExitStack() as stack:
        if root is None:
            made = tempfile.TemporaryDirectory(prefix="hybrid-", dir="/var/tmp")
            root = Path(stack.enter_context(made))
        root.chmod(0o711)
        if guest:
            for built in (BUILT.guest, BUILT.tools):
                (root / built.name).symlink_to(built)
        daemon = LiveDaemon(root)
        if not daemon.paths.config.exists():
            daemon.paths.config.write_text(f"pool_size: {pool}\n")
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.close()
