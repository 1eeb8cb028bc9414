"""Output, input and terminals: order, flow control, what happens without a reader and across reconnects."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hybrid.errors import Conflict, InvalidInput
from hybrid.wire.journal import DROPPED, HEADER, Parser
from hybrid.wire.messages import (
    AckOutput,
    Delete,
    List,
    ReadOutput,
    Resize,
    StartContainer,
    StartExec,
    State,
    WriteInput,
)
from tests.agentdriver import Driver
from tests.functional.agent.conftest import RunningAgent

MIB = 1 << 20


async def test_stdin_reaches_the_process_and_its_end_too(driver: Driver) -> None:
    name = await driver.start(driver.request("sha1sum", stdin=True))
    stream = driver.client.open()
    await driver.client.call(WriteInput(name, stream.id))
    for _ in range(64):
        await stream.write(bytes(65536))
    await stream.close_write()
    assert (await driver.text(name)).startswith("2bccbd2f38f15c13eb7d5a89fd9d85f595e23bc3")
    assert await driver.exited(name) == 0


async def test_stdin_can_stay_open_for_the_next_client(driver: Driver) -> None:
    name = await driver.start(driver.request("cat", stdin=True))
    for text in (b"one\n", b"two\n"):
        stream = driver.client.open()
        await driver.client.call(WriteInput(name, stream.id, keep_open=text == b"one\n"))
        await stream.write(text)
        await stream.close_write()
        assert await stream.read() == b""
    assert await driver.text(name) == "one\ntwo\n"


async def test_input_of_a_process_without_stdin_is_refused(driver: Driver) -> None:
    name = await driver.start(driver.request("cat"))
    assert await driver.exited(name) == 0  # /dev/null
    with pytest.raises(Conflict):
        await driver.client.call(WriteInput(name, driver.client.open().id))


async def test_an_input_nobody_reads_holds_up_nothing_else(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100", stdin=True))
    stream = driver.client.open()
    await driver.client.call(WriteInput(name, stream.id))
    writing = asyncio.create_task(stream.write(bytes(4 * MIB)))
    code, out, _ = await driver.execute(name, "echo", "still here")
    assert (code, out) == (0, "still here\n")
    assert not writing.done()
    await driver.client.call(Delete(name))
    writing.cancel()


async def test_a_terminal_echoes_resizes_and_takes_control_c(driver: Driver) -> None:
    request = driver.request("sh", terminal=True, stdin=True, rows=33, columns=77)
    await driver.client.call(request)
    name = request.container
    output, keys = driver.client.open(), driver.client.open()
    await driver.client.call(ReadOutput(name, output.id))
    await driver.client.call(WriteInput(name, keys.id))
    await driver.client.call(StartContainer(name))
    parser, seen = Parser(), ""

    async def until(text: str) -> None:
        nonlocal seen
        async with asyncio.timeout(15):
            while text not in seen:
                records = parser.feed(await output.read())
                seen += "".join(record.data.decode() for record in records)
        seen = seen.split(text, 1)[1]

    await keys.write(b"stty size\n")
    await until("33 77")
    await driver.client.call(Resize(name, 40, 100))
    await keys.write(b"stty size\n")
    await until("40 100")
    await keys.write(b"sleep 100; echo interrupted=$?\n")
    await until("interrupted=$?")
    await asyncio.sleep(0.3)
    await keys.write(b"\x03")
    await keys.write(b"tty; exit 9\n")
    await until("/dev/pts/0")
    assert await driver.exited(name) == 9


async def test_an_exec_with_a_terminal(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    process = {"args": ["stty", "size"], "terminal": True}
    process["consoleSize"] = {"height": 10, "width": 20}
    await driver.client.call(StartExec(name, "t", process))
    assert await driver.text(name, "t") == "10 20\r\n"
    with pytest.raises(Conflict):
        await driver.client.call(Resize(name, 1, 1))


async def test_without_a_reader_the_oldest_output_makes_room(driver: Driver) -> None:
    name = await driver.start(driver.request("sh", "-c", "head -c 9m /dev/zero; echo end"))
    assert await driver.exited(name) == 0
    records = await driver.records(name)
    state = await driver.client.call(State(name))
    assert records[0].stream == DROPPED
    dropped = int(records[0].data)
    assert dropped == state.journal_start > 4 * MIB
    kept = sum(HEADER.size + len(record.data) for record in records[1:])
    assert dropped + kept == state.journal_end
    assert kept <= 4 * MIB
    assert records[-1].data.endswith(b"end\n")


async def test_with_a_slow_reader_the_process_waits_and_nothing_is_lost(driver: Driver) -> None:
    size = 24 * MIB
    request = driver.request("head", "-c", str(size), "/dev/zero")
    await driver.client.call(request)
    stream = driver.client.open()
    await driver.client.call(ReadOutput(request.container, stream.id))
    await driver.client.call(StartContainer(request.container))
    await asyncio.sleep(1)
    state = await driver.client.call(State(request.container))
    assert state.status == "running"
    assert state.journal_end <= 4 * MIB
    parser, total, offset = Parser(), 0, 0
    while data := await stream.read():
        offset += len(data)
        total += sum(len(record.data) for record in parser.feed(data) if record.stream == 1)
        await driver.client.call(AckOutput(request.container, offset))
    assert total == size
    assert await driver.exited(request.container) == 0


async def test_nothing_is_lost_across_a_reconnect(driver: Driver) -> None:
    script = "for i in $(seq 1 400); do echo line $i; sleep 0.005; done; exit 4"
    name = await driver.start(driver.request("sh", "-c", script))
    stream = driver.client.open()
    await driver.client.call(ReadOutput(name, stream.id))
    parser, records, offset = Parser(), [], 0
    while offset < 1000:
        data = await stream.read()
        offset += len(data)
        records += parser.feed(data)
    offset -= parser.pending
    await driver.disconnect()
    await asyncio.sleep(0.5)
    await driver.connect()
    assert [p.container for p in (await driver.client.call(List())).processes] == [name]
    records += await driver.records(name, offset=offset)
    text = b"".join(record.data for record in records).decode()
    assert text == "".join(f"line {n}\n" for n in range(1, 401))
    assert await driver.exited(name) == 4
    driver.exits.clear()
    await driver.disconnect()
    await driver.connect()  # an exit is told again until it is deleted
    assert await driver.exited(name) == 4
    await driver.client.call(Delete(name))
    driver.exits.clear()
    await driver.disconnect()
    await driver.connect()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(driver.exited(name))), 0.3)


async def test_a_second_host_replaces_the_first(driver: Driver) -> None:
    first = driver.client
    await driver.connect()
    await asyncio.wait_for(first.wait_closed(), 5)
    code, out, _ = await driver.run("echo", "new")
    assert (code, out) == (0, "new\n")


async def test_a_new_reader_replaces_the_old_one(driver: Driver) -> None:
    name = await driver.start(driver.request("sh", "-c", "echo a; sleep 0.5; echo b"))
    first = driver.client.open()
    await driver.client.call(ReadOutput(name, first.id))
    assert await driver.text(name) == "a\nb\n"
    with pytest.raises(InvalidInput):
        await driver.client.call(ReadOutput(name, driver.client.open().id, offset=10**6))


async def test_acknowledged_output_is_forgotten(driver: Driver) -> None:
    name = await driver.start(driver.request("echo", "hello"))
    await driver.exited(name)
    state = await driver.client.call(State(name))
    await driver.client.call(AckOutput(name, state.journal_end))
    assert (await driver.client.call(State(name))).journal_start == state.journal_end
    assert await driver.records(name, offset=state.journal_end) == []


async def test_agent_memory_stays_small_under_much_output(
    driver: Driver, agent_process: RunningAgent
) -> None:
    pid = agent_process.process.pid
    before = _rss(pid)
    request = driver.request("head", "-c", str(256 * MIB), "/dev/zero")
    await driver.client.call(request)
    stream = driver.client.open()
    await driver.client.call(ReadOutput(request.container, stream.id))
    await driver.client.call(StartContainer(request.container))
    offset = acknowledged = 0
    while data := await stream.read():
        offset += len(data)
        if offset - acknowledged > MIB:
            await driver.client.call(AckOutput(request.container, offset))
            acknowledged = offset
    assert offset > 256 * MIB
    assert _rss(pid) - before < 24 * MIB


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
