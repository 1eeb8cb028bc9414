"""The kept tail of a process's output: journal records in one flat buffer, addressed by byte offset."""

from __future__ import annotations

import time

from hybrid.errors import InvalidInput
from hybrid.wire.journal import DROPPED, HEADER, MAX_PAYLOAD, pack

LIMIT = 4 << 20
_LARGEST = HEADER.size + MAX_PAYLOAD


class Ring:
    """Holds at most ``limit`` bytes of records, ``start`` … ``end`` being their offsets.

    The marker that stands for what was dropped has no offset of its own: whoever reads ``n`` dropped bytes is ``n``
    further afterwards.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self.start = 0

    def __repr__(self) -> str:
        return f"<Ring {self.start}…{self.end}>"

    @property
    def end(self) -> int:
        return self.start + len(self._buffer)

    @property
    def has_room(self) -> bool:
        """One more record of any size fits without dropping another."""
        return len(self._buffer) + _LARGEST <= self._limit

    def append(self, stream: int, data: bytes) -> None:
        """Adds one record, dropping the oldest ones when there is no room."""
        excess = len(self._buffer) + HEADER.size + len(data) - self._limit
        if excess > 0:
            self._drop(excess)
        self._buffer += pack(time.time_ns(), stream, data)

    def acknowledge(self, offset: int) -> None:
        """Forgets the whole records before ``offset``."""
        if offset > self.end:
            raise InvalidInput(f"output offset {offset} is beyond the end, {self.end}")
        position = 0
        while (after := self._after(position)) <= offset - self.start:
            position = after
        self._forget(position)

    def read(self, offset: int, size: int) -> tuple[bytes, int]:
        """At most ``size`` bytes from ``offset`` and the offset after them; a marker first where some are gone."""
        if offset > self.end:
            raise InvalidInput(f"output offset {offset} is beyond the end, {self.end}")
        if offset < self.start:
            return pack(time.time_ns(), DROPPED, str(self.start - offset).encode()), self.start
        position = offset - self.start
        data = bytes(self._buffer[position : position + size])
        return data, offset + len(data)

    def _drop(self, excess: int) -> None:
        position = 0
        while position < excess:
            position = self._after(position)
        self._forget(position)

    def _after(self, position: int) -> int:
        """Where the record at ``position`` ends; beyond the buffer if there is none."""
        if position == len(self._buffer):
            return position + 1
        return position + HEADER.size + int(HEADER.unpack_from(self._buffer, position)[2])

    def _forget(self, size: int) -> None:
        del self._buffer[:size]
        self.start += size
