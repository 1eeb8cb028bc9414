"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.livedaemon import LiveDaemon

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test talks to a daemon, or sees a compose project, that the caller's shell names."""
    for name in list(os.environ):
        if name.startswith(("HYBRID_", "DOCKER_", "COMPOSE_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def live() -> Iterator[LiveDaemon]:
    """A real daemon with busybox loaded: containers on this host's own kernel, no guests."""
    from tests.livedaemon import live_daemon

    if os.geteuid():
        pytest.skip("needs root")
    with live_daemon() as daemon:
        daemon.load("busybox")
        yield daemon


@pytest.fixture
def top() -> Path:
    """The top of the checkout."""
    return TOP


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where root is needed and missing, that is said, not hidden in a failure."""
    if os.geteuid() == 0:
        return
    reason = pytest.mark.skip(reason="needs root")
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("guest"):
            item.add_marker(reason)
