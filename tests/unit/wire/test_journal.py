from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import InvalidInput
from hybrid.wire.journal import (
    DROPPED,
    HEADER,
    MAX_PAYLOAD,
    STDERR,
    STDOUT,
    Parser,
    Record,
    pack,
)

records = st.builds(
    Record,
    st.integers(0, 1 << 63),
    st.sampled_from([STDOUT, STDERR, DROPPED]),
    st.binary(min_size=1, max_size=40),
)


@given(st.lists(records), st.lists(st.integers(1, 50)))
def test_records_come_back_whatever_the_chunks(sent: list[Record], cuts: list[int]) -> None:
    data = b"".join(pack(one.time_ns, one.stream, one.data) for one in sent)
    parser, got, start = Parser(), [], 0
    for cut in [*cuts, len(data)]:
        got += list(parser.feed(data[start : start + cut]))
        start += cut
    assert got == sent
    assert parser.pending == 0


def test_an_incomplete_record_is_held() -> None:
    parser = Parser()
    assert list(parser.feed(pack(1, STDOUT, b"abc")[:-1])) == []
    assert parser.pending == HEADER.size + 2


@pytest.mark.parametrize("stream", [0, 3, 254])
def test_an_unknown_stream_is_refused(stream: int) -> None:
    with pytest.raises(InvalidInput, match="malformed record"):
        list(Parser().feed(HEADER.pack(0, stream, 1) + b"x"))


@pytest.mark.parametrize("length", [0, MAX_PAYLOAD + 1, (1 << 32) - 1])
def test_a_length_out_of_bounds_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match="malformed record"):
        list(Parser().feed(HEADER.pack(0, STDOUT, length)))
