"""What happened, in order: a bounded history (kept in the store) and live subscribers.

An event is a plain object in the shape of the Docker Engine API's (``Type``, ``Action``, ``Actor``), since that is what
it means; the API adds the old duplicate fields. A subscriber that stops reading loses the oldest events, never memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from hybrid.engine.store import Store
from hybrid.errors import HybridError

log = logging.getLogger(__name__)
KEPT = 1024
QUEUE = 4096


@dataclass(frozen=True)
class Event:
    kind: str  # container, image, network, volume, machine, daemon
    action: str
    subject: str  # id
    attributes: dict[str, str] = field(default_factory=dict)
    time_ns: int = 0


class Events:
    """Publishes, remembers and replays events."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._history: deque[Event] = deque(maxlen=KEPT)
        for body in store.events()[-KEPT:]:
            self._history.append(Event(**json.loads(body)))
        self._subscribers: set[asyncio.Queue[Event]] = set()
        self._last = 0

    def publish(
        self, kind: str, action: str, subject: str, attributes: dict[str, str] | None = None
    ) -> None:
        self._last = max(time.time_ns(), self._last + 1)
        event = Event(kind, action, subject, dict(attributes or {}), self._last)
        self._history.append(event)
        try:
            self._store.add_event(event.time_ns, json.dumps(asdict(event)), KEPT)
        except HybridError as error:
            # What it tells of has happened; a full disk must not stop what follows from it.
            log.error("an event is not kept: %s", error)
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    @contextmanager
    def _subscription(self) -> Iterator[asyncio.Queue[Event]]:
        queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE)
        self._subscribers.add(queue)
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    async def stream(self, since_ns: int | None, until_ns: int | None) -> AsyncIterator[Event]:
        """Past events from ``since_ns`` on (None: none), then new ones, ending at ``until_ns`` (None: never)."""
        with self._subscription() as queue:
            past = list(self._history) if since_ns is not None else []
            for event in past:
                if event.time_ns >= (since_ns or 0) and (
                    until_ns is None or event.time_ns <= until_ns
                ):
                    yield event
            seen = past[-1].time_ns if past else 0
            while True:
                left = None if until_ns is None else (until_ns - time.time_ns()) / 1e9
                if left is not None and left <= 0:
                    return
                try:
                    event = await asyncio.wait_for(queue.get(), left)
                except TimeoutError:
                    return
                if event.time_ns > seen:
                    yield event
