"""Day-to-day commands against a real daemon, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.livedaemon import LiveDaemon, until

pytestmark = pytest.mark.root
HERE = ("--isolation", "container")


@pytest.fixture
def name(live: LiveDaemon) -> Iterator[str]:
    """A free container name; whatever has it in the end is removed."""
    free = f"t{uuid.uuid4().hex[:10]}"
    yield free
    live.run("rm", "-fv", free)


Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(live: LiveDaemon) -> Run:
    """``hybrid run --rm`` of busybox on this host."""

    def call(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        flags = [a for a in arguments[:-1] if a]
        return live.run(
            "run", "--rm", *HERE, *flags, "busybox", *arguments[-1].split("\x1f"), stdin=stdin
        )

    return call


def sh(script: str) -> str:
    return f"sh\x1f-c\x1f{script}"


def test_output_exit_code_and_both_streams(run: Run) -> None:
    done = run(sh("echo out; echo err >&2; exit 7"))
    assert (done.returncode, done.stdout) == (7, b"out\n")
    assert done.stderr.endswith(b"err\n")
    assert b"one boundary only" in done.stderr


@pytest.mark.parametrize(
    ("command", "code"), [("nope", 127), ("/etc", 126), (sh("exit 0"), 0), (sh("kill -TERM 1"), 0)]
)
def test_exit_codes_of_docker(run: Run, command: str, code: int) -> None:
    assert run(command).returncode == code


def test_a_signal_is_128_and_its_number(live: LiveDaemon, name: str) -> None:
    live.out("run", "-d", "--name", name, *HERE, "busybox", "sleep", "100")
    waiting = subprocess.Popen(live.argv("wait", name), stdout=subprocess.PIPE)
    live.out("kill", name)
    assert waiting.communicate(timeout=30)[0] == b"137\n"


def test_stdin_to_its_end(run: Run) -> None:
    data = bytes(range(256)) * 4096
    assert run("-i", "cat", stdin=data).stdout == data


def test_flags_reach_the_process(run: Run) -> None:
    script = "echo $A-$B; pwd; id -u; id -g; hostname"
    done = run("-e", "A=1", "-e", "B=2 3", "-w", "/tmp", "-u", "5:6", "-h", "boxy", sh(script))
    assert done.stdout.decode().splitlines() == ["1-2 3", "/tmp", "5", "6", "boxy"]


def test_entrypoint(run: Run) -> None:
    assert run("--entrypoint", "echo", "x").stdout == b"x\n"


def test_read_only_root_and_tmpfs(run: Run) -> None:
    script = "touch /x 2>/dev/null || echo refused; touch /t/x && echo written"
    done = run("--read-only", "--tmpfs", "/t", sh(script))
    assert done.stdout == b"refused\nwritten\n"


def test_limits_are_the_kernels(live: LiveDaemon, name: str) -> None:
    # Read back, not provoked: a process at its memory limit may thrash for minutes before it dies.
    live.out(
        "run", "-d", "--name", name, *HERE, "--memory", "16m", "--pids-limit", "9",
        "busybox", "sleep", "60",
    )  # fmt: skip
    found = limits(live.inspect(name)["State"]["Pid"])
    assert (found["memory"], found["pids"]) == (str(16 << 20), "9")


def limits(pid: int) -> dict[str, str]:
    """Memory and process limit of the cgroups that a process is in, of either version."""
    root, result = Path("/sys/fs/cgroup"), {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller, one, two in (
            ("memory", "memory.limit_in_bytes", "memory.max"),
            ("pids", "pids.max", "pids.max"),
        ):
            file = root / (controllers or ".") / path[1:] / (one if controllers else two)
            if controllers in ("", controller) and file.exists():
                result.setdefault(controller, file.read_text().strip())
    return result


def test_named_volume_keeps_data(live: LiveDaemon, run: Run) -> None:
    volume = f"v{uuid.uuid4().hex[:8]}"
    try:
        assert run("-v", f"{volume}:/d", sh("echo kept > /d/f")).returncode == 0
        assert run("-v", f"{volume}:/d:ro", sh("cat /d/f; touch /d/g")).stdout == b"kept\n"
        assert volume in live.out("volume", "ls", "-q").split()
    finally:
        live.run("volume", "rm", volume)
    assert volume not in live.out("volume", "ls", "-q").split()


def test_detached_life(live: LiveDaemon, name: str) -> None:
    identity = live.out(
        "run", "-d", "--name", name, *HERE, "busybox", "sh", "-c", "echo up; sleep 60"
    )
    assert live.out("ps", "-q", "--no-trunc", "--filter", f"name={name}") == identity
    until(lambda: live.out("logs", name) == "up\n")
    assert live.inspect(name)["Hybrid"]["Isolation"] == "container"
    assert live.out("exec", "-e", "X=1", name, "sh", "-c", "echo $X") == "1\n"
    assert live.run("exec", name, "sh", "-c", "exit 9").returncode == 9
    assert live.run("exec", name, "nope").returncode == 127
    assert live.out("exec", "-i", name, "cat", stdin=b"abc") == "abc"
    assert live.out("stop", "-t", "1", name) == f"{name}\n"
    assert live.inspect(name)["State"]["Status"] == "exited"
    assert live.out("start", name) == f"{name}\n"
    assert live.out("rm", "-f", name) == f"{name}\n"
    assert live.run("inspect", name).returncode == 1


def test_logs_follow_to_the_end(live: LiveDaemon, name: str) -> None:
    script = "for i in 1 2 3; do echo $i; sleep 0.3; done"
    live.out("run", "-d", "--name", name, *HERE, "busybox", "sh", "-c", script)
    assert live.out("logs", "-f", name) == "1\n2\n3\n"
    assert live.out("logs", "--tail", "1", name) == "3\n"
    assert "T" in live.out("logs", "--timestamps", name).split()[0]


def test_start_attached(live: LiveDaemon, name: str) -> None:
    live.out("create", "--name", name, *HERE, "busybox", "sh", "-c", "echo again; exit 3")
    for _ in range(2):
        done = live.run("start", "-a", name)
        assert (done.returncode, done.stdout) == (3, b"again\n")


def test_published_port_answers_and_a_used_one_is_refused(live: LiveDaemon, name: str) -> None:
    live.out(
        "run", "-d", "--name", name, *HERE, "-p", "127.0.0.1:18473:80",
        "busybox", "sh", "-c", "echo page > /tmp/index.html; httpd -f -p 80 -h /tmp",
    )  # fmt: skip

    def page() -> bytes:
        command = ["curl", "-s", "-m", "2", "http://127.0.0.1:18473/"]
        return subprocess.run(command, capture_output=True).stdout

    until(lambda: page() == b"page\n")
    done = live.run("run", "--rm", *HERE, "-p", "127.0.0.1:18473:80", "busybox", "true")
    assert done.returncode == 125
    assert b"18473" in done.stderr


def test_name_in_use(live: LiveDaemon, name: str) -> None:
    live.out("create", "--name", name, *HERE, "busybox", "true")
    done = live.run("run", "--name", name, *HERE, "busybox", "true")
    assert done.returncode == 125
    assert b"is already in use" in done.stderr


def test_errors_are_one_line(live: LiveDaemon, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"not a tar archive")
    for arguments in (
        ("run", "nope"),
        ("run", "--isolation", "space", "busybox"),
        ("run", *HERE, "-p", "0:x", "busybox"),
        ("run", *HERE, "--mount", "type=bind,source=/nonexistent-x,target=/x", "busybox"),
        ("run", *HERE, "--network", "nope", "busybox"),
        ("logs", "nope"),
        ("image", "load", "-i", str(tmp_path / "bad.tar")),
        ("image", "rm", "nope"),
        ("machine", "inspect", "nope"),
    ):
        done = live.run(*arguments)
        errors = [line for line in done.stderr.splitlines() if b"warning:" not in line]
        assert done.returncode in (1, 125), f"{arguments}: {done}"
        assert len(errors) == 1 and errors[0].startswith(b"hybrid: "), f"{arguments}: {done}"
    assert live.out("ps", "-aq", "--filter", "status=created") == ""


def test_listings_as_json(live: LiveDaemon, name: str) -> None:
    live.out("create", "--name", name, *HERE, "busybox", "true")
    for command in (("ps", "-a"), ("image", "ls"), ("network", "ls"), ("machine", "ls")):
        lines = live.out(*command, "--format", "json").splitlines()
        assert lines and all(json.loads(line) for line in lines), command
    assert "busybox" in live.out("image", "ls")
    assert live.out("inspect", "--type", "image", "busybox")


def test_no_permission_is_said(live: LiveDaemon) -> None:
    # The interpreter itself may be out of nobody's reach: rights are dropped once all is imported,
    # which a first run does.
    code = (
        "import os, sys, hybrid.cli.main as main; main.run();"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(main.run())"
    )
    arguments = ["--root", str(live.paths.root), "ps"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    assert done.returncode == 1
    assert b"hybrid: no permission on the daemon's socket" in done.stderr


def test_a_killed_daemon_loses_nothing(live: LiveDaemon, name: str) -> None:
    script = "i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 5"
    live.out("run", "-d", "--name", name, *HERE, "busybox", "sh", "-c", script)
    time.sleep(0.5)
    live.kill()
    time.sleep(1)
    assert live.out("wait", name) == "5\n"  # the command started a new daemon
    assert live.out("logs", name).split() == [str(i) for i in range(40)]


def test_up_finds_by_name_and_down_keeps_the_data(live: LiveDaemon, tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(
        """
name: functional
services:
  store:
    image: busybox
    isolation: container
    command: sh -c 'echo x >> /d/runs; httpd -f -p 8000 -h /d'
    volumes: [data:/d]
    networks: [back]
    healthcheck: {test: wget -q -O - http://127.0.0.1:8000/runs, interval: 1s, start_interval: 1s}
  front:
    image: busybox
    isolation: container
    command: sleep 1000
    networks: [back]
    depends_on: {store: {condition: service_healthy}}
networks: {back: {internal: true}}
volumes: {data: {}}
"""
    )
    flags = ("-f", str(file))
    try:
        table = live.out("up", *flags)
        assert table.splitlines()[0].split()[:3] == ["SERVICE", "ISOLATION", "MACHINE"]
        read = ("exec", "functional-front-1", "wget", "-q", "-O", "-", "http://store:8000/runs")
        assert live.out(*read) == "x\n"
        before = live.inspect("functional-store-1")["Id"]
        live.out("up", *flags)
        assert live.inspect("functional-store-1")["Id"] == before
        live.out("down", *flags)
        assert "functional" not in live.out("network", "ls")
        live.out("up", *flags)
        assert live.out(*read) == "x\nx\n"
    finally:
        live.out("down", "-v", *flags)
    assert "functional_data" not in live.out("volume", "ls", "-q")
