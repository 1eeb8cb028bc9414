"""kill -9 of the daemon: containers run on, the next daemon adopts them, and nothing is left without an owner."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.client.address import UnixAddress
from hybrid.client.engine import Engine, Json
from hybrid.errors import HybridError
from tests.built import BUILT
from tests.leftovers import nothing_left
from tests.livedaemon import LiveDaemon, until

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.usefixtures("clean")]

HERE = ("--isolation", "container")
COUNT = "i=0; while [ $i -lt {}000 ]; do echo line $i; i=$((i+1)); usleep 2000; done; exit 7"
# Seconds after a request at which its daemon dies. A start takes about 0.2 s.
MOMENTS = (0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)


def engine(live: LiveDaemon) -> Engine:
    return Engine(UnixAddress(live.paths.socket))


def body(*command: str, **host: object) -> Json:
    return {
        "Image": "busybox",
        "Cmd": list(command),
        "HostConfig": {"Isolation": "container", **host},
    }


def state(live: LiveDaemon, name: str) -> Json:
    found: Json = live.inspect(name)["State"]
    return found


def runs(pid: int) -> bool:
    """Whether the process is there, and not only waits for somebody to take note of its end."""
    try:
        return " (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def counting(live: LiveDaemon) -> Iterator[str]:
    """A container that writes numbered lines for some seconds, and exits with 7."""
    name = "counting"
    live.out("run", "-d", "--name", name, *HERE, "busybox", "sh", "-c", COUNT.format(2))
    yield name


def test_every_line_and_the_exit_code_survive(live: LiveDaemon, counting: str) -> None:
    for _ in range(4):
        time.sleep(0.3)
        live.kill()
        live.out("info")
    assert live.out("wait", counting) == "7\n"
    assert live.out("logs", counting) == "".join(f"line {number}\n" for number in range(2000))


def test_an_exit_while_no_daemon_runs(live: LiveDaemon, counting: str) -> None:
    time.sleep(0.5)
    live.kill()
    time.sleep(5)
    found = state(live, counting)
    assert (found["Status"], found["ExitCode"], found["Error"]) == ("exited", 7, "")
    assert live.out("logs", counting) == "".join(f"line {number}\n" for number in range(2000))


def test_a_running_container_goes_on_with_its_ports_and_names(live: LiveDaemon) -> None:
    live.out("run", "-d", "--name", "web", *HERE, "-p", "127.0.0.1::8000", "busybox",
             "sh", "-c", "mkdir /w; echo served > /w/index.html; httpd -f -h /w -p 8000")  # fmt: skip
    before = state(live, "web")
    live.kill()
    port = live.inspect("web")["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"]
    assert state(live, "web")["Pid"] == before["Pid"] > 0
    got = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{port}/"], capture_output=True, check=True
    )
    assert got.stdout == b"served\n"
    live.out("run", "--rm", *HERE, "busybox", "wget", "-T", "10", "-qO-", "http://web:8000/")
    assert live.out("exec", "web", "echo", "here") == "here\n"


def test_auto_remove_is_honoured(live: LiveDaemon) -> None:
    live.out("run", "-d", "--rm", "--name", "brief", *HERE, "busybox", "sleep", "1")
    live.kill()
    time.sleep(2)
    until(lambda: live.out("ps", "-aq") == "")


def test_a_restart_policy_is_honoured(live: LiveDaemon) -> None:
    live.out("run", "-d", "--name", "again", "--restart", "on-failure:3", *HERE, "busybox",
             "sh", "-c", "echo run; sleep 1; exit 4")  # fmt: skip
    live.kill()
    time.sleep(2)
    until(lambda: live.inspect("again")["RestartCount"] == 3)
    until(lambda: state(live, "again")["Status"] == "exited")
    assert live.out("logs", "again") == "run\n" * 4


def test_a_stopped_container_stays_stopped(live: LiveDaemon) -> None:
    live.out("run", "-d", "--name", "still", "--restart", "unless-stopped", *HERE, "busybox",
             "sleep", "100")  # fmt: skip
    live.out("stop", "-t", "0", "still")
    live.kill()
    time.sleep(1)
    assert state(live, "still")["Status"] == "exited"


@pytest.mark.parametrize("moment", MOMENTS)
def test_during_a_start(live: LiveDaemon, moment: float) -> None:
    """It runs, or it ended with a reason; nothing in between."""
    live.out("create", "--name", "one", "-p", "127.0.0.1::80", "-v", "/data", *HERE, "busybox",
             "sleep", "1000")  # fmt: skip
    live.kill_during(moment, lambda engine: engine.start("one"))
    found = state(live, "one")
    assert found["Status"] in ("created", "running", "exited"), found
    if found["Status"] == "exited":
        assert found["ExitCode"] == 137 and "interrupted" in found["Error"], found
    if found["Running"]:
        assert live.inspect("one")["NetworkSettings"]["Ports"]["80/tcp"]
        assert live.out("exec", "one", "echo", "here") == "here\n"
    nothing_left(live)


@pytest.mark.parametrize("moment", MOMENTS)
def test_during_a_restart_by_policy(live: LiveDaemon, moment: float) -> None:
    """Its policy wants it up, so up it comes, whatever was interrupted."""
    live.out("run", "-d", "--name", "one", "-p", "127.0.0.1::80", "--restart", "always", *HERE,
             "busybox", "sleep", "1000")  # fmt: skip
    live.kill_during(moment + 0.1, lambda engine: engine.kill("one", "SEGV"))
    until(lambda: state(live, "one")["Running"])
    assert live.inspect("one")["NetworkSettings"]["Ports"]["80/tcp"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_during_a_stop(live: LiveDaemon, moment: float) -> None:
    live.out("run", "-d", "--name", "one", "-p", "127.0.0.1::80", *HERE, "busybox",
             "sh", "-c", "trap 'exit 5' TERM; while :; do usleep 10000; done")  # fmt: skip
    live.kill_during(moment, lambda engine: engine.stop("one"))
    if state(live, "one")["Running"]:
        live.out("stop", "one")
    found = state(live, "one")
    assert (found["Status"], found["ExitCode"]) == ("exited", 5)
    nothing_left(live)


@pytest.mark.parametrize("moment", MOMENTS)
def test_during_a_removal(live: LiveDaemon, moment: float) -> None:
    name = "one"
    live.out("run", "-d", "--name", name, "-v", "/data", *HERE, "busybox", "sleep", "1000")
    ever = live.out("ps", "-aq", "--no-trunc").split()
    live.kill_during(moment / 2, lambda engine: engine.remove(name, force=True, volumes=True))
    left = json.loads(live.run("inspect", name).stdout)
    assert not left or left[0]["State"]["Status"] in ("running", "exited"), left
    nothing_left(live, ever)
    if left:
        live.out("rm", "-fv", name)
    assert live.out("volume", "ls", "-q") == ""


@pytest.mark.parametrize("moment", MOMENTS[:6])
def test_during_a_creation(live: LiveDaemon, moment: float) -> None:
    live.kill_during(
        moment / 4,
        lambda engine: engine.create_container({**body("true"), "Volumes": {"/d": {}}}, "one"),
    )
    if ids := live.out("ps", "-aq").split():
        live.out("rm", "-v", *ids)
    assert live.out("volume", "ls", "-q") == ""


@pytest.mark.parametrize("moment", MOMENTS[:6])
def test_during_the_making_of_a_network(live: LiveDaemon, moment: float) -> None:
    live.run("network", "rm", "made")
    live.kill_during(
        moment / 4,
        lambda engine: engine.call("POST", "/networks/create", body={"Name": "made"}),
    )
    live.run("network", "create", "made")
    live.out("run", "--rm", "--network", "made", *HERE, "busybox", "true")
    live.out("network", "rm", "made")
    nothing_left(live)


@pytest.mark.parametrize("moment", MOMENTS)
def test_during_the_loading_of_an_image(live: LiveDaemon, moment: float) -> None:
    """It is there whole, or not at all."""
    live.out("image", "rm", "-f", "busybox")
    archive = BUILT.root / "archives" / "busybox.tar"
    command = live.argv("image", "load", "-q", "-i", str(archive))
    # The command itself takes a tenth of a second to start.
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        time.sleep(0.1 + moment)
        live.kill()
    listed = live.out("image", "ls", "-q").split()
    if not listed:
        live.out("image", "load", "-q", "-i", str(archive))
    live.out("run", "--rm", *HERE, "busybox", "true")
    nothing_left(live)


def test_many_times_with_many_containers(live: LiveDaemon) -> None:
    """A busy daemon, killed again and again while ten containers come and go."""
    stop = threading.Event()

    def churn(number: int) -> None:
        while not stop.is_set():
            with contextlib.suppress(HybridError, OSError, KeyError):
                made = engine(live).create_container(body("sleep", "0.2", AutoRemove=True))
                engine(live).start(made["Id"])
            time.sleep(0.25 + 0.05 * number)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    for moment in (0.9, 0.4, 1.3, 0.7, 0.5):
        time.sleep(moment)
        live.kill()
        live.out("info")
    stop.set()
    for thread in threads:
        thread.join()
    time.sleep(1)
    statuses = (
        [
            one["State"]["Status"]
            for one in json.loads(live.out("inspect", *live.out("ps", "-aq").split()) or "[]")
        ]
        if live.out("ps", "-aq")
        else []
    )
    assert not {"starting", "removing", "dead"} & set(statuses), statuses


def test_a_killed_host_agent_ends_its_containers_with_a_reason(live: LiveDaemon) -> None:
    live.out("run", "-d", "--name", "one", "-p", "127.0.0.1::80", *HERE, "busybox", "sleep", "1000")
    live.out("run", "-d", "--name", "two", "--restart", "always", *HERE, "busybox", "sleep", "1000")
    pid = state(live, "one")["Pid"]
    agent = int((live.paths.host_agent / "pid").read_text().split()[0])
    subprocess.run(["kill", "-9", str(agent)], check=True)
    until(lambda: not state(live, "one")["Running"])
    found = state(live, "one")
    assert found["ExitCode"] == 137 and "agent (pid" in found["Error"]
    until(lambda: state(live, "two")["Running"])
    until(lambda: not runs(pid))
