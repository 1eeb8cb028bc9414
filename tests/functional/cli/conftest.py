"""One real daemon for all tests here: containers on this host's own kernel, no guests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.livedaemon import LiveDaemon, live_daemon


@pytest.fixture(scope="session")
def live() -> Iterator[LiveDaemon]:
    """A daemon with busybox loaded."""
    if os.geteuid():
        pytest.skip("needs root")
    with live_daemon() as daemon:
        daemon.load("busybox")
        yield daemon
