"""A container while the daemon runs: its record, its log, and who waits for what.

``lock`` is held by whoever starts the container, takes its pieces down or removes it. Signals, attaching and waiting do
not take it. ``settled`` is set when nothing of the last run is left on the machine.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hybrid.engine.container import Record
from hybrid.engine.machine import Machine
from hybrid.engine.output import Log
from hybrid.errors import Conflict


@dataclass
class Run:
    """One run of a container in a machine."""

    machine: Machine
    pump: asyncio.Task[None] | None = None
    health: asyncio.Task[None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Container:
    """See the module."""

    def __init__(self, record: Record, log: Log) -> None:
        self.record = record
        self.log = log
        self.lock = asyncio.Lock()
        self.run: Run | None = None
        self.restart_task: asyncio.Task[None] | None = None
        self.restart_delay = 0.0
        self._exit_waiters: list[asyncio.Future[int]] = []
        self._removal_waiters: list[asyncio.Future[int]] = []
        self._running = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Container {self.record.name} {self.record.short_id} {self.record.status}>"

    @property
    def id(self) -> str:
        return self.record.id

    def need_run(self, doing: str) -> Run:
        """The present run; Conflict, saying what cannot be done, if there is none."""
        record = self.record
        if self.run is None or record.status not in ("running", "paused"):
            raise Conflict(f"{doing}container {record.id} is not running")
        return self.run

    # --- waiting ---

    async def running(self) -> Run:
        """The present run, or the next one once its process runs."""
        await self._running.wait()
        assert self.run is not None
        return self.run

    def tell_running(self) -> None:
        self._running.set()

    def next_exit(self) -> asyncio.Future[int]:
        """Resolves to the exit code of the next exit."""
        return _waiter(self._exit_waiters)

    def removal(self) -> asyncio.Future[int]:
        """Resolves to the last exit code when the container is removed."""
        return _waiter(self._removal_waiters)

    def tell_exit(self) -> None:
        self._running.clear()
        _resolve(self._exit_waiters, self.record.exit_code)

    def tell_removal(self) -> None:
        _resolve(self._exit_waiters, self.record.exit_code)
        _resolve(self._removal_waiters, self.record.exit_code)


def _waiter(waiters: list[asyncio.Future[int]]) -> asyncio.Future[int]:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiters.append(future)
    future.add_done_callback(lambda done: waiters.remove(done) if done in waiters else None)
    return future


def _resolve(waiters: list[asyncio.Future[int]], code: int) -> None:
    for future in list(waiters):
        if not future.done():
            future.set_result(code)
