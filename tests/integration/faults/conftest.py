"""One real daemon for the module, that its tests may kill, with guests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hybrid.guest.build import build_guest
from hybrid.guest.tools import build_tools
from tests.leftovers import nothing_left
from tests.livedaemon import BUILT, LiveDaemon, live_daemon


@pytest.fixture(scope="module")
def live() -> Iterator[LiveDaemon]:
    """A daemon with the guest image, the tools and busybox."""
    build_guest(BUILT, print)
    build_tools(BUILT, print)
    with live_daemon(guest=True) as daemon:
        daemon.load("busybox")
        yield daemon


@pytest.fixture
def clean(live: LiveDaemon) -> Iterator[None]:
    """Whatever the test does, in the end all can be removed, and then nothing is left of any."""
    yield
    ever = live.out("ps", "-aq", "--no-trunc").split()
    if ever:
        live.out("rm", "-fv", *ever)
    # libvirt notices the end of a guest a moment later.
    nothing_left(live, ever)
