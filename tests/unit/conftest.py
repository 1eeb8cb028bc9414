"""Servers for the client side's tests: real sockets, no daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.memorydaemon import Call, HttpServer, MemoryDaemon, Reply


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[MemoryDaemon]:
    """An in-memory daemon that listens on ``tmp_path/d.sock``."""
    running = MemoryDaemon(tmp_path / "d.sock")
    yield running
    running.http.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[Call], Reply]], HttpServer]]:
    """Starts HTTP servers that answer as a function says."""
    servers: list[HttpServer] = []

    def start(answer: Callable[[Call], Reply]) -> HttpServer:
        servers.append(HttpServer(tmp_path / f"{len(servers)}.sock", answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
