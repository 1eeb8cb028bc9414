"""Two ends under random steps, random chunks and random delays: what arrives is what was sent,
within the credit."""

from __future__ import annotations

import random
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.wire.mux import (
    WINDOW,
    DataReceived,
    EofReceived,
    MessageReceived,
    Mux,
    Side,
    StreamOpened,
    StreamReset,
)
from hybrid.wire.resync import Acceptor, Initiator


class End:
    """A mux with a wire in front of it, and a record of what its owner did and saw."""

    def __init__(self, side: Side) -> None:
        self.mux = Mux(side)
        self.wire = b""  # towards the peer
        self.known: list[int] = []
        self.sent: dict[int, bytearray] = defaultdict(bytearray)
        self.got: dict[int, bytearray] = defaultdict(bytearray)
        self.buffered: dict[int, int] = defaultdict(int)
        self.sent_messages: list[bytes] = []
        self.got_messages: list[bytes] = []
        self.ended: set[int] = set()  # EOF received
        self.ends: set[int] = set()  # EOF asked for
        self.broken: set[int] = set()  # reset by either

    def receive(self, data: bytes) -> None:
        for event in self.mux.receive(data):
            if isinstance(event, MessageReceived):
                self.got_messages.append(event.payload)
            elif isinstance(event, StreamOpened):
                self.known.append(event.stream)
            elif isinstance(event, DataReceived):
                assert event.stream not in self.ended
                self.got[event.stream] += event.data
                self.buffered[event.stream] += len(event.data)
                assert self.buffered[event.stream] <= WINDOW
            elif isinstance(event, EofReceived):
                self.ended.add(event.stream)
            elif isinstance(event, StreamReset):
                self.broken.add(event.stream)

    def act(self, dice: random.Random) -> None:
        kind = dice.choices(
            ["data", "consume", "message", "open", "eof", "reset"], [8, 8, 2, 2, 1, 0.5]
        )[0]
        if kind == "message":
            self.sent_messages.append(b"%d" % dice.getrandbits(30))
            self.mux.send_message(self.sent_messages[-1])
        elif kind == "open" and self.mux.side is Side.HOST:
            self.known.append(self.mux.open())
        elif self.known:
            self.act_on(dice.choice(self.known), kind, dice)

    def act_on(self, stream: int, kind: str, dice: random.Random) -> None:
        if kind == "data":
            room = self.mux.can_send(stream)
            data = dice.randbytes(min(room, dice.choice([1, 100, 70_000, WINDOW])))
            self.mux.send_data(stream, data)
            self.sent[stream] += data
        elif kind == "consume" and self.buffered[stream]:
            size = dice.randint(1, self.buffered[stream])
            self.buffered[stream] -= size
            self.mux.consumed(stream, size)
        elif kind == "eof":
            self.mux.send_eof(stream)
            self.ends.add(stream)
        elif kind == "reset":
            self.mux.reset(stream)
            self.broken.add(stream)


def carry(source: End, target: End, dice: random.Random) -> None:
    source.wire += source.mux.data_to_send(dice.choice([1, 1000, WINDOW]))
    size = dice.choice([1, 7, 1000, 100_000, len(source.wire)])
    target.receive(source.wire[:size])
    source.wire = source.wire[size:]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_what_arrives_is_what_was_sent(seed: int) -> None:
    dice = random.Random(seed)
    host, agent = End(Side.HOST), End(Side.AGENT)
    for _ in range(300):
        dice.choice([host, agent]).act(dice)
        carry(*dice.choice([(host, agent), (agent, host)]), dice)
    while host.mux.wants_to_send or agent.mux.wants_to_send or host.wire or agent.wire:
        carry(host, agent, dice)
        carry(agent, host, dice)
    for source, target in ((host, agent), (agent, host)):
        assert target.got_messages == source.sent_messages
        for stream, data in source.sent.items():
            if stream in host.broken | agent.broken:
                assert data.startswith(target.got[stream])
            else:
                assert target.got[stream] == data
        assert source.ends - host.broken - agent.broken <= target.ended
    assert sorted(host.mux.take_finished()) == sorted(agent.mux.take_finished())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_connection_cut_at_any_byte_is_followed_by_a_clean_one(seed: int) -> None:
    """As on a virtio-serial port: both directions keep what the old connection left in them."""
    dice = random.Random(seed)
    host, agent = End(Side.HOST), End(Side.AGENT)
    for _ in range(40):
        dice.choice([host, agent]).act(dice)
        carry(*dice.choice([(host, agent), (agent, host)]), dice)
    stale_up = host.wire[: dice.randint(0, len(host.wire))]  # the daemon died while it wrote
    stale_down = agent.wire

    initiator, acceptor = Initiator(), Acceptor()
    to_agent, to_host = stale_up + initiator.ask(flush=True), stale_down
    connected = False
    old: Mux | None = agent.mux
    for _ in range(4):  # the first mark may be taken for payload; later ones may not
        while to_agent:
            size = dice.choice([1, 13, 4096, 1 << 20])
            chunk, to_agent = to_agent[:size], to_agent[size:]
            if old is not None:
                try:
                    old.receive(chunk)
                    continue
                except Exception:
                    chunk, old = old.unparsed, None
            answer = acceptor.receive(chunk)
            if answer is not None:
                to_host += answer
                old = Mux(Side.AGENT)
                to_agent = acceptor.rest + to_agent
        while to_host and not connected:
            size = dice.choice([1, 13, 4096])
            chunk, to_host = to_host[:size], to_host[size:]
            connected = initiator.receive(chunk)
        if connected:
            break
        to_agent = initiator.ask(flush=True)
    assert connected
    assert initiator.rest + to_host == b""
    assert old is not None
    fresh = Mux(Side.HOST)
    fresh.send_message(b"{}")
    assert old.receive(fresh.data_to_send()) == [MessageReceived(b"{}")]
