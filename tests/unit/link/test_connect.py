from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hybrid.errors import Unavailable
from hybrid.link import serial, unix
from hybrid.link.transport import SocketTransport


async def test_nothing_there_is_unavailable_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"agent port .*/port: No such file or directory"):
        await serial.connect(tmp_path / "port")
    with pytest.raises(Unavailable, match=r"agent socket .*/agent: No such file or directory"):
        await unix.connect(tmp_path / "agent")


async def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unused:
        unused.bind(str(tmp_path / "agent"))
    with pytest.raises(Unavailable, match="Connection refused"):
        await unix.connect(tmp_path / "agent")


async def test_a_path_too_long_for_a_socket_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="path too long"):
        await unix.connect(tmp_path / ("x" * 120))


async def test_a_closed_transport_says_so_and_closes_twice() -> None:
    ours, theirs = socket.socketpair()
    transport = SocketTransport(ours, "agent socket x")
    await transport.close()
    await transport.close()
    assert theirs.recv(1) == b""
    theirs.close()
    assert repr(transport) == "<SocketTransport agent socket x closed>"
    with pytest.raises(Unavailable, match="agent socket x: "):
        await transport.read(1)


async def test_a_broken_connection_is_unavailable() -> None:
    ours, theirs = socket.socketpair()
    transport = SocketTransport(ours, "agent socket x")
    theirs.close()
    with pytest.raises(Unavailable, match="agent socket x: Broken pipe"):
        await transport.write(b"x")
    await transport.close()
