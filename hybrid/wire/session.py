"""One connection over asyncio, for both ends: pumps a byte stream through a ``Mux``.

Two tasks run while the connection lives: one reads the transport and hands out events, one writes
what the mux has to send. When either fails, or the peer breaks the protocol, the session is *lost*:
every waiting and every later call on it and on its streams raises Unavailable with the reason.
Nothing else is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Protocol

from hybrid.errors import HybridError, InvalidInput, Unavailable
from hybrid.wire.frame import ProtocolError
from hybrid.wire.mux import (
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

READ_SIZE = 256 << 10
MESSAGE_ROOM = 1 << 20  # unsent bytes of messages above which senders wait


class ByteStream(Protocol):
    """What a session runs over. Errors of the medium are OSError or a HybridError; both mean that
    it is lost."""

    resync: bool  # True: one byte stream lives through many connections (virtio-serial)

    async def read(self, max: int, /) -> bytes:
        """1 … ``max`` bytes; b"" at the end (if ``resync``: of this connection)."""

    async def write(self, data: bytes, /) -> None:
        """Writes all of ``data``, waiting for room."""

    async def close(self) -> None: ...

    def describe(self) -> str: ...


class Stream:
    """One stream of a session. One task may read while one other writes."""

    def __init__(self, session: Session, number: int) -> None:
        self.id = number
        self._session = session
        self._buffer = bytearray()
        self._eof = False
        self._reset = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    def __repr__(self) -> str:
        state = "reset" if self._reset else "at EOF" if self._eof else "open"
        return f"<Stream {self.id} {state} buffered={len(self._buffer)}>"

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await (self.close() if kind is None else self.reset())

    async def read(self, max: int = 65536) -> bytes:
        """1 … ``max`` bytes, b"" at EOF; Unavailable if the stream was reset or the connection
        lost."""
        while not self._buffer:
            if self._eof:
                return b""
            self._check()
            self._readable.clear()
            await self._readable.wait()
        if len(self._buffer) <= max:
            data = bytes(self._buffer)
            self._buffer.clear()
        else:
            data = bytes(memoryview(self._buffer)[:max])
            del self._buffer[:max]
        self._session._consumed(self.id, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Returns when all of ``data`` is queued within the stream's credit; Unavailable as
        ``read``."""
        view = memoryview(data)
        while len(view):
            self._check()
            room = self._session._send_data(self.id, view)
            if room:
                view = view[room:]
                continue
            self._writable.clear()
            await self._writable.wait()

    async def close_write(self) -> None:
        """EOF after what was written; reading goes on. Idempotent."""
        self._session._send_eof(self.id)

    async def close(self) -> None:
        """Ends the stream both ways, after what was written has gone out. Idempotent."""
        self._session._end_stream(self.id, drop=False)
        self._abandon()

    async def reset(self) -> None:
        """Ends the stream both ways and drops what is under way; nothing if it has ended.
        Idempotent."""
        self._session._end_stream(self.id, drop=True)
        self._abandon()

    def _check(self) -> None:
        self._session.check()
        if self._reset:
            raise Unavailable(f"stream {self.id} to {self._session.label} was reset")

    def _take(self, data: bytes) -> None:
        self._buffer += data
        self._readable.set()

    def _end(self) -> None:
        self._eof = True
        self._readable.set()

    def _room(self) -> None:
        self._writable.set()

    def _lose(self) -> None:
        """After the peer's reset or the loss of the connection. What came before stays readable."""
        self._reset = True
        self._readable.set()
        self._writable.set()

    def _abandon(self) -> None:
        self._buffer.clear()
        self._lose()


class Session:
    """One connection. Make it inside a running loop, then ``start()`` it or await ``run()``.

    ``received`` are bytes that followed the mark. ``whole_frames``: the write that is under way
    when the connection is lost is finished, so that something can be written behind it.
    ``on_message`` gets each message; what it raises (ProtocolError) ends the session. ``label``
    names the peer in errors: "machine db".
    """

    def __init__(
        self,
        transport: ByteStream,
        side: Side,
        on_message: Callable[[bytes], None],
        *,
        label: str,
        received: bytes = b"",
        whole_frames: bool = False,
    ) -> None:
        self.label = label
        self.reason = ""  # why it is lost
        self.rest = b""  # after a breach: the bytes behind it
        self._transport = transport
        self._mux = Mux(side)
        self._on_message = on_message
        self._received = received
        self._whole_frames = whole_frames
        self._streams: dict[int, Stream] = {}
        self._lost = asyncio.Event()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()  # all that was queued has been written
        self._message_room = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Session with {self.label}: {self.reason or 'up'}, {self._mux!r}>"

    @property
    def closed(self) -> bool:
        return self._lost.is_set()

    def check(self) -> None:
        """Unavailable if the connection is lost."""
        if self._lost.is_set():
            raise Unavailable(f"connection to {self.label} lost: {self.reason}")

    async def wait_closed(self) -> None:
        await self._lost.wait()

    def start(self) -> None:
        """Runs the pump as a task of its own."""
        self._pump = asyncio.create_task(self.run(), name=f"link to {self.label}")

    async def close(self) -> None:
        """Ends the session (not the transport). Idempotent."""
        self.lose("closed")
        if self._pump is not None:
            await asyncio.wait([self._pump])

    def lose(self, reason: str) -> None:
        """Marks the connection as lost and wakes everybody; the first reason stays."""
        if self._lost.is_set():
            return
        self.reason = reason
        self._lost.set()
        self._wake.set()
        self._idle.set()
        self._message_room.set()
        for stream in self._streams.values():
            stream._lose()
        self._streams.clear()

    # --- the pump ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pumps until the connection is lost; never raises but for cancellation. Both directions
        have ended then."""
        reader = asyncio.create_task(self._guard(self._read()))
        writer = asyncio.create_task(self._guard(self._write()))
        try:
            await self._lost.wait()
            if self._whole_frames:
                await asyncio.wait([writer])
        finally:
            self.lose("cancelled")
            reader.cancel()
            writer.cancel()
            await asyncio.wait([reader, writer])

    async def _guard(self, pump: Coroutine[None, None, str]) -> None:
        try:
            self.lose(await pump)
        except ProtocolError as error:
            self.rest = self._mux.unparsed
            self.lose(f"protocol error: {error}")
        except (OSError, HybridError) as error:
            self.lose(str(error))
        except Exception as error:
            self.lose(f"{type(error).__name__}: {error}")
            raise

    async def _read(self) -> str:
        data = self._received
        self._received = b""
        while True:
            for event in self._mux.receive(data):
                self._dispatch(event)
            self._drop_finished()
            self._wake_writer()
            data = await self._transport.read(READ_SIZE)
            if not data:
                return "the other end is gone"

    async def _write(self) -> str:
        while not self._lost.is_set():
            data = self._mux.data_to_send()
            self._drop_finished()
            if self._mux.control_size < MESSAGE_ROOM:
                self._message_room.set()
            if data:
                await self._transport.write(data)
            else:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                self._idle.clear()
        return self.reason

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, MessageReceived):
            self._on_message(event.payload)
            return
        if isinstance(event, StreamOpened):
            self._streams[event.stream] = Stream(self, event.stream)
            return
        stream = self._streams.get(event.stream)
        if stream is None:  # our own reset crossed it
            return
        if isinstance(event, DataReceived):
            stream._take(event.data)
        elif isinstance(event, EofReceived):
            stream._end()
        elif isinstance(event, StreamReset):
            stream._lose()
        elif isinstance(event, RoomMade):
            stream._room()

    def _drop_finished(self) -> None:
        for number in self._mux.take_finished():
            self._streams.pop(number, None)

    def _wake_writer(self) -> None:
        if self._mux.wants_to_send:
            self._idle.clear()
            self._wake.set()

    # --- what streams and owners use --------------------------------------------------------------

    async def send_message(self, payload: bytes) -> None:
        """Queues one message, waiting while many wait already; InvalidInput if too large,
        Unavailable if lost."""
        self.check()
        while self._mux.control_size >= MESSAGE_ROOM:
            self._message_room.clear()
            await self._message_room.wait()
            self.check()
        self._mux.send_message(payload)
        self._wake_writer()

    async def flush(self) -> None:
        """Waits until all that was queued has been handed to the transport, or the connection is
        lost."""
        self._wake_writer()
        await self._idle.wait()

    def open(self) -> Stream:
        """A new stream (host only). The peer learns of it with the message that names it, which follows."""
        self.check()
        stream = Stream(self, self._mux.open())
        self._streams[stream.id] = stream
        return stream

    def stream(self, number: int) -> Stream:
        """The stream that the peer opened; InvalidInput if there is none with that id."""
        self.check()
        stream = self._streams.get(number)
        if stream is None:
            raise InvalidInput(f"stream {number} is not open")
        return stream

    def _consumed(self, number: int, size: int) -> None:
        self._mux.consumed(number, size)
        self._wake_writer()

    def _send_data(self, number: int, data: memoryview) -> int:
        room = min(self._mux.can_send(number), len(data))
        if room:
            self._mux.send_data(number, data[:room])
            self._wake_writer()
        return room

    def _send_eof(self, number: int) -> None:
        self._mux.send_eof(number)
        self._wake_writer()

    def _end_stream(self, number: int, *, drop: bool) -> None:
        if drop:
            self._mux.reset(number)
        else:
            self._mux.close(number)
        self._streams.pop(number, None)
        self._wake_writer()
