"""Containers on a box reached over SSH, as a user sees them: through the command line, daemon, sshd and agent."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.functional.remote.conftest import NAME, STATE, Site
from tests.livedaemon import Done, until

pytestmark = pytest.mark.root
THERE = ("--isolation", f"machine:{NAME}")


def run(site: Site, *arguments: str, stdin: bytes = b"") -> Done:
    return site.live.run("run", *THERE, *arguments, stdin=stdin)


def sh(script: str) -> tuple[str, ...]:
    return ("busybox", "sh", "-c", script)


def ended(pid: int) -> bool:
    """Gone, but for being reaped: a process's command line goes first."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def counting(site: Site, name: str, limit: int = 1 << 30) -> None:
    """A container that counts, ten a second, and ends with 6."""
    script = f"i=0; while [ $i -lt {limit} ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 6"
    site.live.out("run", "-d", "--name", name, *THERE, *sh(script))


def logged(site: Site, name: str) -> list[int]:
    return [int(line) for line in site.live.out("logs", name).split()]


# --- the machine ---


def test_it_is_a_machine_like_any_other(site: Site) -> None:
    live = site.live
    (shown,) = json.loads(live.out("machine", "inspect", NAME))
    assert (shown["Name"], shown["Provider"], shown["Status"]) == (NAME, "ssh", "running")
    assert shown["Address"] == site.box.url
    assert shown["Kernel"] == os.uname().release
    row = next(line for line in live.out("machine", "ls").splitlines() if line.startswith(NAME))
    assert row.split()[1:3] == ["ssh", "running"]
    assert live.out("machine", "shell", NAME, "uname", "-r").strip() == os.uname().release
    done = live.run("machine", "console", NAME)
    assert (done.returncode, done.stderr) == (
        1,
        b"hybrid: a box reached over SSH has no console here\n",
    )


def test_a_stopped_machine_keeps_its_containers_files(site: Site) -> None:
    live = site.live
    live.out(
        "run", "-d", "--name", "kept", *THERE, *sh("echo 1 >> /seen; cat /seen; exec sleep 100")
    )
    agent = site.agent
    live.out("machine", "stop", NAME)
    assert ended(agent)
    state = live.inspect("kept")["State"]
    assert (state["Status"], state["Running"]) == ("exited", False)
    live.out("machine", "start", NAME)
    live.out("start", "kept")
    until(lambda: live.out("logs", "kept") == "1\n1\n1\n")


def test_removed_it_leaves_nothing_behind(site: Site) -> None:
    live, directory, agent = site.live, site.directory, site.agent
    live.out("run", "-d", "--name", "user", *THERE, *sh("sleep 100"))
    done = live.run("machine", "rm", NAME)
    assert done.returncode == 1
    assert b"in use" in done.stderr
    live.out("rm", "-f", "user")
    live.out("machine", "rm", NAME)
    assert not directory.exists()
    assert ended(agent)
    assert not list((live.paths.root / "machines").iterdir()), "the accepted host key is forgotten"
    assert NAME not in live.out("machine", "ls")
    done = run(site, "--rm", "busybox", "true")
    assert done.returncode == 125
    assert b"no such machine: edge" in done.stderr


# --- containers ---


def test_output_exit_code_and_a_network_of_loopback_only(site: Site) -> None:
    done = run(site, "--rm", *sh("echo out; echo err >&2; ls /sys/class/net; exit 7"))
    assert (done.returncode, done.stdout) == (7, b"out\nlo\n")
    assert done.stderr.endswith(b"err\n")
    assert b"one boundary only" in done.stderr
    assert run(site, "--rm", "busybox", "nope").returncode == 127


def test_the_boxs_own_network_when_asked_for(site: Site) -> None:
    script = "ls /sys/class/net; cat /etc/resolv.conf"
    done = run(site, "--rm", "--network", "host", *sh(script))
    assert done.returncode == 0
    expected = [*os.listdir("/sys/class/net"), *Path("/etc/resolv.conf").read_text().splitlines()]
    assert set(expected) <= set(done.stdout.decode().splitlines())


def test_stdin_to_its_end(site: Site) -> None:
    data = bytes(range(256)) * 8192
    assert run(site, "--rm", "-i", "busybox", "cat", stdin=data).stdout == data


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--network", "bridge"), "network bridge: machine edge is a box"),
        (("-p", "8080:80"), "published ports: machine edge is a box"),
        (("-v", "/tmp:/x"), "bind mount at /x: its files would be on this host"),
        (("-v", "data:/x"), "volume mount at /x: its files would be on this host"),
        (("-v", "/x"), "volume mount at /x: its files would be on this host"),
    ],
)
def test_what_only_this_host_has_is_refused(
    site: Site, flags: tuple[str, ...], reason: str
) -> None:
    done = run(site, "--rm", *flags, "busybox", "true")
    assert done.returncode == 125
    (line,) = done.stderr.decode().splitlines()
    assert reason in line
    assert "use --" in line
    assert site.live.out("ps", "-aq") == site.live.out("volume", "ls", "-q") == ""


def test_memory_and_tmpfs(site: Site) -> None:
    script = "mount | grep /x; dd if=/dev/zero of=/dev/null bs=200M count=1"
    done = run(site, "--rm", "--memory", "32m", "--tmpfs", "/x", *sh(script))
    assert b"tmpfs on /x" in done.stdout
    assert done.returncode != 0


def test_detached_life(site: Site) -> None:
    live = site.live
    script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    live.out("run", "-d", "--name", "detached", *THERE, *sh(script))
    following = subprocess.Popen(live.argv("logs", "-f", "detached"), stdout=subprocess.PIPE)
    assert live.out("exec", "detached", "cat", "/etc/hostname") == live.out("ps", "-q")[:12] + "\n"
    assert live.run("exec", "detached", "sh", "-c", "exit 9").returncode == 9
    assert live.run("exec", "-i", "detached", "cat", stdin=b"in").stdout == b"in"
    waiting = subprocess.Popen(live.argv("wait", "detached"), stdout=subprocess.PIPE)
    until(lambda: "up" in live.out("logs", "detached"))
    live.out("stop", "detached")
    assert waiting.communicate(timeout=30)[0] == b"3\n"
    assert following.communicate(timeout=30)[0] == b"up\nbye\n"
    live.out("start", "detached")
    live.out("kill", "detached")
    until(lambda: not live.inspect("detached")["State"]["Running"])
    assert live.inspect("detached")["State"]["ExitCode"] == 137
    live.out("rm", "detached")
    until(lambda: not list((site.directory / "state" / "w").iterdir()))


@pytest.mark.parametrize(
    "words", [("run", "--rm", "-it", *THERE, "busybox", "sh"), ("exec", "-it", "terminal", "sh")]
)
def test_a_terminal(site: Site, words: tuple[str, ...]) -> None:
    if words[0] == "exec":
        site.live.out("run", "-d", "--name", "terminal", *THERE, *sh("sleep 100"))
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 101, 0, 0))
    process = subprocess.Popen(
        site.live.argv(*words),
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inner)
    seen = b""

    def expect(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(outer, 4096)
        seen = seen.partition(text)[2]

    expect(b"# ")
    os.write(outer, b"stty size\n")
    expect(b"31 101")
    fcntl.ioctl(outer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    os.write(outer, b"sleep 1; stty size\n")
    expect(b"40 120")
    os.write(outer, b"echo now; sleep 50\n")
    expect(b"\nnow")
    time.sleep(0.5)
    began = time.monotonic()
    os.write(outer, b"\x03")
    expect(b"# ")
    assert time.monotonic() - began < 20
    os.write(outer, b"exit 5\n")
    assert process.wait(30) == 5
    os.close(outer)


def test_verify_promises_the_inner_wall_only(site: Site) -> None:
    live = site.live
    live.out("run", "-d", "--name", "proven", *THERE, *sh("sleep 100"))
    done = live.run("verify", "--format", "json", "proven")
    (report,) = json.loads(done.stdout)
    outer = [check for check in report["checks"] if check["boundary"] == "vm"]
    assert [check["name"] for check in outer] == ["own kernel"]
    assert outer[0]["relaxed"]
    assert "not promised for a box: it runs THIS host's kernel" in outer[0]["evidence"]
    broken = [check for check in report["checks"] if not check["kept"]]
    assert not broken
    assert done.returncode == 0
    assert len([check for check in report["checks"] if check["boundary"] == "probe"]) > 20


def test_layers_are_sent_once(site: Site) -> None:
    run(site, "--rm", "busybox", "true")
    blobs = site.directory / "state" / "blobs"
    before = {path.name: path.stat().st_mtime_ns for path in blobs.iterdir()}
    run(site, "--rm", "busybox", "true")
    assert {path.name: path.stat().st_mtime_ns for path in blobs.iterdir()} == before


# --- faults ---


def test_a_killed_daemon_loses_nothing(site: Site) -> None:
    live = site.live
    counting(site, "survivor")
    until(lambda: len(logged(site, "survivor")) > 3)
    agent = site.agent
    live.kill()
    time.sleep(1.5)
    live.out("info")
    assert site.agent == agent
    until(
        lambda: live.inspect("survivor")["State"]["Running"] and len(logged(site, "survivor")) > 25
    )
    numbers = logged(site, "survivor")
    assert numbers == list(range(len(numbers)))
    assert live.run("exec", "survivor", "true").returncode == 0


def test_a_container_that_ends_while_no_daemon_is_there(site: Site) -> None:
    live = site.live
    counting(site, "short", 30)
    live.kill()
    time.sleep(4)
    assert live.out("wait", "short") == "6\n"
    assert logged(site, "short") == list(range(30))


def test_a_cut_connection_is_made_anew(site: Site) -> None:
    live = site.live
    counting(site, "cut", 60)
    following = subprocess.Popen(live.argv("logs", "-f", "cut"), stdout=subprocess.PIPE)
    until(lambda: len(logged(site, "cut")) > 3)
    site.box.cut()
    assert live.run("exec", "cut", "true").returncode == 0, "it waits for the new connection"
    assert live.out("wait", "cut") == "6\n"
    output = following.communicate(timeout=60)[0]
    assert [int(line) for line in output.split()] == list(range(60))


def test_a_box_that_is_away_when_the_daemon_starts(site: Site) -> None:
    live = site.live
    counting(site, "away", 50)
    until(lambda: len(logged(site, "away")) > 3)
    live.kill()
    site.box.stop()
    try:
        assert live.inspect("away")["State"]["Running"], "as far as anybody knows"
        done = live.run("machine", "stop", NAME)
        assert done.returncode == 1
        assert b"\n" not in done.stderr.strip()
    finally:
        site.box.start()
    assert live.out("wait", "away") == "6\n"
    assert logged(site, "away") == list(range(50))


def test_a_killed_agent_ends_its_containers_with_the_reason(site: Site) -> None:
    live = site.live
    counting(site, "lost")
    until(lambda: len(logged(site, "lost")) > 3)
    os.kill(site.agent, signal.SIGKILL)
    until(lambda: not live.inspect("lost")["State"]["Running"])
    state = live.inspect("lost")["State"]
    assert state["ExitCode"] == 137
    assert state["Error"] == "machine edge: its agent was started anew and lost it"
    until(lambda: not _runs("sh", "while [ $i -lt"))
    assert run(site, "--rm", "busybox", "true").returncode == 0
    assert live.out("start", "lost")


def _runs(*words: str) -> bool:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if line.startswith(words[0]) and words[1] in line:
            return True
    return False


# --- adding one ---


@pytest.fixture
def free(base: Site) -> Site:
    """No machine is there."""
    base.live.run("machine", "rm", "-f", NAME)
    return base


def refused(site: Site, *flags: str, url: str = "") -> str:
    """The one line that says why the box could not be added; nothing is left of the attempt."""
    before = sorted(STATE.iterdir()) if STATE.exists() else []
    done = site.live.run("machine", "add", NAME, url or site.box.url, *flags)
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("hybrid: ")
    assert site.live.run("machine", "inspect", NAME).returncode == 1
    machines = site.live.paths.root / "machines"
    assert not machines.exists() or not list(machines.iterdir())
    assert (sorted(STATE.iterdir()) if STATE.exists() else []) == before
    return line


def test_an_unknown_host_key(free: Site) -> None:
    line = refused(free)
    assert "unknown host key" in line
    assert free.box.fingerprint() in line
    assert "--accept-host-key" in line
    assert "not the accepted" in refused(free, "--fingerprint", "SHA256:other")
    free.live.out("machine", "add", NAME, free.box.url, "--fingerprint", free.box.fingerprint())


def test_a_changed_host_key(site: Site) -> None:
    box = site.box
    box.stop()
    old = {name: (box.directory / name).read_bytes() for name in ("host_key", "host_key.pub")}
    box.new_host_key()
    box.start()
    try:
        until(lambda: b"CHANGED" in site.live.run("machine", "rm", NAME).stderr, 90)
        site.live.kill()
        done = site.live.run("machine", "rm", NAME)
        assert done.returncode == 1
        assert b"hybrid machine rm --force" in done.stderr
    finally:
        box.stop()
        for name, data in old.items():
            (box.directory / name).write_bytes(data)
        box.start()
    until(lambda: site.live.run("machine", "shell", NAME, "true").returncode == 0)


def test_no_way_in(free: Site) -> None:
    assert "Connection refused" in refused(free, url="ssh://root@127.0.0.1:1")
    assert "not an SSH address" in refused(free, url="ssh://a b")
    key = free.box.home / ".ssh" / "id_ed25519"
    key.rename(free.box.home / "away")
    try:
        assert "user 'root' was not let in" in refused(free, "--accept-host-key")
        identity = str(free.box.home / "away")
        free.live.out("machine", "add", NAME, free.box.url, "--accept-host-key", "-i", identity)
    finally:
        (free.box.home / "away").rename(key)


@pytest.mark.parametrize("missing", ["crun", "python3"])
def test_a_box_without_what_is_needed(free: Site, missing: str) -> None:
    with free.box.lacking(missing):
        line = refused(free, "--accept-host-key")
    assert f"no {missing} there; install the package {missing}" in line


def test_a_name_is_taken_once(site: Site) -> None:
    done = site.live.run("machine", "add", NAME, site.box.url)
    assert (done.returncode, done.stderr) == (1, b"hybrid: a machine named edge exists already\n")
