"""Many streams over one byte stream: one end of a link, as pure state. Bytes in, events out; no
I/O, no clock.

Only the host opens streams. Each direction of a stream has a credit of ``WINDOW`` bytes that the
reader renews as it consumes: so a reader that stops blocks nobody else, and neither end ever holds
more than ``WINDOW`` bytes of a stream. Messages and the small frames go out before data; streams
with data take turns, one frame each. There is therefore no order between a message and the data of
a stream, except that a stream's OPEN goes before both.

A breach of the rules by the peer raises ProtocolError; the connection is then over (``unparsed`` is
what follows it, for a transport on which the next connection's mark is in the same byte stream).
"""

from __future__ import annotations

import enum
from collections import deque

from hybrid.errors import InvalidInput, Unavailable
from hybrid.wire.frame import (
    CREDIT,
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
from hybrid.wire.state import DISCARDING, TRANSITIONS, State, Step
from hybrid.wire.value import Value, value

WINDOW = 256 << 10
# Consumed bytes after which credit is given back: few WINDOW frames, never a stall
RENEW = WINDOW // 4
MAX_STREAMS = 4096
MAX_STREAM_ID = (1 << 32) - 1
# Bytes of unsent messages and small frames: a peer that asks but never reads is cut off
MAX_CONTROL = 4 << 20


class Side(enum.Enum):
    HOST = "host"
    AGENT = "agent"


@value
class MessageReceived(Value):
    payload: bytes


@value
class StreamOpened(Value):
    stream: int


@value
class DataReceived(Value):
    """Bytes of a stream; call ``consumed`` when they have left the buffer."""

    stream: int
    data: bytes


@value
class EofReceived(Value):
    stream: int


@value
class StreamReset(Value):
    """The peer reset the stream: nothing more comes, nothing more can be sent."""

    stream: int


@value
class RoomMade(Value):
    """The peer gave credit: ``can_send`` of the stream has grown."""

    stream: int


Event = MessageReceived | StreamOpened | DataReceived | EofReceived | StreamReset | RoomMade


class _Stream:
    __slots__ = (
        "closing",
        "consumed",
        "credit",
        "ending",
        "queue",
        "queued",
        "receivable",
        "state",
    )

    def __init__(self) -> None:
        self.state = State.OPEN
        self.queue = bytearray()  # accepted by send_data, not yet in a frame
        self.queued = False  # in the round of streams that have something to send
        self.closing = False  # EOF follows the queue
        self.ending = False  # RESET follows the EOF
        self.credit = WINDOW  # bytes that may still be queued
        self.receivable = WINDOW  # bytes that the peer may still send
        self.consumed = 0  # bytes whose credit was not yet given back


class Mux:
    """One end of a connection."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._parser = FrameParser()
        self._streams: dict[int, _Stream] = {}
        self._last = 0  # highest stream id so far
        self._control: deque[bytes] = deque()
        self._control_size = 0
        self._renewals: dict[int, int] = {}
        self._round: deque[int] = deque()
        self._finished: list[int] = []

    def __repr__(self) -> str:
        return (
            f"<Mux {self.side.value} streams={len(self._streams)} control={self._control_size} "
            f"sending={len(self._round)}>"
        )

    # --- receiving --------------------------------------------------------------------------------

    @property
    def unparsed(self) -> bytes:
        """What was received but not taken in, after a ProtocolError."""
        return self._parser.unparsed

    def receive(self, data: bytes) -> list[Event]:
        """The events in ``data``. Events before a breach are lost with the ProtocolError: the
        connection is over."""
        events: list[Event] = []
        for frame in self._parser.feed(data):
            event = self._take(frame)
            if event is not None:
                events.append(event)
        return events

    def _take(self, frame: Frame) -> Event | None:
        kind, number, payload = frame
        if kind is FrameType.MESSAGE:
            return MessageReceived(payload)
        if kind is FrameType.OPEN:
            return self._take_open(number)
        stream = self._streams.get(number)
        if stream is None:
            if number > self._last:
                raise ProtocolError(f"{kind.name} frame on stream {number}, which was never opened")
            # These two may cross the frame that closed the stream.
            if kind in (FrameType.WINDOW, FrameType.RESET):
                return None
            raise ProtocolError(f"{kind.name} frame on stream {number}, which is closed")
        if kind is FrameType.DATA:
            return self._take_data(number, stream, payload)
        if kind is FrameType.WINDOW:
            return self._take_window(number, stream, CREDIT.unpack(payload)[0])
        if kind is FrameType.EOF:
            discarding = stream.state in DISCARDING
            self._step(number, stream, Step.RECEIVE_EOF)
            return None if discarding else EofReceived(number)
        discarding = stream.state in DISCARDING
        self._step(number, stream, Step.RECEIVE_RESET)
        if discarding:
            return None
        if self._control_size > MAX_CONTROL:
            raise ProtocolError("the peer makes work but does not read")
        self._queue_control(header(FrameType.RESET, number))
        return StreamReset(number)

    def _take_open(self, number: int) -> Event:
        if self.side is Side.HOST:
            raise ProtocolError("OPEN frame from the agent")
        if number <= self._last:
            raise ProtocolError(f"stream {number} opened out of order")
        if len(self._streams) >= MAX_STREAMS:
            raise ProtocolError(f"more than {MAX_STREAMS} streams")
        self._last = number
        self._streams[number] = _Stream()
        return StreamOpened(number)

    def _take_data(self, number: int, stream: _Stream, payload: bytes) -> Event | None:
        self._step(number, stream, Step.RECEIVE_DATA)
        stream.receivable -= len(payload)
        if stream.receivable < 0:
            raise ProtocolError(f"more data on stream {number} than there was credit for")
        return None if stream.state in DISCARDING else DataReceived(number, payload)

    def _take_window(self, number: int, stream: _Stream, credit: int) -> Event | None:
        if stream.state in DISCARDING:
            return None
        stream.credit += credit
        if credit == 0 or stream.credit > WINDOW:
            raise ProtocolError(f"credit of {credit} bytes on stream {number}, more than was used")
        return RoomMade(number)

    def consumed(self, stream: int, size: int) -> None:
        """``size`` bytes of the stream were read by whom they are for; credit goes back in time."""
        entry = self._streams.get(stream)
        if entry is None or Step.RECEIVE_DATA not in TRANSITIONS[entry.state]:
            return
        entry.consumed += size
        if entry.consumed >= RENEW and entry.state not in DISCARDING:
            entry.receivable += entry.consumed
            self._renewals[stream] = self._renewals.get(stream, 0) + entry.consumed
            entry.consumed = 0

    # --- sending ----------------------------------------------------------------------------------

    @property
    def control_size(self) -> int:
        """Bytes of messages and small frames that wait; senders pause above some bound."""
        return self._control_size

    @property
    def wants_to_send(self) -> bool:
        return bool(self._control or self._renewals or self._round)

    def send_message(self, payload: bytes) -> None:
        """Queues a message; InvalidInput if it is larger than a frame may be."""
        if not 0 < len(payload) <= MAX_MESSAGE:
            raise InvalidInput(
                f"a message of {len(payload)} bytes is larger than {MAX_MESSAGE} bytes"
            )
        self._queue_control(message_frame(payload))

    def open(self) -> int:
        """Makes a stream and returns its id; Unavailable if there are too many (host only)."""
        if self.side is not Side.HOST:
            raise ValueError("only the host opens streams")
        if len(self._streams) >= MAX_STREAMS or self._last == MAX_STREAM_ID:
            raise Unavailable(f"more than {MAX_STREAMS} streams to one machine")
        self._last += 1
        self._streams[self._last] = _Stream()
        self._queue_control(header(FrameType.OPEN, self._last))
        return self._last

    def can_send(self, stream: int) -> int:
        """How many bytes ``send_data`` takes now; 0 if the stream can't be written (any more)."""
        entry = self._streams.get(stream)
        if entry is None or entry.closing or Step.SEND_DATA not in TRANSITIONS[entry.state]:
            return 0
        return entry.credit

    def send_data(self, stream: int, data: bytes | memoryview) -> None:
        """Queues data, at most ``can_send(stream)`` bytes; ValueError for more."""
        if len(data) > self.can_send(stream):
            raise ValueError(
                f"stream {stream} can take {self.can_send(stream)} bytes, not {len(data)}"
            )
        if not data:
            return
        entry = self._streams[stream]
        entry.credit -= len(data)
        entry.queue += data
        self._enter_round(stream, entry)

    def send_eof(self, stream: int) -> None:
        """Half-closes once the queued data is out. Nothing happens where that was done or the
        stream is gone."""
        entry = self._streams.get(stream)
        if entry is not None and not entry.closing and Step.SEND_EOF in TRANSITIONS[entry.state]:
            entry.closing = True
            self._enter_round(stream, entry)

    def close(self, stream: int) -> None:
        """Ends the stream in both directions once the queued data is out: EOF, then RESET if the
        peer still sends."""
        self.send_eof(stream)
        entry = self._streams.get(stream)
        if entry is None or entry.state in DISCARDING:
            return
        if Step.SEND_EOF in TRANSITIONS[entry.state]:
            entry.ending = True
        else:
            self.reset(stream)

    def reset(self, stream: int) -> None:
        """Ends the stream in both directions at once, dropping what is queued. Nothing if it is
        gone."""
        entry = self._streams.get(stream)
        if entry is not None and Step.SEND_RESET in TRANSITIONS[entry.state]:
            self._step(stream, entry, Step.SEND_RESET)
            self._drop_queue(stream, entry)
            self._queue_control(header(FrameType.RESET, stream))

    def data_to_send(self, limit: int = WINDOW) -> bytes:
        """The next bytes for the peer, b"" if none: about ``limit``, at least one whole frame."""
        parts: list[bytes] = []
        size = 0
        while self._control and size < limit:
            parts.append(self._control.popleft())
            size += len(parts[-1])
        self._control_size -= size
        for stream, credit in self._renewals.items():
            parts.append(window_frame(stream, credit))
        self._renewals.clear()
        while self._round and size < limit:
            size += self._next_data(parts)
        return b"".join(parts)

    def _next_data(self, parts: list[bytes]) -> int:
        """Adds one frame (and perhaps EOF) of the stream whose turn it is; returns how many bytes
        that is."""
        number = self._round.popleft()
        stream = self._streams[number]
        stream.queued = False
        chunk = bytes(memoryview(stream.queue)[:MAX_DATA])
        if chunk:
            del stream.queue[:MAX_DATA]
            parts.append(header(FrameType.DATA, number, len(chunk)))
            parts.append(chunk)
        if stream.queue:
            self._enter_round(number, stream)
        elif stream.closing:
            parts.append(header(FrameType.EOF, number))
            self._step(number, stream, Step.SEND_EOF)
            if stream.ending and stream.state is not State.CLOSED:
                parts.append(header(FrameType.RESET, number))
                self._step(number, stream, Step.SEND_RESET)
        return len(chunk)

    def take_finished(self) -> list[int]:
        """The streams that have ended in both directions since the last call."""
        finished, self._finished = self._finished, []
        return finished

    # --- both -------------------------------------------------------------------------------------

    def _enter_round(self, number: int, stream: _Stream) -> None:
        if not stream.queued:
            stream.queued = True
            self._round.append(number)

    def _queue_control(self, frame: bytes) -> None:
        self._control.append(frame)
        self._control_size += len(frame)

    def _drop_queue(self, number: int, stream: _Stream) -> None:
        stream.queue.clear()
        self._renewals.pop(number, None)
        if stream.queued:
            self._round.remove(number)
            stream.queued = False

    def _step(self, number: int, stream: _Stream, step: Step) -> None:
        following = TRANSITIONS[stream.state].get(step)
        if following is None:
            raise ProtocolError(
                f"cannot {step.value} on stream {number}: it is {stream.state.value}"
            )
        stream.state = following
        if following is State.CLOSED:
            self._drop_queue(number, stream)
            del self._streams[number]
            self._finished.append(number)
