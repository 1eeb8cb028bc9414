"""sshd of this machine as a box to reach: a real OpenSSH server with keys and configuration of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
AVAILABLE = SSHD is not None and shutil.which("ssh-keygen") is not None


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

    @contextlib.contextmanager
    def lacking(self, missing: str) -> Iterator[None]:
        """Logins find few programs, and not that one: a forced command runs theirs with a path of links only."""
        programs = self.directory / f"without-{missing}"
        programs.mkdir()
        for name in ("sh", "id", "uname", "head", "test", "python3", "crun"):
            found = sys.executable if name == "python3" else shutil.which(name)
            if found and name != missing:
                (programs / name).symlink_to(os.path.realpath(found))
        wrapper = programs / "login"
        wrapper.write_text(
            f"#!/bin/sh\nPATH={programs}; export PATH\n"
            'exec /bin/sh -c "$(echo "$SSH_ORIGINAL_COMMAND" | /bin/sed "s/^PATH=.*//")"\n'
        )
        wrapper.chmod(0o755)
        self.stop()
        self.start(f"ForceCommand={wrapper}")
        try:
            yield
        finally:
            self.stop()
            self.start()

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


@contextlib.contextmanager
def serving(place: Path) -> Iterator[SshServer]:
    """A server that lets the client's key in; all it needs is below ``place``."""
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
    try:
        yield server
    finally:
        server.stop()
