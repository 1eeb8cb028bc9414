"""One real daemon, and one real OpenSSH server whose box is this host: its containers share this host's kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hybrid.paths import data_dir
from tests.livedaemon import LiveDaemon, live_daemon
from tests.sshbox import AVAILABLE, SshServer, serving

NAME = "edge"
# Where SshProvider puts things on a box.
STATE = Path("/var/lib/hybrid-agent")


@dataclass
class Site:
    """The daemon, the box, and what is on the box."""

    live: LiveDaemon
    box: SshServer

    @property
    def machine(self) -> str:
        """The id of the box's machine."""
        return self.live.out("machine", "inspect", NAME).split('"Id": "')[1].split('"')[0]

    @property
    def directory(self) -> Path:
        return STATE / self.machine[:12]

    @property
    def agent(self) -> int:
        return int((self.directory / "pid").read_text().split()[0])

    def add(self) -> None:
        self.live.out("machine", "add", NAME, self.box.url, "--accept-host-key")


@pytest.fixture(scope="session")
def base() -> Iterator[Site]:
    if os.geteuid() or not AVAILABLE or shutil.which("crun") is None:
        pytest.skip("needs root, an OpenSSH server and crun")
    with (
        tempfile.TemporaryDirectory(prefix="hyr", dir="/tmp") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        place = Path(name)
        place.chmod(0o755)
        with serving(place) as box:
            _be_at_home(patch, box)
            with live_daemon() as live:
                live.load("busybox")
                _build_probe(live.paths.guest)
                yield Site(live, box)
                live.run("machine", "rm", "-f", NAME)


def _be_at_home(patch: pytest.MonkeyPatch, box: SshServer) -> None:
    """The daemon's ~/.ssh is the box's client's."""
    patch.setenv("HOME", str(box.home))
    patch.delenv("SSH_AUTH_SOCK", raising=False)


def _build_probe(guest: Path) -> None:
    """As the guest's build does, which needs much more than a compiler."""
    (guest / "current").mkdir(parents=True)
    source = data_dir() / "images" / "guest" / "probe.c"
    command = ["gcc", "-static", "-Os", "-o", str(guest / "current" / "probe"), str(source)]
    subprocess.run(command, check=True)


@pytest.fixture(autouse=True)
def at_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a daemon that a test's own command starts."""
    _be_at_home(monkeypatch, request.getfixturevalue("base").box)


@pytest.fixture
def site(base: Site) -> Iterator[Site]:
    """The box is added and reachable; containers are gone in the end."""
    if base.live.run("machine", "inspect", NAME).returncode:
        base.add()
    base.live.out("machine", "start", NAME)
    yield base
    if names := base.live.out("ps", "-aq").split():
        base.live.run("rm", "-f", *names)
