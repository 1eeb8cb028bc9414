"""The real agent as a zip application, and real OpenSSH servers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hybrid.guest import zipapp
from hybrid.paths import Paths

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")


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


@dataclass
class SshServer:
    """sshd of this machine, with keys and configuration of its own, on a port of 127.0.0.1."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        """The client's home directory: .ssh with a key that is let in."""
        return self.directory / "home"

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh" / "known_hosts"

    @property
    def url(self) -> str:
        return f"ssh://root@127.0.0.1:{self.port}"

    def host_key(self) -> str:
        return (self.directory / "host_key.pub").read_text()

    def fingerprint(self) -> str:
        listed = subprocess.run(
            ["ssh-keygen", "-lf", self.directory / "host_key.pub"], capture_output=True, text=True
        )
        return listed.stdout.split()[1]

    def trust(self) -> None:
        """The box's key is in the user's known_hosts."""
        lines = ["# a comment", "broken ssh-ed25519 AAA", "other ssh-unknown AAAA"]
        lines.append(f"[127.0.0.1]:{self.port} {self.host_key()}")
        self.known_hosts.write_text("\n".join(lines))

    def new_host_key(self) -> None:
        for name in ("host_key", "host_key.pub"):
            (self.directory / name).unlink(missing_ok=True)
        keygen(self.directory / "host_key")

    def start(self, *options: str) -> None:
        assert SSHD is not None
        command = [SSHD, "-D", "-e", "-f", str(self.directory / "config")]
        for option in options:
            command += ["-o", option]
        with (self.directory / "log").open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.directory / "log").read_text()
                time.sleep(0.02)

    def cut(self) -> None:
        """Ends all connections at once, as a network that went away would."""
        for pid in descendants(self.process.pid if self.process else 0):
            if b"sshd" in command_line(pid):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        if self.process is not None:
            self.cut()
            self.process.kill()
            self.process.wait()
            self.process = None


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    found = []
    for child in map(int, children):
        found += [*descendants(child), child]
    return found


def keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


@pytest.fixture
def box(place: Path) -> Iterator[SshServer]:
    if SSHD is None or not shutil.which("ssh-keygen"):
        pytest.skip("no OpenSSH server")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own privilege separation directory
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = SshServer(place, port)
    server.new_host_key()
    (server.home / ".ssh").mkdir(parents=True, mode=0o700)
    keygen(server.home / ".ssh" / "id_ed25519")
    authorized = place / "authorized_keys"
    authorized.write_text((server.home / ".ssh" / "id_ed25519.pub").read_text())
    (place / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    server.start()
    yield server
    server.stop()
