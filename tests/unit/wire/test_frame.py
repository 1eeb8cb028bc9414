from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.wire.frame import (
    HEADER,
    MAX_DATA,
    MAX_MESSAGE,
    Frame,
    FrameParser,
    FrameType,
    ProtocolError,
    header,
    message_frame,
    window_frame,
)


def frame(kind: FrameType, stream: int, payload: bytes = b"") -> bytes:
    return header(kind, stream, len(payload)) + payload


def joined(frames: list[Frame]) -> list[Frame]:
    """Pieces of DATA of one stream as one frame."""
    out: list[Frame] = []
    for one in frames:
        if out and one.type is FrameType.DATA and out[-1][:2] == one[:2]:
            out[-1] = Frame(one.type, one.stream, out[-1].payload + one.payload)
        else:
            out.append(one)
    return out


frames = st.one_of(
    st.builds(lambda b: Frame(FrameType.MESSAGE, 0, b), st.binary(min_size=1, max_size=50)),
    st.builds(
        lambda n, b: Frame(FrameType.DATA, n, b),
        st.integers(1, 3),
        st.binary(min_size=1, max_size=50),
    ),
    st.builds(
        lambda kind, n: Frame(kind, n, b""),
        st.sampled_from([FrameType.OPEN, FrameType.EOF, FrameType.RESET]),
        st.integers(1, (1 << 32) - 1),
    ),
    st.builds(
        lambda n, b: Frame(FrameType.WINDOW, n, b),
        st.integers(1, 9),
        st.binary(min_size=4, max_size=4),
    ),
)


@given(st.lists(frames, max_size=12), st.lists(st.integers(1, 60), max_size=60))
def test_any_chunking_gives_the_same_frames(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(frame(*one) for one in sent)
    parser, got, position = FrameParser(), [], 0
    for cut in [*cuts, len(data)]:
        got += list(parser.feed(data[position : position + cut]))
        position += cut
    assert joined(got) == joined(sent)
    assert parser.unparsed == b""


@given(st.lists(frames, max_size=5), st.integers(0, 11), st.binary(min_size=1, max_size=40))
def test_garbage_is_recognised_and_kept(sent: list[Frame], headroom: int, garbage: bytes) -> None:
    garbage = b"\x00" + garbage
    parser = FrameParser()
    data = b"".join(frame(*one) for one in sent)
    cut = max(0, len(data) - headroom)
    list(parser.feed(data[:cut]))
    with pytest.raises(ProtocolError, match="no frame header"):
        list(parser.feed(data[cut:] + garbage))
    assert parser.unparsed == garbage


def test_garbage_is_recognised_by_its_first_byte() -> None:
    with pytest.raises(ProtocolError):
        list(FrameParser().feed(b"\x00"))


def test_garbage_behind_half_a_magic_is_kept_whole() -> None:
    parser = FrameParser()
    assert list(parser.feed(b"\xf1")) == []
    with pytest.raises(ProtocolError):
        list(parser.feed(b"\xf7rest"))
    assert parser.unparsed == b"\xf1\xf7rest"


@pytest.mark.parametrize(
    ("kind", "stream", "length"),
    [
        (FrameType.MESSAGE, 0, 0),
        (FrameType.MESSAGE, 0, MAX_MESSAGE + 1),
        (FrameType.MESSAGE, 1, 5),
        (FrameType.DATA, 0, 5),
        (FrameType.DATA, 1, 0),
        (FrameType.DATA, 1, MAX_DATA + 1),
        (FrameType.OPEN, 1, 1),
        (FrameType.OPEN, 0, 0),
        (FrameType.EOF, 1, 1),
        (FrameType.RESET, 1, 1),
        (FrameType.WINDOW, 1, 3),
        (FrameType.WINDOW, 1, 5),
    ],
)
def test_a_header_out_of_bounds_is_refused(kind: FrameType, stream: int, length: int) -> None:
    with pytest.raises(ProtocolError, match=kind.name):
        list(FrameParser().feed(header(kind, stream, length)))


@pytest.mark.parametrize("kind", [0, 7, 255])
def test_an_unknown_type_is_refused(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown frame type {kind}"):
        list(FrameParser().feed(HEADER.pack(b"\xf1hy", kind, 1, 0)))


def test_data_is_passed_on_before_its_frame_is_whole() -> None:
    parser = FrameParser()
    data = frame(FrameType.DATA, 4, b"abcdef")
    assert list(parser.feed(data[:-3])) == [Frame(FrameType.DATA, 4, b"abc")]
    assert list(parser.feed(data[-3:])) == [Frame(FrameType.DATA, 4, b"def")]


def test_bytes_of_the_helpers() -> None:
    assert message_frame(b"{}") == b"\xf1hy\x01\x00\x00\x00\x00\x00\x00\x00\x02{}"
    assert window_frame(7, 65536)[-4:] == b"\x00\x01\x00\x00"
