"""A real daemon as a child process, with a real agent on this host's kernel, behind its real socket. No guests."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import archives
from tests.livedaemon import LiveDaemon, live_daemon

NEEDED = ("crun", "mksquashfs", "busybox", "docker", "dnsmasq", "nft")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0 or missing:
                item.add_marker(pytest.mark.skip(reason=f"needs root and {', '.join(NEEDED)}"))


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("hybrid")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


class RunningDaemon:
    """A daemon as Docker's own clients see it; ``end`` and ``start`` it again as often as a test likes."""

    def __init__(self, live: LiveDaemon) -> None:
        self.live = live
        self.paths = live.paths
        self.root = live.paths.root
        self.log = live.paths.daemon_log
        self.start, self.end = live.start, live.end

    @property
    def host(self) -> str:
        return f"unix://{self.paths.socket}"

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = _UnixConnection(self.paths.socket)
        try:
            data = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
            if data is not None:
                headers.setdefault("Content-Type", "application/json")
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def docker(
        self, *arguments: str, stdin: bytes = b"", check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """The unmodified docker CLI."""
        done = subprocess.run(
            ["docker", *arguments],
            input=stdin,
            capture_output=True,
            timeout=60,
            env={**os.environ, "DOCKER_HOST": self.host},
        )
        if check:
            assert done.returncode == 0, done.stderr.decode()
        return done

    def run(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """``docker run --isolation container …``."""
        return self.docker("run", "--isolation", "container", *arguments, **more)

    def inspect(self, name: str) -> Any:
        return self.call("GET", f"/containers/{name}/json").json

    def clean(self) -> None:
        for container in self.call("GET", "/containers/json?all=1").json:
            self.call("DELETE", f"/containers/{container['Id']}?force=1&v=1")


def busybox_image() -> bytes:
    """An archive of one image, ``busybox``, from this host's static busybox."""
    program = Path(str(shutil.which("busybox"))).resolve().read_bytes()
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
    layer = archives.tar(
        [
            *(
                archives.directory(f"{name}/")
                for name in ("bin", "etc", "proc", "sys", "dev", "root")
            ),
            archives.directory("tmp/", mode=0o1777),
            archives.member("bin/busybox", program, mode=0o755),
            *(
                archives.symlink(f"bin/{name}", "busybox")
                for name in applets.stdout.split()
                if name != "busybox"
            ),
            archives.member(
                "etc/passwd", b"root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n"
            ),
            archives.member("etc/group", b"root:x:0:\nann:x:1000:\n"),
        ]
    )
    top = archives.tar([archives.member("etc/motd", b"hello\n")])
    return archives.ImageMade([layer, top], ["busybox:latest"], {"Cmd": ["sh"]}).docker_archive()


@pytest.fixture(scope="session")
def session_daemon() -> Iterator[RunningDaemon]:
    with live_daemon() as live:
        running = RunningDaemon(live)
        answer = running.call(
            "POST", "/images/load", busybox_image(), **{"Content-Type": "application/x-tar"}
        )
        assert answer.status == 200, answer.body
        yield running


@pytest.fixture
def daemon(session_daemon: RunningDaemon) -> Iterator[RunningDaemon]:
    """The one daemon of the session, without containers."""
    yield session_daemon
    session_daemon.clean()
