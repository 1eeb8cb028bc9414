"""Connections that stop being HTTP: attach and exec take the socket over (Docker calls it hijacking).

``Front`` stands between the socket and aiohttp. It reads request heads just far enough to see a request that will be
hijacked, gives aiohttp that request's head and body and not a byte more, and keeps what follows for the hijacker: with
``Upgrade: tcp`` (docker CLI) and without (bytes right behind the request) alike.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from hybrid.errors import Internal, Unavailable
from hybrid.wire import journal

HIJACKED = re.compile(
    rb"POST\s+(?:/v[\d.]+)?/+(?:containers/[^/\s?]+/attach|exec/[^/\s?]+/start)[?\s]"
)
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,10})[ \t]*\r\n", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
HEAD_END = b"\r\n\r\n"
HEAD_MAX = 128 << 10
INPUT_MAX = 256 << 10
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
RAW = "application/vnd.docker.raw-stream"
FRAME = struct.Struct(">BxxxI")
_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid


def frame(record: journal.Record, *, tty: bool) -> bytes:
    """One journal record in Docker's stream format: as it is for a terminal, else with stdcopy's header."""
    data, stream = record.data, record.stream
    if stream == journal.DROPPED:
        data = b"[hybrid: %s bytes of output were dropped here]\n" % data
        stream = journal.STDERR
    return data if tty else FRAME.pack(stream, len(data)) + data


class Front(asyncio.Protocol):
    """See the module. ``inner`` is aiohttp's protocol for this connection."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._head = bytearray()
        self._body_left = 0  # of a request that goes through to aiohttp
        self._passing = False  # a body of unknown length goes through, until the next connection
        self._kept = bytearray()  # what belongs to the hijacker
        self._hijacking = False
        self._eof = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._lost = False

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._hijacking:
            self._keep(data)
        elif self._passing:
            self._inner.data_received(data)
        else:
            self._route(data)

    def eof_received(self) -> bool | None:
        self._eof = True
        self._news.set()
        if self._hijacking:
            return True  # half-close: output goes on
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._eof = True
        self._news.set()
        self._room.set()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._room.clear()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._room.set()
        self._inner.resume_writing()

    # --- finding the request ---

    def _route(self, data: bytes) -> None:
        """Three cases: inside a body (pass that much), inside a head (collect it), a whole head (decide)."""
        while data:
            if self._body_left:
                part, data = data[: self._body_left], data[self._body_left :]
                self._body_left -= len(part)
                self._inner.data_received(part)
                continue
            self._head += data
            end = self._head.find(HEAD_END)
            if end < 0:
                if len(self._head) > HEAD_MAX:
                    self._flush_head()
                return
            head, data = bytes(self._head[: end + 4]), bytes(self._head[end + 4 :])
            self._head.clear()
            self._begin(head)
            if self._hijacking:
                part, rest = data[: self._body_left], data[self._body_left :]
                self._body_left -= len(part)
                if part:
                    self._inner.data_received(part)
                self._keep(rest)
                return
            if self._passing and data:
                self._inner.data_received(data)
                return

    def _begin(self, head: bytes) -> None:
        length = CONTENT_LENGTH.search(head)
        chunked = CHUNKED.search(head) is not None
        self._body_left = int(length[1]) if length and not chunked else 0
        self._passing = chunked
        # A chunked body ends where only a parser knows; such a request is hijacked by what comes after its answer.
        self._hijacking = not chunked and HIJACKED.match(head) is not None
        self._inner.data_received(head)

    def _flush_head(self) -> None:
        data = bytes(self._head)
        self._head.clear()
        self._passing = True
        self._inner.data_received(data)

    # --- what the hijacker has ---

    def _keep(self, data: bytes) -> None:
        if self._body_left:
            part, data = data[: self._body_left], data[self._body_left :]
            self._body_left -= len(part)
            self._inner.data_received(part)
        self._kept += data
        if len(self._kept) > INPUT_MAX and self._transport is not None:
            self._transport.pause_reading()
        if data:
            self._news.set()

    def hijack(self) -> None:
        """From now on all that arrives is the caller's."""
        self._hijacking = True

    def release(self) -> bool:
        """The request is answered as plain HTTP after all: what was kept is the next request.

        False if there can be none: the client has closed its side.
        """
        if not self._hijacking:
            return True
        self._hijacking = False
        data = bytes(self._kept)
        self._kept.clear()
        if data:
            self._route(data)
        return not self._eof

    async def read(self) -> bytes:
        """What the client sent; b"" after it closed its side."""
        while not self._kept:
            if self._eof:
                return b""
            self._news.clear()
            await self._news.wait()
        data = bytes(self._kept)
        self._kept.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Waits while the client does not read; Unavailable when it is gone."""
        if self._lost or self._transport is None or self._transport.is_closing():
            raise Unavailable("the client went away")
        self._transport.write(data)
        await self._room.wait()

    async def gone(self) -> None:
        """Returns when the connection is lost."""
        while not self._lost:
            self._news.clear()
            await self._news.wait()

    def end_output(self) -> None:
        """No more output: the client sees the end."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()


def front_factory(server: Callable[[], asyncio.Protocol]) -> Callable[[], Front]:
    """For ``loop.create_server``: connections of aiohttp's ``server``, each behind a Front."""
    return lambda: Front(server())


def front_of(request: web.Request) -> Front:
    """The connection of a request."""
    transport = request.transport
    protocol = transport.get_protocol() if isinstance(transport, asyncio.Transport) else None
    if not isinstance(protocol, Front):
        raise Internal("this connection cannot be taken over")
    return protocol


def answer_head(request: web.Request, content_type: str, headers: dict[str, str]) -> bytes:
    """The literal head of the answer to a hijacking request: 101 if it asked for an upgrade, else 200."""
    if "Upgrade" in request.headers:
        first = "HTTP/1.1 101 UPGRADED"
        lines = {"Content-Type": content_type, "Connection": "Upgrade", "Upgrade": "tcp"}
    else:
        first, lines = "HTTP/1.1 200 OK", {"Content-Type": content_type}
    text = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **headers}.items())
    return f"{first}\r\n{text}\r\n".encode()


class Hijacked(web.StreamResponse):
    """What a handler returns after it has used the connection itself: aiohttp sends nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        del request
        return None

    async def write_eof(self, data: Any = b"") -> None:
        del data


def caller_of(request: web.Request) -> tuple[int, int]:
    """Uid and gid of the process at the other end of a Unix socket (the kernel says so); root's for others."""
    connection = request.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return 0, 0
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, gid = _PEER.unpack(data)
    return uid, gid
