"""The link over vsock, where host and guest kernel have it. The agent listens on ``PORT``.

Connection ids: 2 is the host, 1 this machine itself (``vsock_loopback``), a guest's is in its
domain. A vsock address has no owner and no permissions, so any user of the host could talk to any
guest's agent. Therefore the agent believes only who calls from a reserved port, for which the kernel
demands CAP_NET_BIND_SERVICE (``vsock(7)``; LAST_RESERVED_PORT in net/vmw_vsock/af_vsock.c).
"""

from __future__ import annotations

import errno
import random
import socket

from hybrid.errors import Forbidden, Unavailable, Unsupported
from hybrid.link.transport import SocketTransport, connect_socket

PORT = 1024
LOCAL = 1
_RESERVED = range(1, 1024)


async def connect(cid: int, port: int = PORT) -> SocketTransport:
    """Connects to the agent in guest ``cid``; Unavailable if none listens, Unsupported without
    vsock in this kernel, Forbidden without the right to call from a reserved port."""
    if not hasattr(socket, "AF_VSOCK"):
        raise Unsupported("this Python has no vsock sockets")
    name = f"vsock {cid}:{port}"
    return await connect_socket(
        socket.AF_VSOCK, (cid, port), name, prepare=lambda new: _reserve(new, name)
    )


def _reserve(new: socket.socket, name: str) -> None:
    """Binds ``new`` to a free reserved port."""
    for port in random.sample(_RESERVED, len(_RESERVED)):
        try:
            new.bind((socket.VMADDR_CID_ANY, port))
            return
        except PermissionError as error:
            raise Forbidden(
                f"{name}: only root (CAP_NET_BIND_SERVICE) may talk to a guest's agent"
            ) from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise Unavailable(f"{name}: all {len(_RESERVED)} reserved vsock ports of this host are in use")
