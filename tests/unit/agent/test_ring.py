"""The kept tail of output."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.agent.ring import Ring
from hybrid.errors import InvalidInput
from hybrid.wire.journal import DROPPED, HEADER, Parser, Record


def read_all(ring: Ring, offset: int) -> list[Record]:
    parser, found = Parser(), []
    while True:
        data, offset = ring.read(offset, 100)
        if not data:
            return found
        found += parser.feed(data)


def test_what_was_written_is_read_by_offset() -> None:
    ring = Ring()
    ring.append(1, b"one")
    middle = ring.end
    ring.append(2, b"two")
    assert [(r.stream, r.data) for r in read_all(ring, 0)] == [(1, b"one"), (2, b"two")]
    assert [r.data for r in read_all(ring, middle)] == [b"two"]
    assert ring.read(ring.end, 10) == (b"", ring.end)


def test_what_was_acknowledged_is_gone() -> None:
    ring = Ring()
    ring.append(1, b"one")
    middle = ring.end
    ring.append(1, b"two")
    ring.acknowledge(middle)
    ring.acknowledge(0)  # an older acknowledgement changes nothing
    assert ring.start == middle
    assert [r.stream for r in read_all(ring, 0)] == [DROPPED, 1]
    for offset in (ring.end + 1, 10**9):
        with pytest.raises(InvalidInput):
            ring.acknowledge(offset)
        with pytest.raises(InvalidInput):
            ring.read(offset, 1)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=60))
def test_the_marker_counts_exactly_what_was_dropped(pieces: list[bytes]) -> None:
    ring = Ring(limit=200)
    for piece in pieces:
        ring.append(1, piece)
    records = read_all(ring, 0)
    dropped = 0
    if records and records[0].stream == DROPPED:
        dropped = int(records.pop(0).data)
    kept = sum(HEADER.size + len(record.data) for record in records)
    assert dropped == ring.start
    assert ring.start + kept == ring.end == sum(HEADER.size + len(piece) for piece in pieces)
    assert kept <= 200
    assert [record.data for record in records] == pieces[len(pieces) - len(records) :]


def test_an_acknowledgement_inside_a_record_keeps_that_record() -> None:
    ring = Ring(limit=3 * (HEADER.size + 10))
    for _ in range(3):
        ring.append(1, b"0123456789")
    ring.acknowledge(HEADER.size + 15)
    assert ring.start == HEADER.size + 10
    for piece in (b"abcdefghij", b"klmnopqrst"):
        ring.append(1, piece)
    assert [record.data for record in read_all(ring, ring.start)][-1] == b"klmnopqrst"
    assert ring.end == 5 * (HEADER.size + 10)
