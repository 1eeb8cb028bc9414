"""Frames: what the link's byte stream is cut into. Bytes in, frames out; no I/O.

A frame is a 12-byte header, ``>3sBII``: magic, type, stream, payload length; then the payload.

=======  ======  =============  ==========================================================
type     stream  payload        meaning
=======  ======  =============  ==========================================================
MESSAGE  0       1 … 1 MiB      one JSON message (``hybrid.wire.envelope``)
OPEN     ≥ 1     none           the host makes a stream; ids only ever rise on one connection
DATA     ≥ 1     1 … 64 KiB     bytes of the stream
EOF      ≥ 1     none           the sender writes no more (half close)
RESET    ≥ 1     none           the sender neither writes nor reads any more; answered with RESET
WINDOW   ≥ 1     4 bytes        so many more bytes may be sent on the stream
=======  ======  =============  ==========================================================
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct(">3sBII")
MAGIC = b"\xf1hy"
MAX_MESSAGE = 1 << 20
MAX_DATA = 64 << 10
CREDIT = struct.Struct(">I")


class ProtocolError(Exception):
    """The peer sent what the protocol forbids; the connection can't go on. Its text says what."""


class FrameType(enum.IntEnum):
    MESSAGE = 1
    OPEN = 2
    DATA = 3
    EOF = 4
    RESET = 5
    WINDOW = 6


class Frame(NamedTuple):
    """A frame, or (DATA only) a piece of one: a large payload is passed on as it comes in."""

    type: FrameType
    stream: int
    payload: bytes


_TYPES = {int(kind): kind for kind in FrameType}
_LENGTHS = {
    FrameType.MESSAGE: (1, MAX_MESSAGE),
    FrameType.OPEN: (0, 0),
    FrameType.DATA: (1, MAX_DATA),
    FrameType.EOF: (0, 0),
    FrameType.RESET: (0, 0),
    FrameType.WINDOW: (CREDIT.size, CREDIT.size),
}


def header(kind: FrameType, stream: int, length: int = 0) -> bytes:
    """The 12 bytes before a payload of ``length`` bytes."""
    return HEADER.pack(MAGIC, kind, stream, length)


def message_frame(payload: bytes) -> bytes:
    """One MESSAGE; the caller has checked its length."""
    return header(FrameType.MESSAGE, 0, len(payload)) + payload


def window_frame(stream: int, credit: int) -> bytes:
    return header(FrameType.WINDOW, stream, CREDIT.size) + CREDIT.pack(credit)


class FrameParser:
    """Cuts a byte stream into frames. Holds at most one header or one message that is not yet
    whole."""

    def __init__(self) -> None:
        self._data = b""
        self._position = 0
        self._head = bytearray()
        self._body = bytearray()
        self._type: FrameType | None = None  # of the payload that is being read
        self._stream = 0
        self._missing = 0  # bytes of that payload

    @property
    def unparsed(self) -> bytes:
        """After a ProtocolError: the bytes from the offending header, or from behind the offending
        frame, on."""
        return bytes(self._head) + self._data[self._position :]

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that ``data`` completes; to be exhausted before the next call. ProtocolError
        for garbage."""
        self._data, self._position = data, 0
        while self._type is not None or self._read_header():
            frame = self._read_payload()
            if frame is not None:
                yield frame
            if self._type is not None:
                break
        if self._position == len(data):
            self._data, self._position = b"", 0

    def _read_header(self) -> bool:
        """Whether a header is complete; then type, stream and missing are set."""
        data, start = self._data, self._position
        if not self._head and len(data) - start >= HEADER.size:
            fields = HEADER.unpack_from(data, start)
            self._begin(*fields)
            self._position = start + HEADER.size
            return True
        take = data[start : start + HEADER.size - len(self._head)]
        # Garbage is recognised by its first bytes, without waiting for more that may never come.
        if not (bytes(self._head) + take)[: len(MAGIC)] == MAGIC[: len(self._head) + len(take)]:
            raise ProtocolError("no frame header where one must be")
        if len(self._head) + len(take) < HEADER.size:
            self._head += take
            self._position = start + len(take)
            return False
        self._begin(*HEADER.unpack(bytes(self._head) + take))
        self._head.clear()
        self._position = start + len(take)
        return True

    def _begin(self, magic: bytes, number: int, stream: int, length: int) -> None:
        if magic != MAGIC:
            raise ProtocolError("no frame header where one must be")
        kind = _TYPES.get(number)
        if kind is None:
            raise ProtocolError(f"unknown frame type {number}")
        if (stream == 0) != (kind is FrameType.MESSAGE):
            raise ProtocolError(f"{kind.name} frame on stream {stream}")
        least, most = _LENGTHS[kind]
        if not least <= length <= most:
            raise ProtocolError(f"{kind.name} frame of {length} bytes")
        self._type, self._stream, self._missing = kind, stream, length

    def _read_payload(self) -> Frame | None:
        """The frame, if it (or a piece of DATA) is there; ``_type`` stays set while bytes of it are
        missing."""
        kind = self._type
        assert kind is not None
        start = self._position
        end = min(start + self._missing, len(self._data))
        self._position = end
        self._missing -= end - start
        piece = self._data[start:end]
        if self._missing == 0:
            self._type = None
        if kind is FrameType.DATA:
            return Frame(kind, self._stream, piece) if piece else None
        if self._missing:
            self._body += piece
            return None
        if self._body:
            piece = bytes(self._body) + piece
            self._body.clear()
        return Frame(kind, self._stream, piece)
