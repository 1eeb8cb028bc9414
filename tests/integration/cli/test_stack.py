"""The example stack in real guests, from nothing to a proof, and again after faults."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid.guest.build import build_guest
from hybrid.guest.tools import build_tools
from tests.built import BUILT
from tests.livedaemon import LiveDaemon, live_daemon, until

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(900)]
with socket.create_server(("127.0.0.1", 0)) as _free:
    PORT = _free.getsockname()[1]
URL = f"http://127.0.0.1:{PORT}/"


@pytest.fixture(scope="module")
def stack(top: Path) -> Iterator[LiveDaemon]:
    """The stack, up on a daemon of its own."""
    if os.geteuid():
        pytest.skip("needs root")
    os.environ["STACK_PORT"] = str(PORT)
    build_guest(BUILT, lambda _: None)
    build_tools(BUILT, lambda _: None)
    with live_daemon(guest=True) as daemon:
        for name in ("busybox", "postgres", "app", "nginx"):
            daemon.load(name)
        up(daemon, top)
        yield daemon
        daemon.out("down", "-v", "-f", str(top / "examples/stack/compose.yaml"))


@pytest.fixture(scope="module")
def top() -> Path:
    return Path(__file__).resolve().parent.parent.parent.parent


def up(daemon: LiveDaemon, top: Path) -> list[list[str]]:
    """Brings the stack up; the rows of the table."""
    lines = daemon.out("up", "-f", str(top / "examples/stack/compose.yaml")).splitlines()
    return [line.split() for line in lines[1:]]


def page() -> dict[str, Any]:
    """What the front answers; nginx, which has no health check, may still be opening its port."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(URL, timeout=30) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def add(text: str) -> None:
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(f"{URL}notes", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=30).close()


def texts() -> list[str]:
    return [note["text"] for note in page()["notes"]]


def test_three_tiers_on_three_kernels(stack: LiveDaemon, top: Path) -> None:
    rows = up(stack, top)
    assert [row[0] for row in rows] == ["db", "app", "front"]
    assert [row[1] for row in rows] == ["vm", "vm:apps", "container"]
    here = os.uname().release
    assert rows[2][3] == here
    answer = page()
    assert answer["database"]["boot_id"] != answer["application"]["boot_id"]
    own = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert own not in (answer["database"]["boot_id"], answer["application"]["boot_id"])


def test_every_promise_is_kept(stack: LiveDaemon) -> None:
    done = stack.run("verify", "--all", "--format", "json")
    reports = json.loads(done.stdout)
    broken = [check for report in reports for check in report["checks"] if not check["kept"]]
    assert (done.returncode, broken) == (0, [])
    assert len(reports) == 3


def test_the_database_has_no_way_out_and_the_front_no_way_to_it(stack: LiveDaemon) -> None:
    code = "import socket; socket.create_connection(('db', 5432), 3)"
    assert stack.run("exec", "stack-app-1", "python3", "-c", code).returncode == 0
    address = stack.inspect("stack-db-1")["NetworkSettings"]["Networks"]["stack_back"]["IPAddress"]
    reach = f"exec 3<>/dev/tcp/{address}/5432"
    done = stack.run("exec", "stack-front-1", "timeout", "3", "bash", "-c", reach)
    assert done.returncode != 0


def test_data_outlives_down_and_up(stack: LiveDaemon, top: Path) -> None:
    add("before")
    stack.out("down", "-f", str(top / "examples/stack/compose.yaml"))
    up(stack, top)
    assert "before" in texts()


def test_a_killed_daemon_stops_nothing(stack: LiveDaemon) -> None:
    started = {
        name: stack.inspect(name)["State"]["StartedAt"]
        for name in ("stack-db-1", "stack-app-1", "stack-front-1")
    }
    stack.kill()
    assert texts()  # published ports, names and guests work without any daemon
    for name, moment in started.items():
        state = stack.inspect(name)["State"]
        assert (state["Running"], state["StartedAt"]) == (True, moment), name
    add("after the daemon")
    assert "after the daemon" in texts()


def test_a_killed_guest_is_reported_and_restarted(stack: LiveDaemon) -> None:
    machine = json.loads(stack.out("machine", "inspect", "stack-db-1"))[0]["Id"]
    found = subprocess.run(["pgrep", "-f", f"guest=hybrid-.*{machine[:12]}"], capture_output=True)
    for pid in found.stdout.split():
        os.kill(int(pid), 9)
    time.sleep(1)
    until(lambda: stack.inspect("stack-db-1")["State"]["Status"] == "running", 120)
    until(
        lambda: stack.inspect("stack-db-1")["State"].get("Health", {}).get("Status") == "healthy",
        120,
    )
    assert "after the daemon" in texts()


def test_run_in_a_guest_of_its_own(stack: LiveDaemon) -> None:
    script = "uname -r; cat /proc/sys/kernel/random/boot_id; exit 6"
    done = stack.run("run", "--rm", "busybox", "sh", "-c", script)
    assert done.returncode == 6, done
    assert done.stdout.split()[0].decode() != os.uname().release
