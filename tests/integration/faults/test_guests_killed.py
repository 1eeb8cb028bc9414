"""kill -9 of the daemon, of QEMUs and of their helpers, and guests that do not boot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from hybrid.client.engine import Json
from tests.leftovers import nothing_left, processes
from tests.livedaemon import BUILT, LiveDaemon, until

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.usefixtures("clean"),
    pytest.mark.timeout(400),
]

COUNT = "i=0; while [ $i -lt {} ]; do echo line $i; i=$((i+1)); usleep 10000; done; exit 7"


def state(live: LiveDaemon, name: str) -> Json:
    found: Json = live.inspect(name)["State"]
    return found


def pid_of(*words: str) -> int:
    """The one process whose command line has all these words in it."""
    found = [pid for pid, line in processes() if all(word in " ".join(line) for word in words)]
    assert found, words
    return min(found)


def qemu(live: LiveDaemon) -> int:
    return pid_of("qemu-system", f"guest=hybrid-{live.paths.instance}")


def numbered(count: int) -> str:
    return "".join(f"line {number}\n" for number in range(count))


def test_a_guest_outlives_its_daemon(live: LiveDaemon) -> None:
    """Every line once and in order, though the daemon dies three times; the exit while it was away is known."""
    live.out("run", "-d", "--name", "one", "-p", "127.0.0.1::80", "-v", "kept:/data", "busybox",
             "sh", "-c", COUNT.format(500))  # fmt: skip
    for _ in range(3):
        time.sleep(0.5)
        live.kill()
        assert state(live, "one")["Status"] in ("running", "exited")
    nothing_left(live)
    live.kill()
    time.sleep(8)
    assert live.out("wait", "one") == "7\n"
    assert live.out("logs", "one") == numbered(500)
    nothing_left(live)
    live.out("rm", "one")
    live.out("volume", "rm", "kept")


def test_a_killed_qemu(live: LiveDaemon) -> None:
    """Without a policy the container is exited with the reason; with one it runs again in a new guest."""
    live.out("run", "-d", "--name", "one", "-v", "/data", "busybox", "sleep", "10000")
    os.kill(qemu(live), signal.SIGKILL)
    until(lambda: not state(live, "one")["Running"])
    found = state(live, "one")
    assert found["ExitCode"] == 137
    assert "signal 9" in found["Error"], found
    assert "Exited (137)" in live.out("ps", "-a")
    nothing_left(live)
    live.out("rm", "-v", "one")
    live.out("run", "-d", "--name", "two", "--restart", "on-failure:2", "busybox", "sleep", "10000")
    first = qemu(live)
    os.kill(first, signal.SIGKILL)
    until(lambda: live.inspect("two")["RestartCount"] == 1 and state(live, "two")["Running"])
    assert qemu(live) != first
    assert live.out("exec", "two", "echo", "here") == "here\n"


def test_a_qemu_killed_while_no_daemon_runs(live: LiveDaemon) -> None:
    live.out("run", "-d", "--name", "one", "-v", "/data", "busybox", "sleep", "10000")
    live.kill()
    os.kill(qemu(live), signal.SIGKILL)
    found = state(live, "one")
    assert (found["Status"], found["ExitCode"]) == ("exited", 137)
    assert "while the daemon was down" in found["Error"]
    nothing_left(live)


def test_killed_helpers(live: LiveDaemon) -> None:
    """A name server is replaced; a file server takes its guest with it, for its files would hang for good."""
    live.out("run", "-d", "--name", "one", "-v", "/data", "busybox", "sleep", "10000")
    server = pid_of("dnsmasq", str(live.paths.run))
    os.kill(server, signal.SIGKILL)
    live.kill()
    assert "Name:\tone" in live.out("exec", "one", "nslookup", "one")
    os.kill(pid_of(str(live.paths.root), "--shared-dir="), signal.SIGKILL)
    until(lambda: not state(live, "one")["Running"])
    found = state(live, "one")
    assert found["ExitCode"] == 137 and "file server" in found["Error"], found
    nothing_left(live)


@pytest.mark.parametrize("moment", [0.05, 0.3, 0.8, 2.0, 4.5])
def test_the_daemon_dies_while_a_guest_is_made(live: LiveDaemon, moment: float) -> None:
    """Nothing is left of a guest that nobody finished making."""
    live.out("create", "--name", "one", "-v", "/data", "busybox", "sleep", "10000")
    live.kill_during(moment, lambda engine: engine.start("one"))
    found = state(live, "one")
    assert found["Status"] in ("created", "exited", "running"), found
    if found["Status"] == "exited":
        assert (found["ExitCode"], "interrupted" in found["Error"]) == (137, True)
    nothing_left(live)


@pytest.mark.parametrize("moment", [0.2, 2.0])
def test_the_daemon_dies_while_a_machine_is_made(live: LiveDaemon, moment: float) -> None:
    body = {"Name": "made"}
    live.kill_during(moment, lambda engine: engine.call("POST", "/hybrid/machines", body=body))
    assert "made" not in live.out("machine", "ls")
    nothing_left(live)


def test_too_little_memory(live: LiveDaemon) -> None:
    for words, code in (
        (("run", "--rm", "--memory", "1000g", "busybox", "true"), 125),
        (("machine", "create", "--memory", "1000g", "big"), 1),
    ):
        done = live.run(*words)
        assert done.returncode == code
        assert done.stderr.startswith(b"hybrid: not enough memory for machine ")
        assert done.stderr.count(b"\n") == 1
    assert "big" not in live.out("machine", "ls")


def test_a_guest_whose_root_was_tampered_with(live: LiveDaemon) -> None:
    """dm-verity stops it, and the console's last lines are in the one line that the user gets."""
    guest = live.paths.guest
    guest.unlink()
    shutil.copytree(BUILT.guest, guest, symlinks=True)
    try:
        root = Path(os.path.realpath(guest / "current")) / "root"
        root.chmod(0o644)
        with root.open("r+b") as file:
            for offset in range(4096, root.stat().st_size, 65536):
                file.seek(offset)
                file.write(bytes(64))
        done = live.run("run", "--rm", "busybox", "true")
    finally:
        shutil.rmtree(guest)
        guest.symlink_to(BUILT.guest)
    assert done.returncode == 125
    text = done.stderr.decode()
    assert text.startswith("hybrid: the guest did not boot: ") and text.count("\n") == 1
    assert "verity" in text and "console: " in text
    nothing_left(live)


def test_a_kernel_that_is_none(live: LiveDaemon) -> None:
    guest = live.paths.guest
    guest.unlink()
    shutil.copytree(BUILT.guest, guest, symlinks=True)
    try:
        kernel = Path(os.path.realpath(guest / "current")) / "vmlinuz"
        kernel.write_bytes(b"no kernel\n" * 100_000)
        done = live.run("machine", "create", "odd")
    finally:
        shutil.rmtree(guest)
        guest.symlink_to(BUILT.guest)
    assert done.returncode == 1
    assert done.stderr.startswith(b"hybrid: ") and done.stderr.count(b"\n") == 1
    assert "odd" not in live.out("machine", "ls")
    nothing_left(live)


def test_a_machine_in_use_and_what_becomes_of_its_containers(live: LiveDaemon) -> None:
    live.out("machine", "create", "shared")
    assert b"exists already" in live.run("machine", "create", "shared").stderr
    for name in ("one", "two"):
        live.out(
            "run", "-d", "--name", name, "--isolation", "vm:shared", "busybox", "sleep", "9999"
        )
    assert b"in use by 2 container(s)" in live.run("machine", "rm", "shared").stderr
    os.kill(qemu(live), signal.SIGKILL)
    for name in ("one", "two"):
        until(lambda name=name: not state(live, name)["Running"])
        assert "signal 9" in state(live, name)["Error"]
    machine = json.loads(live.out("machine", "inspect", "shared"))[0]
    assert machine["Status"] == "stopped" and "signal 9" in machine["Error"]
    live.out("start", "one")
    assert live.out("exec", "one", "echo", "here") == "here\n"
    live.out("rm", "-f", "one", "two")
    live.out("machine", "rm", "shared")
