"""A guest's agent that lies: it can end its own link and its own containers, and no more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hybrid.engine.engine import Engine
from hybrid.engine.output import Log
from hybrid.engine.store import Store
from hybrid.errors import HybridError, InvalidInput
from hybrid.wire import envelope, frame, journal, mux
from hybrid.wire import messages as m
from tests.unit.engine.twins import FakeAgent, World, spec, until

SETTLED = 0.3  # seconds in which a lie would have had its effect


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


@pytest.fixture
async def engine(world: World) -> AsyncIterator[Engine]:
    engine = await world.engine()
    yield engine
    await engine.close()


async def _running(engine: Engine, name: str, isolation: str = "vm") -> Any:
    container, _ = await engine.containers.create(name, spec(isolation=isolation))
    await engine.containers.start(name)
    return container


def _agent(world: World, container: Any) -> FakeAgent:
    return world.guests.agents[container.record.machine]


async def _emit(agent: FakeAgent, event: object) -> None:
    for connection in agent._connections:
        await connection.emit(event)


def _exited(container: str, exec_id: str = "", **more: Any) -> m.Exited:
    return m.Exited(m.ProcessState(container, exec_id, "stopped", 0, exit_code=3, **more))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_guest_cannot_end_another_guests_container(world: World, engine: Engine) -> None:
    mine, other = await _running(engine, "mine"), await _running(engine, "other")
    await _emit(_agent(world, mine), _exited(other.id))
    await _emit(_agent(world, mine), m.OutOfMemory(other.id))
    await asyncio.sleep(SETTLED)
    assert other.record.status == "running"
    assert not other.record.oom_killed


async def test_a_guest_cannot_end_another_guests_exec(world: World, engine: Engine) -> None:
    from hybrid.engine.execs import ExecSpec

    mine, other = await _running(engine, "mine"), await _running(engine, "other")
    one = engine.execs.create(other, ExecSpec(["sleep"]))
    await engine.execs.start(one)
    await _emit(_agent(world, mine), _exited(other.id, one.record.id))
    await asyncio.sleep(SETTLED)
    assert one.record.running


async def test_a_flood_of_exits_costs_neither_memory_nor_log_lines(
    world: World, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    mine = await _running(engine, "mine")
    agent = _agent(world, mine)
    await _emit(agent, _exited("0" * 64))
    before, tasks = _resident(), len(asyncio.all_tasks())
    for number in range(5000):
        await _emit(agent, _exited(f"{number:064x}"))
        await _emit(agent, _exited(mine.id[:-1] + "x", "e" * 64))
    await asyncio.sleep(SETTLED)
    assert len(asyncio.all_tasks()) < tasks + 600
    assert len(caplog.records) < 600
    assert _resident() - before < 32 << 20
    assert engine.containers.find("mine").record.status == "running"


async def test_repeating_its_own_exit_is_seen_to_once(world: World, engine: Engine) -> None:
    mine = await _running(engine, "mine")
    agent, tasks = _agent(world, mine), len(asyncio.all_tasks())
    # its output is not at its end, so the exit waits for it
    for _ in range(3000):
        await _emit(agent, _exited(mine.id))
    await asyncio.sleep(SETTLED)
    assert len(asyncio.all_tasks()) < tasks + 50


async def test_what_a_guest_says_of_an_end_is_bounded(world: World, engine: Engine) -> None:
    mine = await _running(engine, "mine")
    agent = _agent(world, mine)
    agent.exit(mine.id, 0)
    await _emit(agent, _exited(mine.id, error="x" * 500_000, finished_ns=1 << 62))
    await until(lambda: mine.record.status == "exited")
    assert len(mine.record.error) <= 4096
    assert mine.record.finished_ns < 1 << 62


async def test_a_link_that_breaks_again_and_again_is_tried_ever_less(
    world: World, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    mine = await _running(engine, "mine")
    agent = _agent(world, mine)
    connects = 0
    connect = agent.connect

    async def counted() -> Any:
        nonlocal connects
        connects += 1
        transport = await connect()
        asyncio.get_running_loop().call_later(0.02, lambda: agent.spawn(agent.cut()))
        return transport

    agent.connect = counted  # type: ignore[method-assign]
    await agent.cut()
    await asyncio.sleep(2)
    assert connects <= 7


@pytest.mark.parametrize(
    "count",
    [b"9" * 40, b"9" * 5000, b"-1", b"1e9", b" 1", "٣".encode(), b"\x00"],
)
def test_a_marker_of_dropped_output_cannot_move_the_log_out_of_bounds(
    tmp_path: Path, count: bytes
) -> None:
    store = Store(tmp_path / "db")
    log = Log(tmp_path / "log", store, "c")
    log.begin(resume=False)
    with pytest.raises(InvalidInput):
        log.append([journal.Record(0, journal.DROPPED, count)])
    log.end()
    Log(tmp_path / "log", store, "c")


def test_many_markers_cannot_either(tmp_path: Path) -> None:
    """What was stored must be readable, or the next daemon would not start."""
    store = Store(tmp_path / "db")
    log = Log(tmp_path / "log", store, "c")
    log.begin(resume=False)
    with pytest.raises(InvalidInput):
        for _ in range(10_000):
            log.append([journal.Record(0, journal.DROPPED, b"9" * 15)] * 10)
    log.end()
    Log(tmp_path / "log", store, "c")


@pytest.mark.parametrize(
    "data",
    [
        journal.HEADER.pack(0, journal.STDOUT, 0),
        journal.HEADER.pack(0, journal.STDOUT, 1 << 31),
        journal.HEADER.pack(0, journal.STDOUT, journal.MAX_PAYLOAD + 1),
        journal.HEADER.pack(0, 7, 1) + b"x",
        b"\xff" * 100,
    ],
)
async def test_records_with_wrong_lengths_end_the_output_and_nothing_else(
    world: World, engine: Engine, data: bytes
) -> None:
    mine, other = await _running(engine, "mine", "vm:a"), await _running(engine, "other", "vm:a")
    agent = _agent(world, mine)
    process = agent.processes[mine.id, ""]
    process.journal += data
    process.wake()
    agent.write(other.id, "hello")
    await until(lambda: other.log.place() > 0)
    assert mine.log.place() == 0
    agent.exit(mine.id, 0)
    await until(lambda: mine.record.status == "exited")


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"{}",
        b"nonsense",
        b'{"id": 1}',
        b'{"id": -1, "ok": {}}',
        b'{"id": 1e400, "ok": {}}',
        b'{"id": 99999, "ok": {}}',
        b'{"id": true, "ok": {}}',
        b'{"event": "Exited", "body": {"state": 5}}',
        b'{"event": "Nothing", "body": {}}',
        b'{"event": "Exited", "body": {"state": {"container": "\\ud800", "exec": ""}}}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 100_000,
        b'{"id": 1, "error": {"kind": 5}}',
    ],
)
async def test_a_malformed_message_ends_the_link_and_not_the_daemon(
    world: World, engine: Engine, payload: bytes
) -> None:
    mine, other = await _running(engine, "mine"), await _running(engine, "other")
    agent = _agent(world, mine)
    for end in list(agent._ends):
        await end.write(frame.message_frame(payload))
    await asyncio.sleep(SETTLED)
    assert other.record.status == "running"
    machine = engine.machines.get(mine.record.machine)
    assert machine is not None
    await until(lambda: machine.linked)  # made anew: nothing of the lie is left
    assert mine.record.status == "running"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 4096,
        frame.header(frame.FrameType.MESSAGE, 0, 1) + b"",
        frame.HEADER.pack(frame.MAGIC, 1, 0, frame.MAX_MESSAGE + 1),
        frame.HEADER.pack(frame.MAGIC, 3, 1, 0xFFFFFFFF),
        frame.HEADER.pack(frame.MAGIC, 2, 77, 0),
        frame.HEADER.pack(frame.MAGIC, 99, 1, 0),
        frame.window_frame(1, 0xFFFFFFFF) * 3,
    ],
)
def test_frames_that_the_protocol_forbids_are_errors_in_bounded_memory(data: bytes) -> None:
    side = mux.Mux(mux.Side.HOST)
    try:
        list(side.receive(data))
    except frame.ProtocolError:
        return
    assert len(data) < frame.MAX_MESSAGE


def test_text_of_the_guests_is_one_printable_line() -> None:
    told = b'{"id": 1, "error": {"kind": "conflict", "message": "a\\u001b[2Jb\\nc\\u0007\\u202e"}}'
    message = envelope.parse_from_agent(told)
    assert isinstance(message, envelope.AnswerEnvelope)
    assert isinstance(message.error, HybridError)
    assert message.error.message.isprintable()
