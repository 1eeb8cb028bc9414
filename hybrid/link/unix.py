"""The link over a Unix socket: to this host's agent, or wherever a socket leads to one."""

from __future__ import annotations

import socket
from pathlib import Path

from hybrid.link.transport import SocketTransport, connect_socket


async def connect(path: Path) -> SocketTransport:
    """Connects to the agent that listens on ``path``; Unavailable if none does."""
    return await connect_socket(socket.AF_UNIX, str(path), f"agent socket {path}")
