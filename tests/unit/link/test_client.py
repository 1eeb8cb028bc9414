"""The client against agents that are scripted frame by frame: slow, broken, hostile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from hybrid.errors import Conflict, Internal, InvalidInput, Unavailable, Unsupported
from hybrid.link import memory
from hybrid.link.client import MAX_EVENTS, AgentClient
from hybrid.wire import envelope
from hybrid.wire.frame import MAX_DATA, FrameType, header, message_frame
from hybrid.wire.messages import VERSION, Facts, HasBlob, Hello, OutOfMemory, Signal, Truth
from hybrid.wire.mux import MessageReceived, Mux, Side
from hybrid.wire.resync import Acceptor


class ScriptedAgent:
    """The other end of a memory pair, driven by the test."""

    def __init__(self) -> None:
        self.host, self.wire = memory.pair()
        self.mux = Mux(Side.AGENT)
        self.messages: list[bytes] = []

    async def accept(self, hello: bytes | None = None) -> None:
        acceptor = Acceptor()
        while (answer := acceptor.receive(await self.wire.read(65536))) is None:
            pass
        await self.wire.write(answer)
        await self.say(hello or envelope.hello_message(Hello(VERSION, "boot-1")))
        self.mux.receive(acceptor.rest)

    async def say(self, payload: bytes | str) -> None:
        payload = payload.encode() if isinstance(payload, str) else payload
        await self.wire.write(message_frame(payload))

    async def hear(self) -> dict[str, object]:
        """The next message of the host, which is not its hello."""
        while not self.messages:
            data = await self.wire.read(65536)
            assert data, "the host closed the link"
            for event in self.mux.receive(data):
                if isinstance(event, MessageReceived) and b'"hello"' not in event.payload[:9]:
                    self.messages.append(event.payload)
        message = json.loads(self.messages.pop(0))
        assert isinstance(message, dict)
        return message


@pytest.fixture
async def agent() -> AsyncIterator[ScriptedAgent]:
    scripted = ScriptedAgent()
    yield scripted
    await scripted.wire.close()


@pytest.fixture
async def client(agent: ScriptedAgent) -> AsyncIterator[AgentClient]:
    accepting = asyncio.create_task(agent.accept())
    connected = await AgentClient.connect(agent.host, timeout=5, name="machine db")
    await accepting
    yield connected
    await connected.close()


async def test_hello(client: AgentClient) -> None:
    assert client.hello == Hello(VERSION, "boot-1")
    assert not client.closed


async def test_a_call_and_its_answer(agent: ScriptedAgent, client: AgentClient) -> None:
    call = asyncio.create_task(client.call(HasBlob("sha256:0")))
    assert await agent.hear() == {"id": 1, "type": "HasBlob", "body": {"digest": "sha256:0"}}
    await agent.say('{"id":1,"ok":{"value":true}}')
    assert await call == Truth(True)


async def test_answers_may_come_in_any_order(agent: ScriptedAgent, client: AgentClient) -> None:
    calls = [asyncio.create_task(client.call(HasBlob(str(n)))) for n in range(3)]
    ids = [(await agent.hear())["id"] for _ in calls]
    for number in reversed(ids):
        await agent.say(f'{{"id":{number},"ok":{{"value":{"true" if number == 2 else "false"}}}}}')
    assert [answer.value for answer in await asyncio.gather(*calls)] == [False, True, False]


async def test_the_agents_errors_are_raised_as_their_kind(
    agent: ScriptedAgent, client: AgentClient
) -> None:
    call = asyncio.create_task(client.call(Signal("c", 9)))
    await agent.hear()
    await agent.say(envelope.error_message(1, Conflict("container c is not running")))
    with pytest.raises(Conflict, match="container c is not running"):
        await call
    assert not client.closed


async def test_a_malformed_answer_fails_its_call_only(
    agent: ScriptedAgent, client: AgentClient
) -> None:
    call = asyncio.create_task(client.call(HasBlob("x")))
    await agent.hear()
    await agent.say('{"id":1,"ok":{"value":"yes"}}')
    with pytest.raises(
        Internal, match=r"machine db: malformed answer to HasBlob: Truth.value: bool"
    ):
        await call
    assert not client.closed


async def test_an_answer_that_comes_too_late_is_dropped(
    agent: ScriptedAgent, client: AgentClient
) -> None:
    with pytest.raises(Unavailable, match=r"machine db: no answer to HasBlob within 0\.01 s"):
        await client.call(HasBlob("x"), timeout=0.01)
    await agent.say('{"id":1,"ok":{"value":true}}')
    call = asyncio.create_task(client.call(HasBlob("y")))
    await agent.hear()
    await agent.hear()
    await agent.say('{"id":2,"ok":{"value":false}}')
    assert await call == Truth(False)


async def test_a_request_too_large_for_the_link_is_refused_here(client: AgentClient) -> None:
    with pytest.raises(InvalidInput, match="larger than"):
        await client.call(HasBlob("x" * (1 << 20)))
    assert repr(client).startswith("<AgentClient waiting=0")


BREACHES = {
    "an answer to nothing": ('{"id":77,"ok":{}}', "answer to request 77"),
    "an unknown event": ('{"event":"Surprise","body":{}}', "unknown event Surprise"),
    "a malformed event": ('{"event":"OutOfMemory","body":{}}', "field 'container' is missing"),
    "no JSON": ("}{", "not JSON"),
    "a request": ('{"id":1,"type":"Facts","body":{}}', "neither answer nor event"),
    "a second hello": ('{"hello":{"version":1,"boot":"x"}}', "neither answer nor event"),
}


@pytest.mark.parametrize(("payload", "text"), BREACHES.values(), ids=BREACHES.keys())
async def test_a_breach_ends_the_link_with_its_reason(
    agent: ScriptedAgent, client: AgentClient, payload: str, text: str
) -> None:
    call = asyncio.create_task(client.call(Facts()))
    await agent.hear()
    await agent.say(payload)
    with pytest.raises(
        Unavailable, match=f"connection to machine db lost: protocol error: .*{text}"
    ):
        await call
    await client.wait_closed()
    assert client.closed and text in client.reason


async def test_raw_garbage_ends_the_link(agent: ScriptedAgent, client: AgentClient) -> None:
    await agent.wire.write(b"GET / HTTP/1.1\r\n")
    await client.wait_closed()
    assert client.reason == "protocol error: no frame header where one must be"


async def test_data_beyond_the_credit_ends_the_link(
    agent: ScriptedAgent, client: AgentClient
) -> None:
    stream = client.open()
    await client.open().write(b"x")  # the agent knows both streams once this has arrived
    for _ in range(5):
        await agent.wire.write(header(FrameType.DATA, stream.id, MAX_DATA) + bytes(MAX_DATA))
    await client.wait_closed()
    assert "more data on stream 1" in client.reason
    # What came within the credit was never more than a window; then the loss shows.
    with pytest.raises(Unavailable, match="lost"):
        while await stream.read():
            pass


async def test_a_flood_of_events_ends_the_link(agent: ScriptedAgent, client: AgentClient) -> None:
    event = message_frame(envelope.event_message(OutOfMemory("c")))
    await agent.wire.write(event * (MAX_EVENTS + 1))
    await client.wait_closed()
    assert "more events than anybody can take" in client.reason


async def test_large_events_are_bounded_by_size(agent: ScriptedAgent, client: AgentClient) -> None:
    for _ in range(5):
        await agent.say(envelope.event_message(OutOfMemory("c" * 1_000_000)))
    await client.wait_closed()
    assert "more events" in client.reason


async def test_events_come_in_order_and_end_with_the_link(
    agent: ScriptedAgent, client: AgentClient
) -> None:
    for name in ("a", "b"):
        await agent.say(envelope.event_message(OutOfMemory(name)))
    events = client.events()
    assert [await anext(events), await anext(events)] == [OutOfMemory("a"), OutOfMemory("b")]
    await agent.wire.close()
    assert [event async for event in events] == []


async def test_loss_wakes_everybody(agent: ScriptedAgent, client: AgentClient) -> None:
    stream, full = client.open(), client.open()
    waiting = [
        asyncio.create_task(client.call(Facts())),
        asyncio.create_task(stream.read()),
        asyncio.create_task(full.write(bytes(1 << 20))),
    ]
    await agent.hear()
    await agent.wire.close()
    for task in waiting:
        with pytest.raises(
            Unavailable, match="connection to machine db lost: the other end is gone"
        ):
            await task
    for late in (client.call(Facts()), stream.write(b"x"), stream.read()):
        with pytest.raises(Unavailable, match="lost"):
            await late
    with pytest.raises(Unavailable):
        client.open()
    await stream.close_write()
    await stream.reset()


async def test_a_cancelled_call_leaves_the_link_up(
    agent: ScriptedAgent, client: AgentClient
) -> None:
    call = asyncio.create_task(client.call(Facts()))
    await agent.hear()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await agent.say('{"id":1,"ok":{}}')
    await agent.say(envelope.event_message(OutOfMemory("c")))
    assert await anext(client.events()) == OutOfMemory("c")


async def test_no_agent_is_unavailable_and_the_transport_is_closed(agent: ScriptedAgent) -> None:
    with pytest.raises(Unavailable, match=r"machine db: the agent did not answer within 0\.05 s"):
        await AgentClient.connect(agent.host, timeout=0.05, name="machine db")
    await agent.wire.read(65536)
    assert await agent.wire.read(65536) == b""


async def test_an_agent_that_only_echoes_the_mark_is_unavailable(agent: ScriptedAgent) -> None:
    await agent.wire.write(b"x")

    async def echo() -> None:
        while data := await agent.wire.read(65536):
            await agent.wire.write(data)

    echoing = asyncio.create_task(echo())
    with pytest.raises(Unavailable):
        await AgentClient.connect(agent.host, timeout=0.05)
    await echoing


@pytest.mark.parametrize(
    ("hello", "kind", "text"),
    [
        (envelope.hello_message(Hello(VERSION + 1, "b")), Unsupported, "update the older one"),
        (b'{"hello":{}}', Unavailable, "field 'version' is missing"),
        (b'{"id":1,"ok":{}}', Unavailable, "the first message is no hello"),
    ],
)
async def test_a_bad_hello_is_refused(
    agent: ScriptedAgent, hello: bytes, kind: type[Exception], text: str
) -> None:
    accepting = asyncio.create_task(agent.accept(hello))
    with pytest.raises(kind, match=text):
        await AgentClient.connect(agent.host, timeout=5)
    await accepting


async def test_an_end_before_the_answer_is_unavailable(agent: ScriptedAgent) -> None:
    await agent.wire.close()
    with pytest.raises(Unavailable, match="memory: closed"):
        await AgentClient.connect(agent.host, timeout=5)
