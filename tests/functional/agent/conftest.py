"""A real agent as a child process, real crun, layers made with mksquashfs from the static busybox."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hybrid.errors import Unavailable
from hybrid.link import unix
from hybrid.link.transport import Transport
from hybrid.wire.messages import Source
from tests.agentdriver import GROUP, Driver, make_layers

NEEDED = ("crun", "mksquashfs", "busybox")
ROOT = Path(__file__).parents[3]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root and the programs."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0 or missing:
                item.add_marker(pytest.mark.skip(reason=f"needs root and {', '.join(NEEDED)}"))


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_layers(tmp_path_factory.mktemp("layers"))


@dataclass
class RunningAgent:
    socket: Path
    state: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        command = [sys.executable, "-m", "hybrid.agent.main", "--unix", str(self.socket)]
        command += ["--state", str(self.state), "--group", GROUP]
        self.process = subprocess.Popen(command, cwd=ROOT)


@pytest.fixture
def agent_directory() -> Iterator[Path]:
    """Where an agent works: containers' users must be able to enter it, so not below pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="hybrid-test-", dir="/run"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def agent_process(agent_directory: Path) -> Iterator[RunningAgent]:
    """A running agent; afterwards nothing may be left of its containers."""
    agent = RunningAgent(agent_directory / "sock", agent_directory / "state")
    agent.start()
    yield agent
    agent.process.terminate()
    assert agent.process.wait(timeout=20) == 0
    assert list((agent_directory / "state" / "c").iterdir()) == []
    assert list((agent_directory / "state" / "m").iterdir()) == []


@pytest.fixture
async def driver(agent_process: RunningAgent, layers: list[Path]) -> AsyncIterator[Driver]:
    async def transport() -> Transport:
        while True:
            with contextlib.suppress(Unavailable):  # not there yet, or nobody listens there yet
                return await unix.connect(agent_process.socket)
            await asyncio.sleep(0.02)

    found = Driver(transport, [Source("file", str(path)) for path in layers])
    await found.connect()
    yield found
    await found.disconnect()
