"""Where the daemon listens: Unix sockets. Plain TCP would hand root to the network, so it is refused."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
from collections.abc import Callable
from pathlib import Path

from hybrid.errors import Conflict, InvalidInput, Unsupported
from hybrid.paths import SOCKET_PATH_MAX

GROUP = "hybrid"
BACKLOG = 128


def parse(host: str) -> Path:
    """The socket path of ``unix://PATH``."""
    scheme, separator, rest = host.partition("://")
    if scheme == "tcp":
        raise Unsupported(
            f"listening on {host}: TCP needs mutual TLS, which this build does not have yet; use unix:// (over SSH, if"
            " need be)"
        )
    if not separator or scheme != "unix" or not rest.startswith("/"):
        raise InvalidInput(f"invalid --host {host!r}: use unix:///PATH")
    if len(os.fsencode(rest)) > SOCKET_PATH_MAX:
        raise InvalidInput(
            f"invalid --host {host!r}: a socket's path has at most {SOCKET_PATH_MAX} bytes"
        )
    return Path(rest)


async def listen(path: Path, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
    """Listens on that Unix socket, for root and the group ``hybrid``. Conflict if another server does."""
    await _remove_stale(path)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    loop = asyncio.get_running_loop()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Bound with the rights it is to have: between bind and chmod nobody else gets in.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        with contextlib.suppress(KeyError):
            os.chown(path, 0, grp.getgrnam(GROUP).gr_gid)
        path.chmod(0o660)
        listener.setblocking(False)
        return await loop.create_unix_server(protocol, sock=listener, backlog=BACKLOG)
    except OSError as error:
        listener.close()
        raise Conflict(f"cannot listen on {path}: {error.strerror}") from error


async def _remove_stale(path: Path) -> None:
    if not path.exists():
        return
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        path.unlink()
        return
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    raise Conflict(f"cannot listen on {path}: a daemon listens there already")
