from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.wire.frame import MAX_DATA, MAX_MESSAGE, FrameParser, ProtocolError
from hybrid.wire.resync import MARK, NONCE_SIZE, Acceptor, Initiator


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    out, start = [], 0
    for cut in cuts:
        out.append(data[start : start + cut])
        start += cut
    return [*out, data[start:]]


def test_the_mark_is_16_bytes_and_no_frame_header() -> None:
    assert len(MARK) == 16
    with pytest.raises(ProtocolError):
        list(FrameParser().feed(MARK[:1]))


@given(st.binary(max_size=80), st.binary(max_size=40), st.lists(st.integers(1, 30), max_size=8))
def test_the_agent_finds_the_mark_behind_anything(
    stale: bytes, behind: bytes, cuts: list[int]
) -> None:
    acceptor, ask = Acceptor(), Initiator().ask(flush=True)
    got = b""
    answer = None
    for piece in pieces(stale + ask + behind, cuts):
        if answer is None:
            answer = acceptor.receive(piece)
            got = acceptor.rest if answer else b""
        else:
            got += piece
    assert answer == ask
    assert got == behind


@given(st.integers(0, len(MARK) + NONCE_SIZE - 1))
def test_a_mark_that_was_cut_does_not_hide_the_next(cut: int) -> None:
    first, second = Initiator().ask(flush=True), Initiator().ask(flush=True)
    assert Acceptor().receive(first[:cut] + second) == second


def test_the_host_waits_for_its_newest_nonce() -> None:
    initiator = Initiator()
    old = initiator.ask(flush=False)
    new = initiator.ask(flush=False)
    assert old != new
    assert not initiator.receive(b"stale" + old + b"hello of the old answer")
    assert initiator.receive(new + b"hello")
    assert initiator.rest == b"hello"


def test_another_connections_answer_is_not_ours() -> None:
    initiator = Initiator()
    initiator.ask(flush=True)
    assert not initiator.receive(Initiator().ask(flush=True) * 3)


def test_repeats_carry_zeros_that_complete_any_payload() -> None:
    initiator = Initiator()
    sizes = [len(initiator.ask(flush=True)) - 32 for _ in range(3)]
    assert sizes[0] == 0
    assert sizes[1] >= MAX_DATA + 12
    assert sizes[2] >= MAX_MESSAGE + 12


def test_a_fresh_byte_stream_needs_no_zeros() -> None:
    initiator = Initiator()
    assert all(len(initiator.ask(flush=False)) == 32 for _ in range(3))


def test_endless_garbage_does_not_pile_up() -> None:
    acceptor, initiator = Acceptor(), Initiator()
    initiator.ask(flush=True)
    for _ in range(100):
        assert acceptor.receive(bytes(1000)) is None
        assert not initiator.receive(bytes(1000))
    held = [*vars(acceptor).values(), *vars(initiator).values()]
    assert sum(len(value) for value in held if isinstance(value, bytes)) < 100


def test_a_nonce_is_hexadecimal() -> None:
    assert re.fullmatch(rb"[0-9a-f]{16}", Initiator().ask(flush=False)[16:])
    assert Acceptor().receive(MARK + b"X" * NONCE_SIZE) is None
