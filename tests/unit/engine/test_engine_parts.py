"""The engine's pure parts and its files: store, names, restart, placement, health, events, output."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.engine import health, names, restart, signals
from hybrid.engine.container import STEPS, Health, HealthCheck, HealthProbe, Record, Restart, Spec
from hybrid.engine.events import KEPT, Events
from hybrid.engine.machine import ID_LIMIT, ID_RANGE, Machine, MachineRecord
from hybrid.engine.output import FOLLOW_RESTARTS, Log
from hybrid.engine.placement import Choice, Wanted, place
from hybrid.engine.store import MIGRATIONS, Store
from hybrid.errors import Conflict, Internal, InvalidInput, NotFound, Unavailable
from hybrid.wire import journal
from hybrid.wire.journal import Record as Line


def record(**fields: Any) -> Record:
    return Record("a" * 64, "one", 1, "sha256:1", Spec("busybox"), **fields)


# --- store ---


def test_documents_come_back_as_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    one = record(exit_code=3, endpoints={})
    store.put("container", one.id, one)
    store.put("container", one.id, one)
    store.close()
    assert Store(tmp_path / "db").all("container", Record) == [one]


def test_a_deleted_document_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.put("container", "x", record())
    store.delete("container", "x")
    assert store.all("container", Record) == []


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "db").close()
    connection = sqlite3.connect(tmp_path / "db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(Internal, match="newer hybrid"):
        Store(tmp_path / "db")


def test_a_damaged_document_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.put("container", "x", record())
    connection = sqlite3.connect(tmp_path / "db")
    connection.execute("UPDATE document SET body = '{}'")
    connection.commit()
    connection.close()
    with pytest.raises(Internal, match="container x is damaged"):
        store.all("container", Record)


def test_a_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.put("container", "x", record())
        raise ZeroDivisionError
    assert store.all("container", Record) == []


# --- container ---


def test_a_step_from_the_wrong_status_names_the_verb() -> None:
    one = record()
    with pytest.raises(Conflict, match="cannot pause container aaaaaaaaaaaa: it is created"):
        one.step("pause")
    for verb in (
        "start",
        "run",
        "pause",
        "unpause",
        "exit",
        "await restart",
        "start",
        "fail",
        "remove",
    ):
        one.step(verb)
    assert one.status == "removing"


def test_every_status_that_a_step_starts_from_is_reached_by_one() -> None:
    reached = {"created"} | {target for _, target in STEPS.values()}
    assert {source for sources, _ in STEPS.values() for source in sources} <= reached


# --- names ---


@pytest.mark.parametrize("good", ["ab", "/ab", "a_b.c-d", "0a"])
def test_good_names(good: str) -> None:
    assert names.checked_name(good) == good.removeprefix("/")


@pytest.mark.parametrize("bad", ["", "a", "-ab", "a b", "a/b", "ä1", "a" * 200, "ab\n"])
def test_bad_names(bad: str) -> None:
    with pytest.raises(InvalidInput, match="only \\[a-zA-Z0-9\\]"):
        names.checked_name(bad)


def test_a_full_id_wins_over_a_name_and_a_name_over_a_prefix() -> None:
    things = [("ab12", "cd"), ("cd34", "ab12"), ("cd56", "x")]

    def find(reference: str) -> tuple[str, str]:
        return names.find(reference, things, lambda thing: thing, f"No such thing: {reference}")

    assert find("ab12") == things[0]
    assert find("cd") == things[0]
    assert find("/x") == find("cd5") == things[2]
    with pytest.raises(InvalidInput, match="multiple IDs found with provided prefix: c"):
        find("c")
    for missing in ("zz", "", "/"):
        with pytest.raises(NotFound):
            find(missing)


def test_made_up_names_are_new() -> None:
    taken: set[str] = set()
    for _ in range(50):
        name = names.made_up_name(taken.__contains__)
        assert name not in taken and names.checked_name(name)
        taken.add(name)


# --- restart ---


@pytest.mark.parametrize(
    ("policy", "code", "count", "by_user", "expected"),
    [
        (Restart("no"), 1, 0, False, False),
        (Restart("always"), 0, 99, False, True),
        (Restart("always"), 0, 0, True, False),
        (Restart("unless-stopped"), 0, 0, False, True),
        (Restart("on-failure"), 0, 0, False, False),
        (Restart("on-failure"), 1, 99, False, True),
        (Restart("on-failure", 2), 1, 1, False, True),
        (Restart("on-failure", 2), 1, 2, False, False),
    ],
)
def test_what_starts_again(
    policy: Restart, code: int, count: int, by_user: bool, expected: bool
) -> None:
    one = record(exit_code=code, restart_count=count, stopped_by_user=by_user)
    one.spec.restart = policy
    assert restart.again(one) is expected


def test_delays_double_up_to_a_minute_and_begin_anew_after_a_long_run() -> None:
    delay, seen = 0.0, []
    for _ in range(12):
        delay = restart.next_delay(delay, 0.5)
        seen.append(delay)
    assert seen[:3] == [0.1, 0.2, 0.4] and seen[-1] == 60.0
    assert restart.next_delay(60.0, 10.0) == 0.1


@pytest.mark.parametrize(("name", "maximum"), [("sometimes", 0), ("always", 3), ("on-failure", -1)])
def test_policies_that_mean_nothing_are_refused(name: str, maximum: int) -> None:
    with pytest.raises(InvalidInput, match="invalid restart policy"):
        restart.checked(name, maximum)


# --- placement ---

MACHINES = {"host": "m-host", "apps": "m-apps"}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted("vm"), Choice("new", "web", private=True)),
        (Wanted("shared", "apps"), Choice("existing", "apps", "m-apps")),
        (Wanted("shared", "other"), Choice("new", "other")),
        (Wanted("container"), Choice("existing", "host", "m-host")),
    ],
)
def test_where_a_container_goes(wanted: Wanted, expected: Choice) -> None:
    assert place(wanted, "web", {}, MACHINES.get) == expected


def test_who_joins_a_namespace_goes_where_that_is() -> None:
    assert (
        place(Wanted("vm", explicit=False), "web", {"db": "m-db"}, MACHINES.get).machine == "m-db"
    )
    with pytest.raises(Conflict, match="contradicts"):
        place(Wanted("vm"), "web", {"db": "m-db"}, MACHINES.get)
    with pytest.raises(Conflict, match="cannot join a non running container: db"):
        place(Wanted("vm", explicit=False), "web", {"db": ""}, MACHINES.get)
    with pytest.raises(Conflict, match="different machines"):
        place(Wanted("vm", explicit=False), "web", {"a": "1", "b": "2"}, MACHINES.get)


# --- health ---


def probe(code: int, at: int = 10**12) -> HealthProbe:
    return HealthProbe(at, at + 1, code, "")


def test_health_changes_only_after_so_many_failures() -> None:
    state, check = Health(), health.filled(HealthCheck(test=["CMD", "x"], retries=2))
    assert not health.step(state, probe(1), check, 0)
    assert health.step(state, probe(1), check, 0) and state.status == "unhealthy"
    assert health.step(state, probe(0), check, 0) and (state.status, state.failing) == (
        "healthy",
        0,
    )
    for _ in range(9):
        health.step(state, probe(0), check, 0)
    assert len(state.log) == health.KEPT_PROBES


def test_failures_while_it_starts_do_not_count() -> None:
    state, check = (
        Health(),
        health.filled(HealthCheck(test=["CMD", "x"], retries=1, start_period=10**9)),
    )
    assert not health.step(state, probe(1, at=5), check, 0)
    assert health.step(state, probe(1, at=2 * 10**9), check, 0) and state.status == "unhealthy"


@pytest.mark.parametrize(
    ("image", "asked", "expected"),
    [
        (None, None, None),
        (HealthCheck(["CMD", "a"]), HealthCheck(), HealthCheck(["CMD", "a"])),
        (
            HealthCheck(["CMD", "a"], interval=5),
            HealthCheck(timeout=7),
            HealthCheck(["CMD", "a"], interval=5, timeout=7),
        ),
        (HealthCheck(["CMD", "a"]), HealthCheck(["NONE"]), None),
        (HealthCheck(["CMD", "a"]), HealthCheck(["CMD", "b"]), HealthCheck(["CMD", "b"])),
    ],
)
def test_the_image_says_what_the_request_leaves_open(
    image: HealthCheck | None, asked: HealthCheck | None, expected: HealthCheck | None
) -> None:
    assert health.merge(image, asked) == expected


def test_checks_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInput, match="Interval in Healthcheck cannot be less than 1ms"):
        health.checked(HealthCheck(["CMD", "x"], interval=5))
    with pytest.raises(InvalidInput, match="unknown health check type"):
        health.checked(HealthCheck(["SHELL", "x"]))


@pytest.mark.parametrize(
    ("text", "number"),
    [("KILL", 9), ("SIGKILL", 9), ("9", 9), ("sigterm", 15), ("RTMIN+3", 37), ("SIGRTMAX", 64)],
)
def test_signals_by_name_and_number(text: str, number: int) -> None:
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["", "NOPE", "0", "65", "RTMIN+99", "-1"])
def test_signals_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="invalid signal"):
        signals.parse(text)


# --- events ---


async def test_events_since_then_and_from_now_on(tmp_path: Path) -> None:
    events = Events(Store(tmp_path / "db"))
    events.publish("container", "create", "a")
    seen: list[str] = []

    async def follow() -> None:
        async for event in events.stream(0, None):
            seen.append(event.action)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0)
    events.publish("container", "start", "a")
    await asyncio.sleep(0.01)
    task.cancel()
    assert seen == ["create", "start"]


async def test_events_until_a_time_that_is_past_end(tmp_path: Path) -> None:
    events = Events(Store(tmp_path / "db"))
    events.publish("container", "create", "a")
    assert [event.action async for event in events.stream(0, time.time_ns())] == ["create"]
    assert [event.action async for event in events.stream(None, time.time_ns())] == []


async def test_events_outlive_the_daemon_and_are_bounded(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    events = Events(store)
    for number in range(KEPT + 200):
        events.publish("container", str(number), "a")
    assert len(store.events()) <= KEPT + 64
    again = Events(store)
    found = [event.action async for event in again.stream(0, time.time_ns())]
    assert len(found) == KEPT and found[-1] == str(KEPT + 199)


# --- output ---


def made_log(directory: Path) -> Log:
    return Log(directory / "log", Store(directory / "db"), "c")


async def lines(log: Log, place: int = 0, follow: int | None = None) -> list[bytes]:
    return [line.data async for batch in log.records(place, follow=follow) for line in batch]


async def test_the_place_in_the_file_is_the_place_in_the_journal(tmp_path: Path) -> None:
    log = made_log(tmp_path)
    assert log.begin(resume=False) == 0
    log.append([Line(1, 1, b"one\n"), Line(2, 2, b"two\n")])
    log.end()
    again = made_log(tmp_path)
    assert again.begin(resume=True) == 2 * (journal.HEADER.size + 4)
    assert await lines(again) == [b"one\n", b"two\n"]


async def test_a_second_run_counts_from_its_own_beginning(tmp_path: Path) -> None:
    log = made_log(tmp_path)
    log.begin(resume=False)
    log.append([Line(1, 1, b"first\n")])
    log.end()
    assert log.begin(resume=False) == 0
    log.append([Line(2, 1, b"second\n")])
    assert made_log(tmp_path).begin(resume=True) == journal.HEADER.size + 7
    assert await lines(log) == [b"first\n", b"second\n"]


@given(torn=st.integers(1, journal.HEADER.size + 3))
def test_a_torn_record_is_asked_for_again(
    tmp_path_factory: pytest.TempPathFactory, torn: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = made_log(directory)
    log.begin(resume=False)
    log.append([Line(1, 1, b"whole"), Line(2, 1, b"torn")])
    os.truncate(directory / "log", (directory / "log").stat().st_size - torn)
    assert made_log(directory).begin(resume=True) == journal.HEADER.size + 5


async def test_dropped_output_moves_the_offset_by_what_was_dropped(tmp_path: Path) -> None:
    log = made_log(tmp_path)
    log.begin(resume=False)
    log.append([Line(1, journal.DROPPED, b"1000"), Line(2, 1, b"x")])
    assert log.offset == 1000 + journal.HEADER.size + 1
    assert made_log(tmp_path).begin(resume=True) == log.offset


async def test_a_follower_gets_all_and_ends_with_the_run(tmp_path: Path) -> None:
    log = made_log(tmp_path)
    following = asyncio.create_task(lines(log, log.place(), log.waiting_follow()))
    await asyncio.sleep(0)
    log.begin(resume=False)
    for number in range(100):
        log.append([Line(number, 1, str(number).encode())])
        await asyncio.sleep(0)
    log.end()
    assert await following == [str(number).encode() for number in range(100)]


async def test_following_over_restarts_ends_when_there_is_none_to_come(tmp_path: Path) -> None:
    log = made_log(tmp_path)
    log.begin(resume=False)
    following = asyncio.create_task(lines(log, 0, FOLLOW_RESTARTS))
    log.append([Line(1, 1, b"a")])
    log.end(over=False)
    await asyncio.sleep(0.01)
    assert not following.done()
    log.begin(resume=False)
    log.append([Line(1, 1, b"b")])
    log.end()
    assert await following == [b"a", b"b"]


async def test_who_waits_for_a_run_that_fails_is_told(tmp_path: Path) -> None:
    log = made_log(tmp_path)
    following = asyncio.create_task(lines(log, 0, log.waiting_follow()))
    await asyncio.sleep(0)
    log.fail()
    assert await following == []


def test_the_tail_begins_at_a_line_inside_a_record(tmp_path: Path) -> None:
    log = made_log(tmp_path)
    log.begin(resume=False)
    log.append([Line(1, 1, b"1\n2\n3"), Line(1, 2, b"other\n"), Line(1, 1, b"3\n4\n")])
    assert log.tail(2, {1}) == (0, 2)
    assert log.tail(1, {1}) == (2 * journal.HEADER.size + 11, 1)
    assert log.tail(99, {1, 2}) == (0, 0)
    assert log.tail(0, {1}) == (log.place(), 0)


# --- id ranges ---


def machine() -> Machine:
    made = MachineRecord("m" * 64, "host", "host", "host", 1)
    return Machine(made, provider=None)  # type: ignore[arg-type]


def test_id_ranges_differ_and_a_freed_one_is_taken_again() -> None:
    host, firsts = machine(), range(100_000, ID_LIMIT, ID_RANGE)
    assert [host.take_id_range(one, firsts) for one in "abc"] == [100_000, 165_536, 231_072]
    host.bases.pop("b")
    assert host.take_id_range("d", firsts) == 165_536
    assert host.take_id_range("d", firsts) == 165_536


def test_without_a_free_id_range_that_is_said() -> None:
    host, firsts = machine(), range(4_000_000_000, ID_LIMIT, ID_RANGE)
    last = [host.take_id_range(str(number), firsts) for number in range(len(firsts))][-1]
    assert last + ID_RANGE < 2**32
    with pytest.raises(Unavailable, match="machine host has no free range of user ids"):
        host.take_id_range("one more", firsts)
