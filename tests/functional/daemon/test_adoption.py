"""A daemon that ends, however, ends no container; the next one takes over what it finds."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from hybrid.daemon.main import run as run_daemon
from hybrid.errors import Conflict
from tests.functional.daemon.conftest import RunningDaemon

COUNT = "i=0; while [ $i -lt {n} ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 5"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_container_that_runs_on_loses_no_line(daemon: RunningDaemon, number: int) -> None:
    daemon.run("-d", "--name", "counter", "busybox", "sh", "-c", COUNT.format(n=300))
    time.sleep(1)
    daemon.end(number)
    time.sleep(0.5)
    daemon.start()
    assert daemon.docker("wait", "counter").stdout == b"5\n"
    lines = daemon.docker("logs", "counter").stdout.split()
    assert lines == [str(n).encode() for n in range(1, 301)]


def test_a_container_that_ends_meanwhile_is_reported_whole(daemon: RunningDaemon) -> None:
    daemon.run("-d", "--name", "quick", "busybox", "sh", "-c", COUNT.format(n=20))
    daemon.end(signal.SIGKILL)
    time.sleep(2)
    daemon.start()
    assert daemon.docker("wait", "quick").stdout == b"5\n"
    assert len(daemon.docker("logs", "quick").stdout.split()) == 20


def test_an_adopted_container_is_like_any_other(daemon: RunningDaemon) -> None:
    daemon.run("-d", "--name", "held", "-p", "127.0.0.1::80", "busybox", "sleep", "1000")
    port = daemon.inspect("held")["NetworkSettings"]["Ports"]
    daemon.end(signal.SIGKILL)
    daemon.start()
    assert daemon.docker("exec", "held", "echo", "here").stdout == b"here\n"
    assert daemon.inspect("held")["NetworkSettings"]["Ports"] == port
    daemon.docker("stop", "-t", "0", "held")
    assert daemon.inspect("held")["State"]["Status"] == "exited"
    daemon.docker("start", "held")


def test_a_health_check_goes_on_after_a_restart(daemon: RunningDaemon) -> None:
    daemon.run(
        *(
            "-d",
            "--name",
            "patient",
            "--health-cmd",
            "test ! -e /ill",
            "--health-interval",
            "200ms",
        ),
        *("--health-retries", "1", "busybox", "sleep", "1000"),
    )
    daemon.end(signal.SIGKILL)
    daemon.start()
    daemon.docker("exec", "patient", "touch", "/ill")
    deadline = time.monotonic() + 20
    while daemon.inspect("patient")["State"]["Health"]["Status"] != "unhealthy":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_nothing_is_left_of_removed_containers(daemon: RunningDaemon) -> None:
    daemon.run("-d", "--name", "gone", "busybox", "sleep", "1000")
    daemon.docker("rm", "-f", "gone")
    assert list((daemon.root / "containers").glob("*")) == []
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(daemon.root) not in mounts
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    assert f"hy{daemon.paths.instance[:4]}v" not in links


def test_a_second_daemon_for_the_same_root_is_refused(daemon: RunningDaemon) -> None:
    with pytest.raises(Conflict, match="a daemon runs already for this root"):
        run_daemon(daemon.root, [])
