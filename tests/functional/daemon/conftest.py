"""A real daemon as a child process, with a real agent on this host's kernel, behind its real socket. No guests."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hybrid.paths import Paths
from tests import archives

ROOT = Path(__file__).parents[3]
NEEDED = ("crun", "mksquashfs", "busybox", "docker", "dnsmasq", "nft")
RUN = "import sys; from pathlib import Path; from hybrid.daemon.main import run; run(Path(sys.argv[1]), [])"
START_TIMEOUT = 30.0


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
    """One daemon; ``kill`` and ``start`` again as often as a test likes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = Paths.of(root)
        self.log = root / "test.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self.paths.socket}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(self.root)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if self.call("GET", "/_ping").status == 200:
                    return
            except OSError:
                time.sleep(0.05)
        pytest.fail(f"the daemon did not start:\n{self.log.read_text()}")

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

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
    root = Path(tempfile.mkdtemp(prefix="hybrid-test-", dir="/var/tmp"))
    root.chmod(0o711)
    running = RunningDaemon(root)
    running.start()
    answer = running.call(
        "POST", "/images/load", busybox_image(), **{"Content-Type": "application/x-tar"}
    )
    assert answer.status == 200, answer.body
    yield running
    running.clean()
    running.call("POST", "/hybrid/machines/host/stop?t=2")
    assert running.end() == 0
    shutil.rmtree(root)
    shutil.rmtree(running.paths.run, ignore_errors=True)


@pytest.fixture
def daemon(session_daemon: RunningDaemon) -> Iterator[RunningDaemon]:
    """The one daemon of the session, without containers."""
    yield session_daemon
    session_daemon.clean()
