"""The link over a virtio-serial port, whose host end is a Unix socket of the QEMU process.

The socket comes and goes with the daemon, the byte stream behind it does not: it may hold the rests
of an earlier connection, hence ``resync``. QEMU lets one client in at a time; a second connection
waits until the first has closed. Until the guest has opened the port nothing is read, so the first
bytes wait in the socket.
"""

from __future__ import annotations

import socket
from pathlib import Path

from hybrid.link.transport import SocketTransport, connect_socket


async def connect(path: Path) -> SocketTransport:
    """Connects to the port's socket ``path``; Unavailable if its QEMU is gone."""
    return await connect_socket(socket.AF_UNIX, str(path), f"agent port {path}", resync=True)
