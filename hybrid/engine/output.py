"""A container's output on disk, and everyone who reads it.

The log file of a container holds the journal records (``hybrid.wire.journal``) of all its runs, in order. The daemon
is a pump: agent → file, acknowledged once written. ``logs``, ``logs -f`` and ``attach`` all read that file, each at its
own pace: a reader that stops costs nobody memory or speed, and what was written before a ``kill -9`` is never lost
or doubled, because the position in the file *is* the position in the agent's journal:

    journal offset = file size - base        (``base``: where in the file this run's journal has its byte 0)

A record that tells of dropped output is not part of the journal's numbering, so it moves ``base``.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid.engine.store import Store
from hybrid.errors import InvalidInput, Unavailable
from hybrid.link.client import AgentClient
from hybrid.wire import journal
from hybrid.wire.messages import AckOutput, ReadOutput

CHUNK = 64 << 10
CHECKPOINT = 4 << 20
READ = 256 << 10
FOLLOW_RESTARTS = -1
# What a marker may say, and how far they may move the numbering in all: a guest may lie.
_COUNT = re.compile(rb"[0-9]{1,15}")
_BASE_MAX = 1 << 62


@dataclass
class LogPosition:
    """Where the current run's journal begins, and a size up to which the file holds whole records."""

    base: int = 0
    checkpoint: int = 0


class Log:
    """The log file of one container: one writer, any number of readers in this process."""

    def __init__(self, path: Path, store: Store, container: str) -> None:
        self.path = path
        self._store = store
        self._container = container
        found = {key: position for key, position in _positions(store)}.get(container)
        self._position = found or LogPosition()
        self._size = 0
        self._file: int | None = None
        self._runs = 0
        self._ended = True  # this run's output is complete
        self._over = True  # and no restart policy will add to it
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        return (
            f"<Log {self._container[:12]} {self._size} bytes, {'ended' if self._ended else 'open'}>"
        )

    # --- writing ---

    def begin(self, *, resume: bool) -> int:
        """Opens for writing; the journal offset to read from. ``resume``: the same run as before goes on."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = self._whole_records()
        os.ftruncate(self._file, self._size)
        if not resume:
            self._position = LogPosition(self._size, self._size)
            self._save()
        self._runs += 1
        self._ended = self._over = False
        return self._size - self._position.base

    def _whole_records(self) -> int:
        """The file's size up to its last whole record (a kill can tear a write)."""
        assert self._file is not None
        size = os.fstat(self._file).st_size
        position = min(self._position.checkpoint, size)
        while position + journal.HEADER.size <= size:
            header = os.pread(self._file, journal.HEADER.size, position)
            _, _, length = journal.HEADER.unpack(header)
            if position + journal.HEADER.size + length > size:
                break
            position += journal.HEADER.size + length
        return position

    @property
    def offset(self) -> int:
        return self._size - self._position.base

    def append(self, records: list[journal.Record]) -> None:
        """Whole records, in the order of the journal. OSError if the disk is full: then nothing was added."""
        assert self._file is not None
        skipped = sum(_skip(record) for record in records if record.stream == journal.DROPPED)
        if abs(self._position.base - skipped) > _BASE_MAX:
            raise InvalidInput("journal: more was dropped than anything can have written")
        data = b"".join(
            journal.pack(record.time_ns, record.stream, record.data) for record in records
        )
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._size + written)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)
        self._position.base -= skipped
        if skipped or self._size - self._position.checkpoint > CHECKPOINT:
            self._position.checkpoint = self._size
            self._save()
        self._wake()

    def end(self, *, over: bool = True) -> None:
        """No more output in this run. ``over``: nor in a next one that a restart policy begins."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._ended = True
        self._over = over
        self._wake()

    def fail(self) -> None:
        """A run that was waited for did not come to output anything."""
        if self._ended:
            self._runs += 1
        self.end()

    def forget(self) -> None:
        self.end()
        self._store.delete("log", self._container)

    def _save(self) -> None:
        self._store.put(
            "log",
            self._container,
            _Saved(self._container, self._position.base, self._position.checkpoint),
        )

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # --- reading ---

    def place(self) -> int:
        """The end of the file, as a place to follow from."""
        if self._file is not None:
            return self._size
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def tail(self, lines: int, streams: set[int]) -> tuple[int, int]:
        """Where the last ``lines`` lines of these streams begin: a place in the file, and how many lines of the first
        record there are not wanted. Reads forward: the format has no way back, and memory must not grow with the log.
        """
        if lines <= 0:
            return self.place(), 0
        starts: deque[tuple[int, int]] = deque(maxlen=lines)
        place, inside = 0, dict.fromkeys(streams, False)
        parser = journal.Parser()
        for data in self._read_from(0):
            for record in parser.feed(data):
                if record.stream in streams:
                    first = 1 if inside[record.stream] else 0
                    count = record.data.count(b"\n") + (not record.data.endswith(b"\n"))
                    starts.extend((place, number) for number in range(first, count))
                    inside[record.stream] = not record.data.endswith(b"\n")
                place += journal.HEADER.size + len(record.data)
        return starts[0] if starts else (place, 0)

    def waiting_follow(self) -> int:
        """For ``records``: follow the present run, or the next one if none is going on."""
        return self._runs + (1 if self._ended else 0)

    async def records(
        self, place: int = 0, *, follow: int | None = None
    ) -> AsyncIterator[list[journal.Record]]:
        """Batches of records from that place in the file on: what is there (None), to the end of the run of that
        number (``waiting_follow``), or over all restarts (``FOLLOW_RESTARTS``)."""
        parser = journal.Parser()
        while True:
            news, over = self._news, follow is None or self._is_over(follow)
            for data in self._read_from(place):
                place += len(data)
                yield list(parser.feed(data))
                await asyncio.sleep(0)
            if over:
                return
            await news.wait()

    def _is_over(self, run: int) -> bool:
        if run == FOLLOW_RESTARTS:
            return self._over
        return self._runs > run or (self._runs == run and self._ended)

    def _read_from(self, place: int) -> Iterator[bytes]:
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            while True:
                limit = READ if self._file is None else min(READ, self._size - place)
                data = os.pread(file, limit, place) if limit > 0 else b""
                if not data:
                    return
                place += len(data)
                yield data
        finally:
            os.close(file)


@dataclass
class _Saved:
    container: str
    base: int
    checkpoint: int


def _positions(store: Store) -> Iterator[tuple[str, LogPosition]]:
    for saved in store.all("log", _Saved):
        yield saved.container, LogPosition(saved.base, saved.checkpoint)


def _skip(record: journal.Record) -> int:
    """How much further than the record's own length a marker moves the journal offset."""
    if not _COUNT.fullmatch(record.data):
        raise InvalidInput("journal: malformed marker")
    dropped = int(record.data)
    return dropped - journal.HEADER.size - len(record.data)


async def pump(client: AgentClient, container: str, log: Log) -> None:
    """Moves one run's output from the agent into the log until its end.

    ``log.begin`` was called. Raises Unavailable when the link breaks: call again, with a new client, to go on.
    """
    parser = journal.Parser()
    acknowledged = log.offset
    stream = client.open()
    try:
        await client.call(ReadOutput(container, stream.id, acknowledged))
        while data := await stream.read(CHUNK):
            if records := list(parser.feed(data)):
                log.append(records)
            if log.offset - acknowledged >= READ:
                acknowledged = log.offset
                await client.call(AckOutput(container, acknowledged))
        if parser.pending:
            raise Unavailable(f"the output of container {container[:12]} ended inside a record")
    finally:
        await stream.reset()
