"""The docker command's run, ps, logs, exec, stop, rm and what they need."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.livedaemon import LiveDaemon, until

pytestmark = pytest.mark.root
Docker = Callable[..., subprocess.CompletedProcess[bytes]]
HERE = ("--isolation", "container")


@pytest.fixture
def name(docker_cli: Docker) -> Iterator[str]:
    free = f"d{uuid.uuid4().hex[:10]}"
    yield free
    docker_cli("rm", "-fv", free)


def test_run(docker_cli: Docker) -> None:
    done = docker_cli("run", "--rm", *HERE, "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, b"out\n")
    assert done.stderr.endswith(b"err\n")


def test_run_with_stdin(docker_cli: Docker) -> None:
    done = docker_cli("run", "-i", "--rm", *HERE, "busybox", "wc", "-c", stdin=b"x" * 100_000)
    assert done.stdout == b"100000\n"


@pytest.mark.parametrize(("command", "code"), [("nope", 127), ("/etc", 126)])
def test_run_of_what_cannot_run(docker_cli: Docker, command: str, code: int) -> None:
    assert docker_cli("run", "--rm", *HERE, "busybox", command).returncode == code


def test_unknown_image_asks_the_registry_in_vain(docker_cli: Docker) -> None:
    done = docker_cli("run", "--rm", "--pull", "never", *HERE, "nope-nope")
    assert done.returncode == 125
    assert b"No such image: nope-nope:latest" in done.stderr


def test_a_life(docker_cli: Docker, name: str) -> None:
    script = "echo up; trap 'exit 3' TERM; while :; do sleep 0.1; done"
    started = docker_cli("run", "-d", "--name", name, *HERE, "busybox", "sh", "-c", script)
    identity = started.stdout.decode().strip()
    assert started.returncode == 0 and len(identity) == 64
    until(lambda: docker_cli("logs", name).stdout == b"up\n")
    assert (
        docker_cli("ps", "-q", "--no-trunc", "-f", f"name={name}").stdout.decode().strip()
        == identity
    )
    assert docker_cli("exec", name, "sh", "-c", "echo in; exit 4").returncode == 4
    assert docker_cli("exec", "-i", name, "cat", stdin=b"abc").stdout == b"abc"
    assert docker_cli("stop", name).returncode == 0
    state = json.loads(docker_cli("inspect", name).stdout)[0]["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 3)
    assert docker_cli("start", name).returncode == 0
    assert docker_cli("kill", name).returncode == 0
    assert docker_cli("wait", name).stdout == b"137\n"
    assert docker_cli("rm", name).returncode == 0
    assert docker_cli("inspect", name).returncode == 1


def test_logs_follow(docker_cli: Docker, name: str) -> None:
    script = "for i in 1 2 3; do echo $i; sleep 0.2; done"
    docker_cli("run", "-d", "--name", name, *HERE, "busybox", "sh", "-c", script)
    assert docker_cli("logs", "-f", name).stdout == b"1\n2\n3\n"


def test_a_terminal(live: LiveDaemon, name: str) -> None:
    near, far = pty.openpty()
    program = shutil.which("docker") or "docker"
    process = subprocess.Popen(
        [
            program,
            "-H",
            f"unix://{live.paths.socket}",
            "run",
            "-it",
            "--rm",
            "--name",
            name,
            *HERE,
            "busybox",
            "sh",
        ],
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
    )
    os.close(far)
    seen = _until_shown(near, b"", b"# ")
    os.write(near, b"tty; exit 5\n")
    seen = _until_shown(near, seen, b"/dev/pts/")
    assert process.wait(timeout=30) == 5, seen
    os.close(near)


def _until_shown(near: int, seen: bytes, text: bytes) -> bytes:
    deadline = time.monotonic() + 60
    while text not in seen:
        assert time.monotonic() < deadline, seen
        try:
            seen += os.read(near, 4096)
        except OSError:
            break
    return seen


def test_version_info_and_images(docker_cli: Docker) -> None:
    assert docker_cli("version").returncode == 0
    assert docker_cli("info").returncode == 0
    assert b"busybox" in docker_cli("images").stdout
    assert docker_cli("image", "inspect", "busybox").returncode == 0


def test_volumes_and_networks(docker_cli: Docker, name: str) -> None:
    assert docker_cli("volume", "create", name).returncode == 0
    write = (
        "run",
        "--rm",
        *HERE,
        "-v",
        f"{name}:/d",
        "busybox",
        "sh",
        "-c",
        "echo 1 >> /d/f; cat /d/f",
    )
    assert docker_cli(*write).stdout == b"1\n"
    assert docker_cli(*write).stdout == b"1\n1\n"
    assert docker_cli("volume", "rm", name).returncode == 0
    assert docker_cli("network", "create", name).returncode == 0
    joined = docker_cli("run", "--rm", *HERE, "--network", name, "busybox", "ip", "-4", "a")
    assert b"eth0" in joined.stdout
    assert docker_cli("network", "rm", name).returncode == 0
