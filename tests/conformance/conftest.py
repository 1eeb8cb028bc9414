"""Docker's own clients, unmodified, against one real daemon."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator

import docker
import pytest

from tests.livedaemon import LiveDaemon

Docker = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def docker_cli(live: LiveDaemon) -> Docker:
    """Runs the docker command."""
    program = shutil.which("docker")
    assert program, "the docker command is missing: run 'scripts/setup packages test'"

    def call(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, "-H", f"unix://{live.paths.socket}", *arguments],
            input=stdin,
            capture_output=True,
            timeout=120,
        )

    return call


@pytest.fixture(scope="session")
def docker_py(live: LiveDaemon) -> Iterator[docker.DockerClient]:
    """docker-py's client."""
    client = docker.DockerClient(base_url=f"unix://{live.paths.socket}")
    yield client
    client.close()
