"""The link over a Unix socket: to the agent of this host, or wherever a socket leads to an agent."""

from __future__ import annotations

import socket
from pathlib import Path

from hybrid.link.transport import SocketTransport, connect_socket


async def connect(path: Path) -> SocketTransport:
    """Connects to the agent that listens on ``path``; Unavailable if none does."""
    return await connect_socket(socket.AF_UNIX, str(path), f"agent socket {path}")
