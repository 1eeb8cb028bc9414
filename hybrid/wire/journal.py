"""The record format of a process's output, on the link and on the host's disk.

A record is a 16-byte header, ``>QBxxxI``: wall-clock nanoseconds, stream number, payload length (1
… 64 KiB), and the payload. Streams: 1 stdout (or the terminal), 2 stderr, 255 a marker whose
payload is the decimal count of journal bytes that were dropped there. A marker has no offset of its
own: whoever reads one that says n is n further in the journal afterwards.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hybrid.errors import InvalidInput
from hybrid.wire.value import Value, value

HEADER = struct.Struct(">QBxxxI")
STDOUT, STDERR, DROPPED = 1, 2, 255
MAX_PAYLOAD = 64 << 10


@value
class Record(Value):
    time_ns: int
    stream: int
    data: bytes


def pack(time_ns: int, stream: int, data: bytes) -> bytes:
    """One record; ``data`` holds 1 … MAX_PAYLOAD bytes."""
    return HEADER.pack(time_ns, stream, len(data)) + data


class Parser:
    """Bytes in, records out; keeps at most one incomplete record."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of the incomplete record that is held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that ``data`` completes; InvalidInput for a header that no agent writes."""
        self._buffer += data
        position = 0
        while len(self._buffer) - position >= HEADER.size:
            time_ns, stream, length = HEADER.unpack_from(self._buffer, position)
            if stream not in (STDOUT, STDERR, DROPPED) or not 0 < length <= MAX_PAYLOAD:
                raise InvalidInput("journal: malformed record header")
            end = position + HEADER.size + length
            if len(self._buffer) < end:
                break
            yield Record(time_ns, stream, bytes(self._buffer[position + HEADER.size : end]))
            position = end
        del self._buffer[:position]
