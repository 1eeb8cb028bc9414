"""Guests that stand ready: taken, replaced, and gone with their daemon, however that ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from hybrid.client.address import UnixAddress
from hybrid.client.engine import Engine, Json
from hybrid.guest.build import build_guest
from hybrid.guest.tools import build_tools
from tests.leftovers import nothing_left, processes
from tests.livedaemon import BUILT, LiveDaemon, live_daemon, until

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(400)]
SIZE = 2


@pytest.fixture(scope="module")
def live() -> Iterator[LiveDaemon]:
    """A daemon that has guests stand ready."""
    build_guest(BUILT, print)
    build_tools(BUILT, print)
    with live_daemon(guest=True, pool=SIZE) as daemon:
        daemon.load("busybox")
        yield daemon


@pytest.fixture
def full(live: LiveDaemon) -> Iterator[LiveDaemon]:
    """With as many as it wants, and nothing else running."""
    refill(live)
    yield live
    ever = live.out("ps", "-aq", "--no-trunc").split()
    if ever:
        live.out("rm", "-fv", *ever)
    nothing_left(live, ever)


def refill(live: LiveDaemon) -> None:
    if not engine(live).templates():  # it goes with its daemon
        live.out("run", "--rm", "busybox", "true")
    until(lambda: len(ready(live)) == SIZE)


def engine(live: LiveDaemon) -> Engine:
    return Engine(UnixAddress(live.paths.socket))


def ready(live: LiveDaemon) -> list[str]:
    return [one["Id"] for one in engine(live).machines(all=True) if one["Status"] == "ready"]


def qemus(live: LiveDaemon) -> dict[str, int]:
    """The pids of this daemon's guests, by the beginning of their machine's id."""
    prefix = f"guest=hybrid-{live.paths.instance}-"
    return {
        word[len(prefix) :].partition(",")[0]: pid
        for pid, words in processes()
        for word in words
        if word.startswith(prefix)
    }


def origin(live: LiveDaemon, name: str) -> Json:
    found: Json = live.inspect(name)["Hybrid"]["Origin"]
    return found


def test_a_container_takes_one_and_another_is_made(full: LiveDaemon) -> None:
    before = ready(full)
    full.out("run", "-d", "--name", "one", "-p", "127.0.0.1::80", "busybox", "sleep", "10000")
    (machine,) = (one["Id"] for one in engine(full).machines() if one["Name"] == "one")
    assert machine in before
    listed = full.out("machine", "ls")
    assert "one" in listed and "ready" not in listed
    assert "ready" in full.out("machine", "ls", "--all")
    found = origin(full, "one")
    assert found["Kind"] == "clone" and found["Taken"] and found["Reseeded"], found
    proof = full.out("verify", "one")
    assert "stood ready for" in proof and "reseeded first thing" in proof
    until(lambda: len(ready(full)) == SIZE)
    assert len(qemus(full)) == SIZE + 1
    # One whose shares need memory of its own is cloned on demand.
    full.out("run", "-d", "--name", "two", "-v", "/data", "busybox", "sleep", "10000")
    assert origin(full, "two")["Memory"] == "copied" and not origin(full, "two")["Taken"]
    assert "Ready: 2" in full.out("info")


def test_one_that_died_is_not_used(full: LiveDaemon) -> None:
    before = set(ready(full))
    for pid in qemus(full).values():
        os.kill(pid, signal.SIGKILL)
    assert full.out("run", "--rm", "busybox", "echo", "here") == "here\n"
    until(lambda: len(ready(full)) == SIZE and not before & set(ready(full)))


def test_without_its_template_none_stands_ready(full: LiveDaemon) -> None:
    full.out("template", "rm", engine(full).templates()[0]["Key"])
    until(lambda: not ready(full) and not qemus(full))


def test_none_outlives_a_daemon_that_is_stopped(full: LiveDaemon) -> None:
    full.out("run", "-d", "--name", "one", "busybox", "sleep", "10000")
    until(lambda: len(ready(full)) == SIZE)
    full.end()
    assert len(qemus(full)) == 1
    assert full.out("exec", "one", "echo", "here") == "here\n"


def test_the_next_daemon_ends_those_of_one_that_was_killed(full: LiveDaemon) -> None:
    full.out("run", "-d", "--name", "one", "busybox", "sleep", "10000")
    until(lambda: len(ready(full)) == SIZE)
    full.kill()
    assert len(qemus(full)) == SIZE + 1
    assert full.out("exec", "one", "echo", "here") == "here\n"
    until(lambda: len(qemus(full)) == 1)
    assert origin(full, "one")["Taken"]
    nothing_left(full)


@pytest.mark.parametrize("moment", [0.0, 0.15, 0.4, 0.8])
def test_the_daemon_is_killed_while_one_is_made(full: LiveDaemon, moment: float) -> None:
    for pid in qemus(full).values():
        os.kill(pid, signal.SIGKILL)
    known = set(qemus(full))
    until(lambda: set(qemus(full)) - known)
    time.sleep(moment)
    full.kill()
    full.out("ps")
    until(lambda: not qemus(full))
    nothing_left(full)


def test_the_daemon_is_killed_while_one_is_taken(full: LiveDaemon) -> None:
    for moment in (0.02, 0.1, 0.3):
        full.out("create", "--name", "one", "busybox", "sleep", "10000")
        refill(full)
        full.kill_during(moment, lambda engine: engine.start("one"))
        until(lambda: len(qemus(full)) <= 1)
        nothing_left(full)
        full.out("rm", "-f", "one")
