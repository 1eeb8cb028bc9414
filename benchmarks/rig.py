"""The hybrid under test: a daemon with a root of its own, as users drive it."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.memory import processes
from benchmarks.paired import output
from hybrid.client.address import UnixAddress
from hybrid.client.engine import Engine
from tests.livedaemon import LiveDaemon, live_daemon

HYBRID = str(Path(sys.executable).parent / "hybrid")
SETTLE_WITHIN = 30.0
IMAGES = ("busybox", "nginx")


class Rig:
    """``cli`` and ``docker`` are the beginnings of command lines: hybrid's own client and Docker's."""

    def __init__(self, daemon: LiveDaemon, docker: str) -> None:
        self.daemon = daemon
        self.paths = daemon.paths
        self.cli = [HYBRID, "--root", str(self.paths.root)]
        self.docker = [docker, "--host", f"unix://{self.paths.socket}"]
        self.engine = Engine(UnixAddress(self.paths.socket))

    def run(self, *arguments: str) -> str:
        """The output of a hybrid command that must succeed."""
        return output([*self.cli, *arguments])

    @contextlib.contextmanager
    def container(
        self, *flags: str, image: str = "busybox", command: tuple[str, ...] = ("sleep", "100000")
    ) -> Iterator[dict[str, Any]]:
        """A running container, by default one that sleeps, as ``inspect`` shows it; removed at the end."""
        identity = self.run("run", "-d", *flags, image, *command).strip()
        try:
            yield self.engine.container(identity)
        finally:
            self.run("rm", "-f", identity)

    def in_machine(self, machine: str, *command: str) -> str:
        return self.run("machine", "shell", machine, *command)

    def settle(self) -> None:
        """Waits until as many guests stand ready as are to, so that no turn pays for another's."""
        end = time.monotonic() + SETTLE_WITHIN
        while time.monotonic() < end:
            pool = self.engine.call("GET", "/hybrid/info")["Pool"]
            if pool["Ready"] >= pool["Size"]:
                return
            time.sleep(0.2)

    def guests(self) -> list[int]:
        """The QEMU processes of this daemon."""
        return processes(f"guest=hybrid-{self.paths.instance}-")

    def guest_command(self) -> list[str]:
        """The command line of a guest's QEMU."""
        with self.container():
            line = Path(f"/proc/{self.guests()[0]}/cmdline").read_bytes().decode()
        return line.rstrip("\0").split("\0")

    def helpers(self) -> list[int]:
        """All processes that this daemon's containers need, itself and its host's agent apart."""
        own = {*processes(str(self.paths.run)), *processes(str(self.paths.root)), *self.guests()}
        return sorted(own - {self.daemon.pid, *self.host_agent()})

    def host_agent(self) -> list[int]:
        return processes(str(self.paths.host_agent), "--unix")


@contextlib.contextmanager
def rig(docker: str, settings: dict[str, Any]) -> Iterator[Rig]:
    """A daemon of that configuration, with the images loaded; all of it is gone in the end."""
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-", dir="/var/tmp") as root:
        Path(root, "daemon.yaml").write_text(json.dumps(settings))
        with live_daemon(guest=True, root=Path(root)) as daemon:
            for image in IMAGES:
                daemon.load(image)
            yield Rig(daemon, docker)
