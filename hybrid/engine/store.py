"""What must survive the daemon: one SQLite file in WAL mode, holding one JSON document per thing.

The documents are dataclasses (``hybrid.wire.codec`` turns them into JSON and validates them on the way back), keyed by
kind and id. A ``kill -9`` loses nothing that ``put`` returned from; the calls are single small statements (tens of
microseconds), so they are made straight from the event loop.
"""

from __future__ import annotations

import json
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hybrid.errors import Internal, InvalidInput
from hybrid.wire import codec

T = TypeVar("T")


def _first_schema(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE document (kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL,"
        " PRIMARY KEY (kind, id)) WITHOUT ROWID"
    )
    connection.execute(
        "CREATE TABLE event (number INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, body TEXT NOT NULL)"
    )


def _machine_places(connection: sqlite3.Connection) -> None:
    """Machines keep all of how a box is reached, in ``remote``."""
    connection.execute(
        "UPDATE document SET body = json_remove(body, '$.address', '$.labels') WHERE kind = 'machine'"
    )


# One function per schema version, applied in order; never changed after a release, only appended to.
MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = [_first_schema, _machine_places]


class Store:
    """Documents by kind and id, and the tail of the event log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # For who ends without close(), as a start that fails does: Python 3.13 warns of it.
            weakref.finalize(self, self._connection.close)
            path.chmod(0o600)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise Internal(f"cannot open the state database {path}: {error}") from error

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise Internal(
                f"{self._path} was written by a newer hybrid (schema {version}, this one knows"
                f" {len(MIGRATIONS)}): upgrade hybrid"
            )
        for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
            with self.transaction():
                migration(self._connection)
                self._connection.execute(f"PRAGMA user_version = {number}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside happen, or none."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def put(self, kind: str, key: str, document: object) -> None:
        """InvalidInput for a document that could not be read again: it would keep the next daemon from starting."""
        body = json.dumps(document, separators=(",", ":"), default=codec.plain)
        codec.decode(type(document), json.loads(body))
        with self._writing():
            self._connection.execute(
                "INSERT INTO document VALUES (?, ?, ?)"
                " ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
                (kind, key, body),
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise Internal(f"cannot write to the state database {self._path}: {error}") from error

    def delete(self, kind: str, key: str) -> None:
        with self._writing():
            self._connection.execute("DELETE FROM document WHERE kind = ? AND id = ?", (kind, key))

    def all(self, kind: str, cls: type[T]) -> list[T]:
        """Every document of that kind; Internal names one that cannot be read."""
        found = []
        for key, body in self._connection.execute(
            "SELECT id, body FROM document WHERE kind = ? ORDER BY id", (kind,)
        ):
            try:
                found.append(codec.decode(cls, json.loads(body)))
            except (InvalidInput, ValueError) as error:
                raise Internal(f"{self._path}: {kind} {key} is damaged: {error}") from error
        return found

    def add_event(self, time_ns: int, body: str, keep: int) -> None:
        """Appends to the event log and drops all but the newest ``keep``."""
        with self._writing():
            cursor = self._connection.execute(
                "INSERT INTO event (time_ns, body) VALUES (?, ?)", (time_ns, body)
            )
            if cursor.lastrowid and cursor.lastrowid % 64 == 0:
                self._connection.execute(
                    "DELETE FROM event WHERE number <= ?", (cursor.lastrowid - keep,)
                )

    def events(self) -> list[str]:
        """The kept events, oldest first."""
        return [
            body for (body,) in self._connection.execute("SELECT body FROM event ORDER BY number")
        ]

    def close(self) -> None:
        self._connection.close()
