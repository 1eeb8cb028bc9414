"""A guest that is started by hand, so that its port can be treated as badly as a dying daemon would."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hybrid.guest.build import build_guest
from hybrid.link.client import AgentClient
from tests.bareguest import BareGuest, bare_guest
from tests.built import BUILT


@pytest.fixture(scope="module")
def guest() -> Iterator[BareGuest]:
    """One guest for a whole module."""
    image = build_guest(BUILT, print)
    with (
        tempfile.TemporaryDirectory(prefix="hybrid-") as directory,
        bare_guest(image, Path(directory)) as booted,
    ):
        yield booted


@pytest.fixture
async def client(guest: BareGuest) -> AsyncIterator[AgentClient]:
    connected = await guest.connect()
    yield connected
    await connected.close()
