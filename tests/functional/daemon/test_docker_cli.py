"""The unmodified docker CLI against the daemon's socket."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.functional.daemon.conftest import RunningDaemon


def test_run_gives_output_errors_and_the_exit_code(daemon: RunningDaemon) -> None:
    done = daemon.run("--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert b"err\n" in done.stderr
    assert daemon.call("GET", "/containers/json?all=1").json == []


def test_input_reaches_the_process_and_its_end_is_seen(daemon: RunningDaemon) -> None:
    data = os.urandom(1 << 20)
    assert daemon.run("--rm", "-i", "busybox", "cat", stdin=data).stdout == data
    assert daemon.run("--rm", "-i", "busybox", "wc", "-c", stdin=b"12345").stdout.strip() == b"5"


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("nosuch", 127, b"executable file not found in $PATH"),
        ("/nosuch", 127, b"no such file or directory"),
        ("/etc", 126, b"permission denied"),
    ],
)
def test_a_command_that_cannot_be_run_has_the_shells_exit_code(
    daemon: RunningDaemon, command: str, code: int, text: bytes
) -> None:
    done = daemon.run("--rm", "busybox", command, check=False)
    assert done.returncode == code
    assert text in done.stderr


def test_a_missing_image_is_said(daemon: RunningDaemon) -> None:
    done = daemon.run("nosuch", check=False)
    assert done.returncode == 125
    assert b"no registry client" in done.stderr


def test_signals_end_with_128_plus_their_number(daemon: RunningDaemon) -> None:
    daemon.run("-d", "--name", "sleeper", "busybox", "sleep", "100")
    daemon.docker("kill", "--signal", "KILL", "sleeper")
    assert daemon.docker("wait", "sleeper").stdout == b"137\n"


def test_stop_sends_the_stop_signal_first(daemon: RunningDaemon) -> None:
    script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    daemon.run("-d", "--name", "polite", "busybox", "sh", "-c", script)
    _until(lambda: b"ready" in daemon.docker("logs", "polite").stdout)
    daemon.docker("stop", "-t", "10", "polite")
    state = daemon.inspect("polite")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 7)
    assert daemon.docker("logs", "polite").stdout == b"ready\nbye\n"


def test_a_stopped_container_starts_again_with_its_files(daemon: RunningDaemon) -> None:
    daemon.run("--name", "keeper", "busybox", "sh", "-c", "date >> /kept; wc -l < /kept")
    assert daemon.docker("start", "-a", "keeper").stdout.strip() == b"2"


def test_exec_has_its_own_exit_code_user_and_environment(daemon: RunningDaemon) -> None:
    daemon.run("-d", "--name", "base", "-e", "A=1", "busybox", "sleep", "100")
    run = [
        "exec",
        "-u",
        "ann",
        "-e",
        "B=2",
        "-w",
        "/tmp",
        "base",
        "sh",
        "-c",
        "echo $A$B $(id -un) $PWD; exit 5",
    ]
    done = daemon.docker(*run, check=False)
    assert (done.returncode, done.stdout) == (5, b"12 ann /tmp\n")
    assert daemon.docker("exec", "-i", "base", "cat", stdin=b"through\n").stdout == b"through\n"
    missing = daemon.docker("exec", "base", "nosuch", check=False)
    assert missing.returncode == 127


def test_logs_can_be_cut_and_stamped(daemon: RunningDaemon) -> None:
    daemon.run(
        "--name", "talker", "busybox", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done"
    )
    assert daemon.docker("logs", "--tail", "2", "talker").stdout == b"line 4\nline 5\n"
    stamped = daemon.docker("logs", "-t", "--tail", "1", "talker").stdout.decode()
    assert stamped.endswith("Z line 5\n") and len(stamped.split()[0]) == len(
        "2025-01-01T00:00:00.000000000Z"
    )


def test_following_logs_ends_with_the_container(daemon: RunningDaemon) -> None:
    daemon.run(
        "-d",
        "--name",
        "teller",
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3; do echo $i; sleep 0.2; done",
    )
    assert daemon.docker("logs", "-f", "teller").stdout == b"1\n2\n3\n"


def test_files_are_copied_in_and_out(daemon: RunningDaemon, tmp_path: object) -> None:
    daemon.run("-d", "--name", "box", "busybox", "sleep", "100")
    daemon.docker("cp", __file__, "box:/tmp/here")
    copied = daemon.docker("exec", "box", "cat", "/tmp/here").stdout
    with open(__file__, "rb") as file:
        assert copied == file.read()
    daemon.docker("cp", "box:/etc/passwd", f"{tmp_path}/passwd")
    with open(f"{tmp_path}/passwd", "rb") as file:
        assert file.read().startswith(b"root:")
    assert daemon.docker("cp", "box:/nosuch", f"{tmp_path}/x", check=False).returncode == 1


def test_a_published_port_answers_on_the_loopback(daemon: RunningDaemon) -> None:
    script = "mkdir /www; echo hello > /www/index.html; httpd -f -h /www -p 80"
    daemon.run("-d", "--name", "web", "-p", "127.0.0.1::80", "busybox", "sh", "-c", script)
    ports = daemon.inspect("web")["NetworkSettings"]["Ports"]["80/tcp"]
    url = f"http://127.0.0.1:{ports[0]['HostPort']}/"
    _until(lambda: _fetch(url) == b"hello\n")


def test_containers_find_each_other_by_name(daemon: RunningDaemon) -> None:
    daemon.docker("network", "create", "meeting")
    try:
        daemon.run(
            "-d",
            "--network",
            "meeting",
            "--name",
            "one",
            "--network-alias",
            "uno",
            "busybox",
            "sleep",
            "100",
        )
        for name in ("one", "uno"):
            daemon.run(
                "--rm", "--network", "meeting", "busybox", "ping", "-c", "1", "-W", "5", name
            )
    finally:
        daemon.clean()
        daemon.docker("network", "rm", "meeting")


def test_a_named_volume_outlives_its_containers(daemon: RunningDaemon) -> None:
    daemon.run("--rm", "-v", "keep:/data", "busybox", "sh", "-c", "echo kept > /data/x")
    assert daemon.run("--rm", "-v", "keep:/data", "busybox", "cat", "/data/x").stdout == b"kept\n"
    daemon.docker("volume", "rm", "keep")


def test_a_health_check_decides_and_is_shown(daemon: RunningDaemon) -> None:
    daemon.run(
        *("-d", "--name", "patient", "--health-cmd", "test -e /well", "--health-interval", "200ms"),
        *("busybox", "sh", "-c", "sleep 1; touch /well; sleep 100"),
    )
    assert daemon.inspect("patient")["State"]["Health"]["Status"] == "starting"
    _until(lambda: daemon.inspect("patient")["State"]["Health"]["Status"] == "healthy")
    assert daemon.inspect("patient")["Hybrid"]["ReadyAfter"] > 1
    assert b"(healthy)" in daemon.docker("ps").stdout


def test_a_failing_container_is_restarted_so_often_as_asked(daemon: RunningDaemon) -> None:
    daemon.run(
        "-d",
        "--name",
        "again",
        "--restart",
        "on-failure:2",
        "busybox",
        "sh",
        "-c",
        "echo try; exit 1",
    )
    _until(
        lambda: (
            daemon.inspect("again")["State"]["Status"] == "exited"
            and daemon.inspect("again")["RestartCount"] == 2
        )
    )
    assert daemon.docker("logs", "again").stdout == b"try\n" * 3


def test_a_terminal_has_its_size_and_echoes(daemon: RunningDaemon) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [
            "docker",
            "run",
            "--rm",
            "-it",
            "--isolation",
            "container",
            "busybox",
            "sh",
            "-c",
            "stty size; read x; exit $x",
        ],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "DOCKER_HOST": daemon.host},
        start_new_session=True,
    )
    os.close(slave)
    time.sleep(2)
    os.write(master, b"6\n")
    assert process.wait(30) == 6
    os.close(master)


def test_information_commands_work(daemon: RunningDaemon) -> None:
    daemon.run("-d", "--name", "shown", "busybox", "sleep", "100")
    assert "Server:" in daemon.docker("version").stdout.decode()
    assert "hybrid" in daemon.docker("info").stdout.decode()
    assert "sleep" in daemon.docker("top", "shown").stdout.decode()
    assert "shown" in daemon.docker("stats", "--no-stream").stdout.decode()
    assert "busybox" in daemon.docker("images").stdout.decode()
    events = daemon.docker("events", "--since", "60s", "--until", "0s", "--format", "json")
    actions = [json.loads(line)["Action"] for line in events.stdout.splitlines()]
    assert actions[-1] == "start" and "create" in actions


def test_renaming_pausing_and_updating(daemon: RunningDaemon) -> None:
    daemon.run("-d", "--name", "before", "busybox", "sleep", "100")
    daemon.docker("rename", "before", "after")
    daemon.docker("pause", "after")
    assert daemon.inspect("after")["State"]["Status"] == "paused"
    daemon.docker("unpause", "after")
    daemon.docker("update", "--pids-limit", "50", "after")
    assert daemon.inspect("after")["HostConfig"]["PidsLimit"] == 50


def _fetch(url: str) -> bytes:
    done = subprocess.run(["curl", "-s", "--max-time", "2", url], capture_output=True)
    return done.stdout


def _version() -> str:
    if not shutil.which("docker"):
        return ""
    return subprocess.run(["docker", "--version"], capture_output=True, text=True).stdout


sends_rates = pytest.mark.skipif(
    "26.1.5" in _version(),
    reason="Debian 13's docker client leaves --device-write-bps out of its request",
)


def _until(condition: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


@sends_rates
def test_io_is_throttled_on_the_disk_of_the_containers_own_file_system(
    daemon: RunningDaemon,
) -> None:
    daemon.run(
        "-d", "--name", "slow", "--device-write-bps", "/dev/root:1mb", "busybox", "sleep", "100"
    )
    container = daemon.inspect("slow")
    assert container["HostConfig"]["BlkioDeviceWriteBps"] == [
        {"Path": "/dev/root", "Rate": 1 << 20}
    ]
    rates = [
        line.split()[1:]
        for name in ("blkio.throttle.write_bps_device", "io.max")
        for file in Path("/sys/fs/cgroup").glob(f"**/{container['Id']}/{name}")
        for line in file.read_text().splitlines()
    ]
    assert [str(1 << 20)] in rates or any(f"wbps={1 << 20}" in rate for rate in rates), rates


@sends_rates
def test_a_device_of_the_host_cannot_be_throttled(daemon: RunningDaemon) -> None:
    done = daemon.run("--device-write-bps", "/dev/sda:1mb", "busybox", "true", check=False)
    assert done.returncode == 125
    assert b"say '/dev/root', the disk of the container's own file system" in done.stderr
