"""The pool of clones that stand ready: how many, when they are made, given out and ended. Nothing is cloned here."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hybrid.errors import Unavailable
from hybrid.machine import pool as pools
from hybrid.machine.pool import Pool, PoolLimits, Spare, memory_short

COST = 10


class Host:
    """Makes and ends spares, and knows which there are."""

    def __init__(self) -> None:
        self.alive: dict[str, str] = {}  # id → why it must not be used
        self.made = 0
        self.making = 0
        self.at_once = 0
        self.fails = False
        self.short = ""
        self.template = True
        self.may_make = asyncio.Event()
        self.may_make.set()

    async def make(self) -> Spare | None:
        if not self.template:
            return None
        if self.fails:
            raise Unavailable("no such thing")
        self.made += 1
        name = f"s{self.made}"
        self.alive[name] = ""
        self.making += 1
        self.at_once = max(self.at_once, self.making)
        try:
            await self.may_make.wait()
            await asyncio.sleep(0)
        except BaseException:
            del self.alive[name]
            raise
        finally:
            self.making -= 1
        return Spare(name, COST, lambda: self.alive.get(name, "gone"))

    async def end(self, name: str) -> None:
        await asyncio.sleep(0)
        self.alive.pop(name, None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_QUIET", 0.02)
    monkeypatch.setattr(pools, "_LOOK", 0.02)
    monkeypatch.setattr(pools, "_GUESS", COST)


@pytest_asyncio.fixture
async def host() -> Host:
    return Host()


@pytest_asyncio.fixture
async def pool(host: Host) -> AsyncIterator[Pool]:
    made = Pool(PoolLimits(2, 10 * COST), host.end, lambda: host.short)
    made.open()
    yield made
    await made.close()
    assert host.alive == {} and host.at_once <= 1


async def until(pool: Pool, key: str, count: int) -> None:
    async with asyncio.timeout(5):
        while len(pool.ready(key)) != count:
            await asyncio.sleep(0.005)


async def test_as_many_as_wanted_stand_ready_and_are_replaced(pool: Pool, host: Host) -> None:
    assert pool.take("k") is None
    pool.want("k", host.make)
    await until(pool, "k", 2)
    assert pool.memory == 2 * COST and len(pool.all()) == 2
    first = pool.take("k")
    assert first is not None and first not in pool.ready("k")
    await until(pool, "k", 2)
    assert host.made == 3 and pool.take("other") is None
    await host.end(first.id)


async def test_one_that_is_taken_is_given_to_nobody_else(pool: Pool, host: Host) -> None:
    pool.want("k", host.make)
    await until(pool, "k", 2)
    taken = [pool.take("k") for _ in range(3)]
    assert taken[2] is None and taken[0] is not None and taken[1] is not None
    assert taken[0].id != taken[1].id
    await pool.close()
    # What was given out is not the pool's to end.
    assert set(host.alive) == {taken[0].id, taken[1].id}
    host.alive.clear()


async def test_none_is_made_while_guests_are_started(pool: Pool, host: Host) -> None:
    with pool.starting():
        pool.want("k", host.make)
        with pool.starting():
            await asyncio.sleep(0.06)
        await asyncio.sleep(0.06)
        assert host.made == 0
    await until(pool, "k", 2)


async def test_all_together_stay_within_their_memory(host: Host) -> None:
    pool = Pool(PoolLimits(2, 3 * COST), host.end, lambda: "")
    pool.open()
    pool.want("a", host.make)
    await until(pool, "a", 2)
    pool.want("b", host.make)
    await until(pool, "b", 1)
    await asyncio.sleep(0.05)
    assert len(pool.all()) == 3
    # Room goes to what was used last.
    assert pool.take("a") is not None
    await until(pool, "a", 2)
    await pool.close()


async def test_the_old_and_the_dead_are_not_given_out_but_ended(pool: Pool, host: Host) -> None:
    pool.want("k", host.make)
    await until(pool, "k", 2)
    for name in list(host.alive):
        host.alive[name] = "dead"
    assert pool.take("k") is None
    async with asyncio.timeout(5):
        while set(host.alive) & {"s1", "s2"}:
            await asyncio.sleep(0.005)
    await until(pool, "k", 2)
    assert pool.take("k") is not None
    host.alive = {name: "" for name in host.alive if name in {s.id for _, s in pool.all()}}


async def test_they_are_given_back_when_memory_is_short(
    pool: Pool, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_RELIEF", 0.1)
    pool.want("k", host.make)
    await until(pool, "k", 2)
    host.short = "no more"
    async with asyncio.timeout(5):
        while host.alive:
            await asyncio.sleep(0.005)
    made = host.made
    await asyncio.sleep(0.15)
    assert host.made == made
    host.short = ""
    await until(pool, "k", 2)


async def test_what_cannot_be_made_is_not_tried_at_once_again(
    pool: Pool, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.fails = True
    pool.want("k", host.make)
    await asyncio.sleep(0.1)
    assert caplog.text.count("no such thing") == 1
    host.fails = False
    pool.want("other", host.make)
    await until(pool, "other", 2)
    assert pool.ready("k") == []


async def test_a_host_that_has_no_process_left_does_not_end_the_keeping(
    pool: Pool, host: Host
) -> None:
    async def no_fork() -> Spare | None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    pool.want("k", no_fork)
    await asyncio.sleep(0.1)
    pool.want("other", host.make)
    await until(pool, "other", 2)


async def test_without_a_template_none_is_wanted(pool: Pool, host: Host) -> None:
    host.template = False
    pool.want("k", host.make)
    await asyncio.sleep(0.05)
    host.template = True
    pool.look()
    await asyncio.sleep(0.05)
    assert host.made == 0
    pool.want("k", host.make)
    await until(pool, "k", 2)


async def test_closing_ends_also_the_one_that_is_being_made(host: Host) -> None:
    pool = Pool(PoolLimits(2, 10 * COST), host.end, lambda: "")
    pool.open()
    pool.want("k", host.make)
    await until(pool, "k", 2)
    host.may_make.clear()
    taken = pool.take("k")
    assert taken is not None
    async with asyncio.timeout(5):
        while not host.making:
            await asyncio.sleep(0.005)
    await pool.close()
    assert set(host.alive) == {taken.id} and pool.all() == []


async def test_closing_while_one_is_ended_waits_for_it(host: Host) -> None:
    pool = Pool(PoolLimits(1, 10 * COST), host.end, lambda: "")
    pool.open()
    pool.want("k", host.make)
    await until(pool, "k", 1)
    host.alive["s1"] = "old"
    pool.look()
    await asyncio.sleep(0)
    await pool.close()
    assert host.alive == {}


async def test_no_pool(host: Host) -> None:
    pool = Pool(PoolLimits(0, 10 * COST), host.end, lambda: "")
    pool.open()
    pool.want("k", host.make)
    await asyncio.sleep(0.05)
    assert host.made == 0 and pool.take("k") is None
    await pool.close()


def test_memory_is_short_by_pressure_or_by_what_is_left(tmp_path: Path) -> None:
    pressure, meminfo = tmp_path / "pressure", tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\n")
    assert memory_short(pressure, meminfo) == ""
    pressure.write_text("some avg10=0.00 avg60=50.00 avg300=0.00 total=1\nfull avg10=99.00\n")
    assert memory_short(pressure, meminfo) == ""
    pressure.write_text("some avg10=31.50 avg60=0.00 avg300=0.00 total=1\n")
    assert "31.50 %" in memory_short(pressure, meminfo)
    pressure.unlink()
    meminfo.write_text("MemTotal: 16000000 kB\nMemAvailable: 900000 kB\n")
    assert "available" in memory_short(pressure, meminfo)
