"""A pool of clones that stand ready, so that whoever needs a guest does not wait until one is made.

::

    wanted ──make──▶ ready ──take──▶ given out, and never back
                       └── too old, dead, memory short, the daemon's end ──▶ ended

Here is decided which are given out, when more are made and when they go; making and ending is the provider's. One is
made at a time, and only while no guest is being started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.errors import HybridError
from hybrid.machine.evidence import status_fields
from hybrid.units import MIB

log = logging.getLogger(__name__)
_QUIET = 1.0  # seconds without a start before one is made
_LOOK = 5.0  # seconds between looks at age and memory
_RETRY = 300.0  # seconds until a kind whose making failed is tried again
_RELIEF = 60.0  # seconds after memory was short until more are made
_GUESS = 64 * MIB  # what one is taken to need before the first was measured
_STALLED = 10.0  # per cent of the last 10 s in which some process waited for memory
_PRESSURE, _MEMORY = Path("/proc/pressure/memory"), Path("/proc/meminfo")


@dataclass(frozen=True)
class PoolLimits:
    """What the daemon's configuration says: ``size`` of each template's (0: no pool), ``memory`` in bytes for all."""

    size: int = 2
    memory: int = 512 * MIB


@dataclass(frozen=True)
class Spare:
    """A clone that stands ready. ``cost`` is what it takes of the host's memory; ``problem`` says why it must not be
    used, or nothing.
    """

    id: str
    cost: int
    problem: Callable[[], str]
    made: float = field(default_factory=time.time)


Make = Callable[[], Awaitable[Spare | None]]
"""Makes one; None if there is no template any more. Leaves nothing behind when it is cancelled or fails."""


class Pool:
    """The spare clones of one provider, by the key of their template."""

    def __init__(
        self,
        limits: PoolLimits,
        end: Callable[[str], Coroutine[Any, Any, None]],
        short: Callable[[], str] | None = None,
    ) -> None:
        self.limits = limits
        self._end_guest = end
        self._short = short or memory_short
        self._wanted: dict[str, Make] = {}  # the last used last
        self._ready: dict[str, list[Spare]] = {}
        self._costs: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._starts = 0
        self._calm_since = 0.0
        self._calm = asyncio.Event()
        self._calm.set()
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        ready = {key: len(spares) for key, spares in self._ready.items()}
        return f"<Pool {ready} of {self.limits.size} each>"

    def open(self) -> None:
        if self.limits.size:
            self._keeper = asyncio.create_task(self._keep(), name="pool")

    async def close(self) -> None:
        """Ends what stands ready, and what is being made."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        self._wanted.clear()
        await self._end_all()

    def ready(self, key: str) -> list[Spare]:
        return list(self._ready.get(key, ()))

    def all(self) -> list[tuple[str, Spare]]:
        return [(key, spare) for key, spares in self._ready.items() for spare in spares]

    @property
    def memory(self) -> int:
        """Bytes that all take."""
        return sum(spare.cost for _, spare in self.all())

    def want(self, key: str, make: Make) -> None:
        """Guests of this kind are in use: some are to stand ready from now on."""
        self._wanted.pop(key, None)
        self._wanted[key] = make
        self.look()

    def take(self, key: str) -> Spare | None:
        """One that is the caller's from now on; None if none is ready."""
        if make := self._wanted.get(key):
            self.want(key, make)
        # One that must not be used is left to the keeper.
        spares = self._ready.get(key, [])
        found = next((spare for spare in spares if not spare.problem()), None)
        if found is not None:
            spares.remove(found)
        return found

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """While it is held, and a moment longer, no more are made: a start must not wait for the pool."""
        self._starts += 1
        self._calm.clear()
        try:
            yield
        finally:
            self._starts -= 1
            if not self._starts:
                self._calm_since = time.monotonic()
                self._calm.set()

    def look(self) -> None:
        """Something changed that may make one unfit, or room for more."""
        self._changed.set()

    # --- the keeper ---

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._changed.wait()
            self._changed.clear()
            await self._end_unfit()
            while (key := self._lacking()) is not None:
                await self._until_calm()
                if not self._memory_is_short():
                    await self._add(key)
                await self._end_unfit()

    async def _until_calm(self) -> None:
        while True:
            await self._calm.wait()
            left = self._calm_since + _QUIET - time.monotonic()
            if left <= 0 and not self._starts:
                return
            await asyncio.sleep(max(0.0, left))

    def _lacking(self) -> str | None:
        """A kind of which more are to be made, the one that was used last first."""
        room, now = self.limits.memory - self.memory, time.monotonic()
        for key in reversed(self._wanted):
            if (
                len(self._ready.get(key, ())) < self.limits.size
                and self._not_before.get(key, 0.0) <= now
                and self._costs.get(key, _GUESS) <= room
            ):
                return key
        return None

    def _memory_is_short(self) -> bool:
        reason = self._short()
        if reason:
            log.info("no guests stand ready for a while: %s", reason)
            later = time.monotonic() + _RELIEF
            self._not_before = {key: later for key in self._wanted}
        return bool(reason)

    async def _add(self, key: str) -> None:
        try:
            spare = await self._wanted[key]()
        except (HybridError, OSError) as error:  # OSError: no more processes, or files
            log.warning("no guests of template %s stand ready for a while: %s", key, error)
            self._not_before[key] = time.monotonic() + _RETRY
            return
        if spare is None:
            self._wanted.pop(key, None)
            return
        self._costs[key] = spare.cost
        self._ready.setdefault(key, []).append(spare)
        log.debug("clone %s of template %s stands ready", spare.id[:12], key)

    async def _end_unfit(self) -> None:
        if self.all() and self._memory_is_short():
            await self._end_all()
            return
        for key, spare in self.all():
            if problem := spare.problem():
                log.info("clone %s of the pool is ended: %s", spare.id[:12], problem)
                self._ready[key].remove(spare)
                self._end(spare)
        await self._ended()

    async def _end_all(self) -> None:
        spares = [spare for _, spare in self.all()]
        self._ready.clear()
        for spare in spares:
            self._end(spare)
        await self._ended()

    def _end(self, spare: Spare) -> None:
        """A task of its own: the keeper may be cancelled."""
        task = asyncio.create_task(self._end_guest(spare.id), name=f"end of spare {spare.id[:12]}")
        self._ending.add(task)
        task.add_done_callback(self._has_ended)

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s: %s", task.get_name(), error)

    async def _ended(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)


def memory_short(pressure: Path = _PRESSURE, meminfo: Path = _MEMORY) -> str:
    """Why this host has no memory for guests that nobody needs yet; empty if it has."""
    with contextlib.suppress(OSError):  # a kernel without it, or with it switched off
        found = re.search(r"^some avg10=([0-9.]+)", pressure.read_text(), re.MULTILINE)
        if found and float(found[1]) > _STALLED:
            return f"processes waited for memory in {found[1]} % of the last 10 s"
    fields = status_fields(meminfo.read_text())
    total, available = (int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    if available < total // 8:
        return f"{available >> 10} of {total >> 10} MiB are available"
    return ""
