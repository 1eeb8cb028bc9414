"""The agent's end against hosts that are scripted message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hybrid.errors import Conflict, InvalidInput, Unavailable
from hybrid.link import memory
from hybrid.wire import envelope
from hybrid.wire.messages import (
    VERSION,
    Empty,
    Facts,
    HasBlob,
    Hello,
    OutOfMemory,
    ProcessTable,
    Request,
    Shutdown,
    Top,
    Truth,
)
from hybrid.wire.mux import MessageReceived, Mux, Side
from hybrid.wire.resync import Initiator
from hybrid.wire.server import MAX_RUNNING, Connection, serve


class ScriptedHost:
    """A memory pair with ``serve`` at its far end."""

    def __init__(self) -> None:
        self.wire, self.far = memory.pair()
        self.mux = Mux(Side.HOST)
        self.messages: list[bytes] = []
        self.connections: list[Connection] = []
        self.release = asyncio.Event()
        self.serving = asyncio.create_task(
            serve(
                self.far,
                lambda: Hello(VERSION, "b"),
                self.handle,
                connected=self.connections.append,
            )
        )

    async def handle(self, request: Request[Any], connection: Connection) -> object:
        match request:
            case HasBlob(digest="bad"):
                raise Conflict("bad blob")
            case HasBlob():
                return Truth(True)
            case Top(arguments=size):
                return ProcessTable(["x" * 65536] * int(size), [])
            case Shutdown():
                await self.release.wait()
        return Empty()

    async def greet(self, version: int = VERSION) -> None:
        initiator = Initiator()
        await self.wire.write(initiator.ask(flush=False))
        while not initiator.receive(await self.wire.read(65536)):
            pass
        self.take(initiator.rest)
        await self.say(envelope.hello_message(Hello(version, "")))
        assert "hello" in await self.hear()

    async def say(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.mux.send_message(payload)
        while data := self.mux.data_to_send():
            await self.wire.write(data)

    def take(self, data: bytes) -> None:
        for event in self.mux.receive(data):
            assert isinstance(event, MessageReceived)
            self.messages.append(event.payload)

    async def hear(self) -> dict[str, Any]:
        while not self.messages:
            data = await self.wire.read(65536)
            assert data, "the agent closed the link"
            self.take(data)
        message = json.loads(self.messages.pop(0))
        assert isinstance(message, dict)
        return message


@pytest.fixture
async def host() -> AsyncIterator[ScriptedHost]:
    scripted = ScriptedHost()
    yield scripted
    scripted.release.set()
    await scripted.wire.close()
    await scripted.serving


async def test_answers_and_errors(host: ScriptedHost) -> None:
    await host.greet()
    await host.say(
        envelope.request_message(1, HasBlob("x")), envelope.request_message(2, HasBlob("bad"))
    )
    assert await host.hear() == {"id": 1, "ok": {"value": True}}
    assert await host.hear() == {"id": 2, "error": {"kind": "conflict", "message": "bad blob"}}


async def test_a_host_of_another_version_is_cut_off(host: ScriptedHost) -> None:
    await host.greet(VERSION + 1)
    assert "the host speaks version 2" in await host.serving
    assert not host.connections


async def test_a_request_before_the_hello_is_a_breach(host: ScriptedHost) -> None:
    await host.wire.write(Initiator().ask(flush=False))
    await host.say(envelope.request_message(1, Facts()))
    assert await host.serving == "protocol error: the first message is no hello"


async def test_a_bad_request_is_refused_and_the_link_goes_on(host: ScriptedHost) -> None:
    await host.greet()
    await host.say(b'{"id":1,"type":"HasBlob","body":{}}', b'{"id":2,"type":"Sing","body":{}}')
    first, second = await host.hear(), await host.hear()
    assert first["error"] == {"kind": "invalid", "message": "HasBlob: field 'digest' is missing"}
    assert second["error"] == {"kind": "invalid", "message": "unknown request Sing"}
    await host.say(envelope.request_message(3, HasBlob("x")))
    assert (await host.hear())["id"] == 3


async def test_an_answer_too_large_for_the_link_becomes_an_error(host: ScriptedHost) -> None:
    await host.greet()
    await host.say(envelope.request_message(1, Top("c", "17")))
    answer = await host.hear()
    assert answer["error"]["message"] == "the answer is too large for the link"


async def test_large_answers_wait_for_a_host_that_reads_late(host: ScriptedHost) -> None:
    await host.greet()
    await host.say(*(envelope.request_message(n, Top("c", "8")) for n in range(1, 21)))
    await asyncio.sleep(0.05)
    assert host.connections[0]._session._mux.control_size < 2 << 20
    assert sorted([(await host.hear())["id"] for _ in range(20)]) == list(range(1, 21))


async def test_too_many_requests_are_refused_at_once(host: ScriptedHost) -> None:
    await host.greet()
    await host.say(*(envelope.request_message(n, Shutdown()) for n in range(1, MAX_RUNNING + 2)))
    refused = await host.hear()
    assert refused["id"] == MAX_RUNNING + 1
    assert refused["error"]["kind"] == "unavailable"


async def test_what_was_sent_is_written_after_a_flush(host: ScriptedHost) -> None:
    await host.greet()
    await host.say(envelope.request_message(1, HasBlob("x")))
    await host.hear()
    (connection,) = host.connections
    await connection.emit(OutOfMemory("c"))
    await connection.flush()
    await connection.close()
    assert await host.hear() == {"event": "OutOfMemory", "body": {"container": "c"}}
    assert connection.closed and connection.reason == "closed"
    await connection.flush()
    with pytest.raises(Unavailable, match="connection to the host lost: closed"):
        await connection.emit(OutOfMemory("c"))


async def test_a_stream_nobody_opened(host: ScriptedHost) -> None:
    await host.greet()
    await host.say(envelope.request_message(1, HasBlob("x")))
    await host.hear()
    with pytest.raises(InvalidInput, match="stream 3 is not open"):
        host.connections[0].stream(3)


async def test_a_host_that_asks_without_end_and_never_reads_is_cut_off(host: ScriptedHost) -> None:
    await host.greet()
    for number in range(1, 2 * MAX_RUNNING + 2):
        host.mux.send_message(envelope.request_message(number, Shutdown()))
    await host.wire.write(host.mux.data_to_send(1 << 30))
    assert "does not read the answers" in await host.serving
