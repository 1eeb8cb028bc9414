"""The link over vsock, where host and guest kernel have it. The agent listens on ``PORT``.

Connection ids: 2 is the host, 1 this machine itself (``vsock_loopback``), a guest's is in its
domain.
"""

from __future__ import annotations

import socket

from hybrid.errors import Unsupported
from hybrid.link.transport import SocketTransport, connect_socket

PORT = 1024
LOCAL = 1


async def connect(cid: int, port: int = PORT) -> SocketTransport:
    """Connects to the agent in guest ``cid``; Unavailable if none listens, Unsupported without
    vsock in this kernel."""
    if not hasattr(socket, "AF_VSOCK"):
        raise Unsupported("this Python has no vsock sockets")
    return await connect_socket(socket.AF_VSOCK, (cid, port), f"vsock {cid}:{port}")
