"""Gives a process that crun starts its stdio: pipes, or a terminal that crun makes and hands over."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from hybrid.agent import descriptors
from hybrid.agent.process import Process
from hybrid.errors import Internal

Start = Callable[[Sequence[int] | None, str], Awaitable[int]]


async def started_with_stdio(
    process: Process, owner: tuple[int, int], directory: Path, start: Start
) -> int:
    """Calls ``start`` with stdio, or with the path of a socket that takes the terminal; returns the pid."""
    if process.terminal:
        return await _with_terminal(process, directory, start)
    stdio = process.make_pipes(*owner)
    try:
        return await start(stdio, "")
    finally:
        descriptors.close(*stdio)


async def _with_terminal(process: Process, directory: Path, start: Start) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        # the agent's working directory is its state directory: so the path is short, however long that one's is
        name = os.path.relpath(directory / "console")
        listener.bind(name)
        listener.listen(1)
        listener.setblocking(False)
        try:
            pid = await start(None, f"/proc/{os.getpid()}/cwd/{name}")
        finally:
            os.unlink(name)
        try:
            peer, _ = listener.accept()  # crun has connected and sent it before it ended
            with peer:
                received = socket.recv_fds(peer, 256, 1)[1]
        except OSError as error:
            raise Internal(f"crun handed over no terminal: {error}") from error
    if not received:
        raise Internal("crun handed over no terminal")
    os.set_inheritable(received[0], False)
    process.take_terminal(received[0])
    return pid
