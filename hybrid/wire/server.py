"""The agent's end of the link: answers requests and sends events, to one host after another::

    await serve(transport, hello, handler, connected=…)

``handler`` is called once a request, each call in a task of its own, started in the order of
arrival. What is running when the connection is lost goes on (processes outlive the daemon); its
answer is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from hybrid.errors import HybridError, Internal, InvalidInput, Unavailable
from hybrid.wire import envelope
from hybrid.wire.frame import ProtocolError
from hybrid.wire.messages import VERSION, Hello
from hybrid.wire.mux import Side
from hybrid.wire.resync import BREAK, Acceptor
from hybrid.wire.session import READ_SIZE, ByteStream, Session, Stream
from hybrid.wire.value import Request

MAX_RUNNING = 1024  # requests at a time; more are refused at once


class Connection:
    """A connected host. Valid until it is lost; then all calls raise Unavailable."""

    def __init__(
        self,
        transport: ByteStream,
        handler: Handler,
        on_hello: Callable[[Connection], None],
        received: bytes,
    ) -> None:
        self._handler = handler
        self._on_hello = on_hello
        self._greeted = False
        self._running: set[asyncio.Task[None]] = set()
        self._session = Session(
            transport,
            Side.AGENT,
            self._take,
            label="the host",
            received=received,
            whole_frames=transport.resync,
        )

    def __repr__(self) -> str:
        return f"<Connection running={len(self._running)} {self._session!r}>"

    @property
    def closed(self) -> bool:
        return self._session.closed

    @property
    def reason(self) -> str:
        """Why it is lost; empty while it is up."""
        return self._session.reason

    async def wait_closed(self) -> None:
        await self._session.wait_closed()

    async def close(self) -> None:
        """Ends the connection, not the byte stream."""
        self._session.lose("closed")

    async def emit(self, event: object) -> None:
        """Sends an event, waiting while much waits already."""
        await self._session.send_message(envelope.event_message(event))

    async def flush(self) -> None:
        """Waits until answers and events so far are written (before a power-off)."""
        await self._session.flush()

    def stream(self, number: int) -> Stream:
        """The stream that a request names; InvalidInput if the host did not open it."""
        return self._session.stream(number)

    async def run(self, hello: Hello) -> bytes:
        """Serves until the connection is lost; returns what was received behind a breach of the
        protocol."""
        await self._session.send_message(envelope.hello_message(hello))
        await self._session.run()
        return self._session.rest

    def _take(self, payload: bytes) -> None:
        if not self._greeted:
            host = envelope.parse_hello(payload)
            if host.version != VERSION:
                raise ProtocolError(
                    f"the host speaks version {host.version} of the protocol, this agent {VERSION}"
                )
            self._greeted = True
            self._on_hello(self)
            return
        message = envelope.parse_from_host(payload)
        if len(self._running) >= 2 * MAX_RUNNING:
            raise ProtocolError("the host asks and does not read the answers")
        if len(self._running) >= MAX_RUNNING:
            busy = Unavailable("the agent has too many requests to answer")
            message = envelope.RequestEnvelope(message.id, None, busy)
        task = asyncio.create_task(self._answer(message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, message: envelope.RequestEnvelope) -> None:
        reply = await self._reply(message)
        try:
            try:
                await self._session.send_message(reply)
            except InvalidInput:
                error = Unavailable("the answer is too large for the link")
                await self._session.send_message(envelope.error_message(message.id, error))
        except Unavailable:
            pass  # the host is gone; a new one asks again

    async def _reply(self, message: envelope.RequestEnvelope) -> bytes:
        if message.request is None:
            return envelope.error_message(message.id, message.problem or InvalidInput("no request"))
        try:
            return envelope.answer_message(message.id, await self._handler(message.request, self))
        except HybridError as error:
            return envelope.error_message(message.id, error)
        except Exception as error:
            text = f"{type(message.request).__name__}: {type(error).__name__}: {error}"
            return envelope.error_message(message.id, Internal(text))


Handler = Callable[[Request[Any], Connection], Awaitable[object]]


async def serve(
    transport: ByteStream,
    hello: Callable[[], Hello],
    handler: Handler,
    *,
    connected: Callable[[Connection], None] = lambda connection: None,
) -> str:
    """Serves a byte stream to its end, whose reason it returns; one that is ``resync`` has none but
    an OSError.

    ``connected`` is called for each host that has said its hello: the place to send all Exited
    events again.
    """
    acceptor = Acceptor()
    received = b""
    while True:
        answer = acceptor.receive(received)
        while answer is None:
            received = await transport.read(READ_SIZE)
            if not received and not transport.resync:
                return "the host is gone"
            answer = acceptor.receive(received)
        await transport.write(answer)
        connection = Connection(transport, handler, connected, acceptor.rest)
        received = await connection.run(hello())
        if not transport.resync:
            return connection.reason
        with contextlib.suppress(OSError, HybridError):
            await transport.write(BREAK)
