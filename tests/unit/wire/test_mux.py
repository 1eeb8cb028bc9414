from __future__ import annotations

import pytest

from hybrid.errors import InvalidInput, Unavailable
from hybrid.wire.frame import MAX_DATA, MAX_MESSAGE, FrameType, ProtocolError, header, window_frame
from hybrid.wire.mux import (
    MAX_CONTROL,
    MAX_STREAMS,
    RENEW,
    WINDOW,
    DataReceived,
    EofReceived,
    Event,
    MessageReceived,
    Mux,
    RoomMade,
    Side,
    StreamOpened,
    StreamReset,
)


def ends() -> tuple[Mux, Mux]:
    return Mux(Side.HOST), Mux(Side.AGENT)


def deliver(source: Mux, target: Mux) -> list[Event]:
    events: list[Event] = []
    while data := source.data_to_send():
        events += target.receive(data)
    return events


def settle(one: Mux, two: Mux) -> None:
    while one.wants_to_send or two.wants_to_send:
        deliver(one, two)
        deliver(two, one)


def data(stream: int, payload: bytes) -> bytes:
    return header(FrameType.DATA, stream, len(payload)) + payload


def test_a_message_a_stream_and_its_half_closes() -> None:
    host, agent = ends()
    host.send_message(b'{"id":1}')
    one = host.open()
    host.send_data(one, b"question")
    host.send_eof(one)
    assert deliver(host, agent) == [
        MessageReceived(b'{"id":1}'),
        StreamOpened(1),
        DataReceived(1, b"question"),
        EofReceived(1),
    ]
    agent.send_data(one, b"answer")
    agent.send_eof(one)
    assert deliver(agent, host) == [DataReceived(1, b"answer"), EofReceived(1)]
    assert host.take_finished() == agent.take_finished() == [1]
    assert repr(host) == "<Mux host streams=0 control=0 sending=0>"


def test_credit_bounds_what_can_be_sent_and_comes_back_when_consumed() -> None:
    host, agent = ends()
    one = host.open()
    assert host.can_send(one) == WINDOW
    host.send_data(one, bytes(WINDOW))
    assert host.can_send(one) == 0
    with pytest.raises(ValueError, match="can take 0 bytes"):
        host.send_data(one, b"x")
    deliver(host, agent)
    agent.consumed(one, RENEW - 1)
    assert not agent.wants_to_send
    agent.consumed(one, 1)
    assert deliver(agent, host) == [RoomMade(one)]
    assert host.can_send(one) == RENEW


def test_streams_take_turns_and_messages_overtake() -> None:
    host, agent = ends()
    first, second = host.open(), host.open()
    deliver(host, agent)
    host.send_data(first, bytes(3 * MAX_DATA))
    host.send_data(second, bytes(2 * MAX_DATA))
    host.send_message(b"{}")
    got = [getattr(event, "stream", 0) for event in deliver(host, agent)]
    assert got == [0, first, second, first, second, first]


def test_a_stopped_reader_blocks_nobody_and_holds_one_window() -> None:
    host, agent = ends()
    stopped, busy = host.open(), host.open()
    host.send_data(stopped, bytes(host.can_send(stopped)))
    deliver(host, agent)
    for _ in range(8):
        host.send_data(busy, bytes(host.can_send(busy)))
        for event in deliver(host, agent):
            assert isinstance(event, DataReceived) and event.stream == busy
            agent.consumed(busy, len(event.data))
        deliver(agent, host)
    assert host.can_send(stopped) == 0
    assert host.can_send(busy) == WINDOW


@pytest.mark.parametrize("size", [0, MAX_MESSAGE + 1])
def test_a_message_out_of_bounds_is_not_sent(size: int) -> None:
    with pytest.raises(InvalidInput):
        Mux(Side.HOST).send_message(bytes(size))


def test_many_small_writes_become_few_frames() -> None:
    host, agent = ends()
    one = host.open()
    for _ in range(1000):
        host.send_data(one, b"ab")
    assert len(deliver(host, agent)) == 2


def test_our_reset_discards_what_is_under_way_until_the_peers() -> None:
    host, agent = ends()
    one = host.open()
    deliver(host, agent)
    agent.send_data(one, b"late")
    host.send_data(one, b"never sent")
    host.reset(one)
    late = agent.data_to_send()
    assert deliver(host, agent) == [StreamReset(one)]
    assert host.receive(late) == []
    assert host.can_send(one) == agent.can_send(one) == 0
    settle(host, agent)
    assert host.take_finished() == agent.take_finished() == [one]


def test_crossing_resets_end_the_stream_without_answers() -> None:
    host, agent = ends()
    one = host.open()
    deliver(host, agent)
    host.reset(one)
    agent.reset(one)
    assert agent.receive(host.data_to_send()) == host.receive(agent.data_to_send()) == []
    assert not host.wants_to_send and not agent.wants_to_send
    assert host.take_finished() == agent.take_finished() == [one]


@pytest.mark.parametrize("peer_ended_first", [False, True])
def test_close_sends_all_then_ends_both_halves(peer_ended_first: bool) -> None:
    host, agent = ends()
    one = host.open()
    deliver(host, agent)
    if peer_ended_first:
        agent.send_eof(one)
        deliver(agent, host)
    host.send_data(one, bytes(100_000))
    host.close(one)
    host.close(one)
    events = deliver(host, agent)
    assert sum(len(event.data) for event in events if isinstance(event, DataReceived)) == 100_000
    ends_with: list[Event] = [EofReceived(one)]
    if not peer_ended_first:
        ends_with.append(StreamReset(one))
    assert events[-len(ends_with) :] == ends_with
    settle(host, agent)
    assert host.take_finished() == agent.take_finished() == [one]


def test_close_after_eof_went_out_resets_the_other_half() -> None:
    host, agent = ends()
    one = host.open()
    host.send_eof(one)
    deliver(host, agent)
    host.close(one)
    assert deliver(host, agent) == [StreamReset(one)]
    settle(host, agent)
    assert host.take_finished() == [one]


def test_frames_that_may_cross_the_end_of_a_stream_are_ignored() -> None:
    host, agent = ends()
    one = host.open()
    host.send_eof(one)
    deliver(host, agent)
    agent.send_eof(one)
    deliver(agent, host)
    assert host.receive(window_frame(one, 1) + header(FrameType.RESET, one)) == []


BREACHES = {
    "data on a stream never opened": data(9, b"x"),
    "EOF on a stream never opened": header(FrameType.EOF, 9),
    "reset of a stream never opened": header(FrameType.RESET, 9),
    "credit for a stream never opened": window_frame(9, 5),
    "more credit than was used": window_frame(1, 1),
    "no credit": window_frame(1, 0),
    "data after EOF": header(FrameType.EOF, 1) + data(1, b"x"),
    "EOF twice": header(FrameType.EOF, 1) * 2,
    "data after RESET": header(FrameType.RESET, 1) + data(1, b"x"),
    "data beyond the credit": data(1, bytes(MAX_DATA)) * 4 + data(1, b"x"),
    "OPEN from the agent": header(FrameType.OPEN, 2),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES.keys())
def test_a_breach_by_the_agent_ends_the_connection(breach: bytes) -> None:
    host = Mux(Side.HOST)
    host.open()
    with pytest.raises(ProtocolError):
        host.receive(breach + b"behind")
    assert host.unparsed.endswith(b"behind")


def test_data_beyond_the_credit_is_a_breach_after_our_reset_too() -> None:
    host = Mux(Side.HOST)
    one = host.open()
    host.reset(one)
    with pytest.raises(ProtocolError, match="more data"):
        host.receive(data(one, bytes(MAX_DATA)) * 5)


def test_stream_ids_only_rise() -> None:
    agent = Mux(Side.AGENT)
    agent.receive(header(FrameType.OPEN, 5))
    for number in (5, 4):
        with pytest.raises(ProtocolError, match="out of order"):
            agent.receive(header(FrameType.OPEN, number))


def test_the_number_of_streams_is_bounded_on_both_ends() -> None:
    host, agent = ends()
    for _ in range(MAX_STREAMS):
        host.open()
    with pytest.raises(Unavailable):
        host.open()
    deliver(host, agent)
    with pytest.raises(ProtocolError, match="more than"):
        agent.receive(header(FrameType.OPEN, MAX_STREAMS + 1))


def test_a_peer_that_makes_work_and_never_reads_is_cut_off() -> None:
    agent = Mux(Side.AGENT)
    with pytest.raises(ProtocolError, match="does not read"):
        for first in range(1, MAX_CONTROL // 12 + 1001, 1000):
            agent.receive(
                b"".join(
                    header(FrameType.OPEN, number) + header(FrameType.RESET, number)
                    for number in range(first, first + 1000)
                )
            )


def test_only_the_host_opens() -> None:
    with pytest.raises(ValueError, match="only the host"):
        Mux(Side.AGENT).open()


def test_writing_to_what_is_gone_does_nothing() -> None:
    host = Mux(Side.HOST)
    host.send_eof(7)
    host.reset(7)
    host.close(7)
    host.consumed(7, 5)
    assert host.can_send(7) == 0
    assert not host.wants_to_send
