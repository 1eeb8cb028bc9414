"""The host's end of the link: asks an agent, opens streams to it, gets its events.

::

    client = await AgentClient.connect(transport, timeout=30)
    facts = await client.call(Facts())                 # typed: MachineFacts
    stream = client.open()
    await client.call(ReadOutput("c1", stream.id))
    async for event in client.events(): …

Nothing that comes from the other end is believed: a guest may be hostile. It can end its own link,
and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, TypeVar, cast

from hybrid.errors import HybridError, Internal, InvalidInput, Unavailable, Unsupported
from hybrid.link.transport import Transport
from hybrid.wire import envelope
from hybrid.wire.catalogue import ANSWERS
from hybrid.wire.codec import decode
from hybrid.wire.frame import ProtocolError
from hybrid.wire.messages import VERSION, Exited, Hello, OutOfMemory
from hybrid.wire.mux import Side
from hybrid.wire.resync import REPEAT_AFTER, REPEAT_AT_MOST, Initiator
from hybrid.wire.session import READ_SIZE, Session, Stream
from hybrid.wire.value import Request

AnswerT = TypeVar("AnswerT")
Event = Exited | OutOfMemory
LinkStream = Stream

MAX_WAITING = 4096  # requests without an answer, those included that nobody waits for any more
MAX_EVENTS = 4096  # events that nobody has taken yet: an agent that sends more is cut off
MAX_EVENT_BYTES = 4 << 20


class AgentClient:
    """A connection to one agent, made by ``connect``. Once lost it stays so: all calls raise
    Unavailable.
    """

    hello: Hello

    def __init__(self, transport: Transport, name: str, received: bytes) -> None:
        self.name = name
        self._transport = transport
        self._session = Session(transport, Side.HOST, self._take, label=name, received=received)
        self._greeting: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any] | None] = {}  # None: the caller has given up
        self._events: deque[tuple[Event, int]] = deque()
        self._event_bytes = 0
        self._event_came = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"link to {name}")

    def __repr__(self) -> str:
        waiting, events = len(self._waiting), len(self._events)
        return f"<AgentClient waiting={waiting} events={events} {self._session!r}>"

    @classmethod
    async def connect(cls, transport: Transport, *, timeout: float, name: str = "") -> AgentClient:
        """Finds the agent at the other end and greets it. Closes ``transport`` if that fails.

        Unavailable if it doesn't answer within ``timeout`` seconds; Unsupported if it speaks
        another version. ``name`` stands for it in errors ("machine db"), else the transport's
        description.
        """
        name = name or transport.describe()
        client = None
        try:
            async with asyncio.timeout(timeout):
                client = cls(transport, name, await _synchronise(transport))
                await client._greet()
                return client
        except TimeoutError as error:
            await _discard(transport, client)
            raise Unavailable(f"{name}: the agent did not answer within {timeout:g} s") from error
        except BaseException:
            await _discard(transport, client)
            raise

    @property
    def closed(self) -> bool:
        return self._session.closed

    @property
    def reason(self) -> str:
        """Why the connection is lost; empty while it is up."""
        return self._session.reason

    async def wait_closed(self) -> None:
        """Returns when the connection is lost, whichever way, and the transport closed: a new one
        may be tried."""
        await asyncio.wait([self._task])

    async def close(self) -> None:
        """Ends connection and transport; what the machine runs, runs on. Idempotent."""
        self._session.lose("closed")
        await asyncio.wait([self._task])

    async def call(self, request: Request[AnswerT], *, timeout: float | None = 60) -> AnswerT:
        """The agent's answer. The agent's errors are raised as their kind; Unavailable after
        ``timeout`` seconds (the request may still be carried out) or if the connection is lost;
        Internal for a malformed answer."""
        kind = type(request).__name__
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable(f"{self.name}: {MAX_WAITING} requests are without an answer")
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._session.send_message(envelope.request_message(number, request))
                self._waiting[number] = future
                body = await future
        except TimeoutError as error:
            raise Unavailable(f"{self.name}: no answer to {kind} within {timeout:g} s") from error
        finally:
            if number in self._waiting:
                self._waiting[number] = None
        try:
            return cast(AnswerT, decode(ANSWERS[type(request)], body))
        except InvalidInput as error:
            raise Internal(f"{self.name}: malformed answer to {kind}: {error}") from error

    def open(self) -> LinkStream:
        """A new stream, to be named in a request; Unavailable if there are too many."""
        return self._session.open()

    async def events(self) -> AsyncIterator[Event]:
        """The agent's events in order; ends when the connection is lost and all were taken. For one
        task."""
        while True:
            while self._events:
                event, size = self._events.popleft()
                self._event_bytes -= size
                yield event
            if self.closed:
                return
            self._event_came.clear()
            await self._event_came.wait()

    # --- inside -----------------------------------------------------------------------------------

    async def _greet(self) -> None:
        self.hello = await self._greeting
        if self.hello.version != VERSION:
            raise Unsupported(
                f"{self.name}: the agent speaks version {self.hello.version} of the protocol, "
                f"this hybrid version {VERSION}: update the older one"
            )
        await self._session.send_message(envelope.hello_message(Hello(VERSION, "")))

    async def _run(self) -> None:
        try:
            await self._session.run()
        finally:
            lost = Unavailable(f"connection to {self.name} lost: {self._session.reason}")
            for future in (self._greeting, *self._waiting.values()):
                if future is not None and not future.done():
                    future.set_exception(lost)
                    # taken here: a caller that was cancelled meanwhile takes nothing
                    future.exception()
            self._waiting.clear()
            self._event_came.set()
            await self._transport.close()

    def _take(self, payload: bytes) -> None:
        if not self._greeting.done():
            self._greeting.set_result(envelope.parse_hello(payload))
            return
        message = envelope.parse_from_agent(payload)
        if isinstance(message, envelope.EventEnvelope):
            self._take_event(message.event, len(payload))
            return
        if message.id not in self._waiting:
            raise ProtocolError(f"an answer to request {message.id}, which waits for none")
        future = self._waiting.pop(message.id)
        if future is None or future.done():
            return
        if message.error is not None:
            future.set_exception(message.error)
        else:
            future.set_result(message.body)

    def _take_event(self, event: Event, size: int) -> None:
        self._events.append((event, size))
        self._event_bytes += size
        if len(self._events) > MAX_EVENTS or self._event_bytes > MAX_EVENT_BYTES:
            raise ProtocolError("the agent sends more events than anybody can take")
        self._event_came.set()


async def _synchronise(transport: Transport) -> bytes:
    """Exchanges marks; returns the bytes behind the agent's."""
    initiator = Initiator()

    async def ask() -> None:
        pause = REPEAT_AFTER
        while True:
            await transport.write(initiator.ask(flush=transport.resync))
            await asyncio.sleep(pause)
            pause = min(2 * pause, REPEAT_AT_MOST)

    asking = asyncio.create_task(ask())
    try:
        while True:
            data = await transport.read(READ_SIZE)
            if not data:
                raise Unavailable(f"{transport.describe()}: closed by the other end")
            if initiator.receive(data):
                return initiator.rest
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, HybridError, OSError):
            await asking


async def _discard(transport: Transport, client: AgentClient | None) -> None:
    if client is not None:
        await client.close()
    else:
        await transport.close()
