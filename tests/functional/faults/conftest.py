"""One real daemon a module, that its tests may kill: containers on this host's own kernel, no guests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.leftovers import nothing_left
from tests.livedaemon import LiveDaemon, live_daemon


@pytest.fixture(scope="module")
def live() -> Iterator[LiveDaemon]:
    """A daemon with busybox loaded."""
    with live_daemon() as daemon:
        daemon.load("busybox")
        yield daemon


@pytest.fixture
def clean(live: LiveDaemon) -> Iterator[None]:
    """Whatever the test does, in the end every container can be removed, and then nothing is left of any."""
    yield
    ever = live.out("ps", "-aq", "--no-trunc").split()
    if ever:
        live.out("rm", "-fv", *ever)
    nothing_left(live, ever)
