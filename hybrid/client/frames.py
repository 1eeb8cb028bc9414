"""The 8-byte frames in which attach, exec and logs carry several streams: bytes in, frames out.

``[stream, 0, 0, 0, length (32 bit, big-endian)]`` (moby ``pkg/stdcopy``). Payloads are handed out
as they come in, in
pieces, so that a large frame costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from hybrid.errors import Unavailable

HEADER = 8
STDIN, STDOUT, STDERR, SYSTEM_ERROR = range(4)


class Demultiplexer:
    """Splits one byte stream into ``(stream, payload)`` pieces."""

    def __init__(self) -> None:
        self._header = b""
        self._stream = STDOUT
        self._left = 0

    def __repr__(self) -> str:
        return f"<Demultiplexer stream={self._stream} left={self._left}>"

    def receive(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The pieces that ``data`` completes; Unavailable when it is not framed at all."""
        while data:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                yield self._stream, piece
                continue
            missing = HEADER - len(self._header)
            self._header, data = self._header + data[:missing], data[missing:]
            if len(self._header) == HEADER:
                self._stream, self._left = _parse(self._header)
                self._header = b""


def _parse(header: bytes) -> tuple[int, int]:
    if header[0] > SYSTEM_ERROR or any(header[1:4]):
        raise Unavailable(f"the daemon's output stream is broken: {header!r} is not a frame header")
    return header[0], int.from_bytes(header[4:], "big")
