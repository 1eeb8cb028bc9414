from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.client.frames import Demultiplexer
from hybrid.errors import Unavailable

frames = st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=40)), max_size=10)


def encode(parts: list[tuple[int, bytes]]) -> bytes:
    return b"".join(bytes([n, 0, 0, 0]) + len(b).to_bytes(4, "big") + b for n, b in parts)


@given(frames, st.lists(st.integers(1, 20), min_size=1))
def test_any_split_of_the_bytes_gives_the_same_streams(
    parts: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    demultiplexer, data, result = Demultiplexer(), encode(parts), {n: b"" for n in range(4)}
    index = 0
    while data:
        cut = cuts[index % len(cuts)]
        index += 1
        for stream, piece in demultiplexer.receive(data[:cut]):
            result[stream] += piece
        data = data[cut:]
    assert result == {n: b"".join(b for m, b in parts if m == n) for n in range(4)}


def test_a_large_frame_is_handed_out_in_pieces() -> None:
    demultiplexer = Demultiplexer()
    head = b"\x01\0\0\0" + (1 << 31).to_bytes(4, "big")
    assert list(demultiplexer.receive(head + b"abc")) == [(1, b"abc")]
    assert list(demultiplexer.receive(b"def")) == [(1, b"def")]


@pytest.mark.parametrize("header", [b"\x04\0\0\0\0\0\0\0", b"\x01\0\x01\0\0\0\0\0", b"plain text"])
def test_unframed_bytes_are_refused(header: bytes) -> None:
    with pytest.raises(Unavailable, match="not a frame header"):
        list(Demultiplexer().receive(header))
