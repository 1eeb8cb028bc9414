"""Named volumes: directories of this host that outlive containers. The one driver is ``local``."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.engine import names
from hybrid.engine.container import Record
from hybrid.engine.events import Events
from hybrid.engine.store import Store
from hybrid.errors import Conflict, Internal, InvalidInput, NotFound, Unsupported
from hybrid.paths import Paths

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_REMOVED = ".removed-"
ANONYMOUS = "com.docker.volume.anonymous"


@dataclass
class VolumeRecord:
    name: str
    created_ns: int
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)

    @property
    def anonymous(self) -> bool:
        return ANONYMOUS in self.labels


class Volumes:
    """All volumes. ``containers`` gives every container's record: a volume that one of them names is in use."""

    def __init__(
        self, paths: Paths, store: Store, events: Events, containers: Callable[[], Iterable[Record]]
    ) -> None:
        self._paths = paths
        self._store = store
        self._events = events
        self._containers = containers
        self._records = {record.name: record for record in store.all("volume", VolumeRecord)}

    def all(self) -> list[VolumeRecord]:
        return sorted(self._records.values(), key=lambda record: record.name)

    def find(self, name: str) -> VolumeRecord:
        if name not in self._records:
            raise NotFound(f"get {name}: no such volume")
        return self._records[name]

    def directory(self, name: str) -> Path:
        """Where the volume's files are on this host."""
        return self._paths.volume(name) / "_data"

    def create(
        self,
        name: str = "",
        driver: str = "local",
        labels: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
        *,
        anonymous: bool = False,
    ) -> VolumeRecord:
        """The volume of that name, made if it is not there; "" makes an ``anonymous`` one."""
        labels, options = dict(labels or {}), dict(options or {})
        if driver not in ("", "local"):
            raise NotFound(
                f"error looking up volume plugin {driver}: this build knows the driver 'local'"
            )
        if options:
            raise Unsupported(
                f"volume option {sorted(options)[0]!r} is not supported by the driver 'local'"
            )
        if anonymous or not name:
            name = name or names.new_id()
            labels[ANONYMOUS] = ""
        self.check(name)
        if name in self._records:
            return self._records[name]
        record = VolumeRecord(name, time.time_ns(), labels, options)
        try:
            self._paths.volume(name).parent.mkdir(parents=True, exist_ok=True, mode=0o711)
            self._paths.volume(name).mkdir(exist_ok=True, mode=0o711)
            self.directory(name).mkdir(exist_ok=True, mode=0o755)
        except OSError as error:
            raise Internal(f"cannot make the volume {name}: {error}") from error
        self._records[name] = record
        self._store.put("volume", name, record)
        self._events.publish("volume", "create", name, {"driver": "local"})
        return record

    def check(self, name: str) -> None:
        """InvalidInput if no volume can have that name."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f'create {name}: "{name}" includes invalid characters for a local volume name, only'
                ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
            )

    def users(self, name: str) -> list[Record]:
        return [
            container
            for container in self._containers()
            if any(
                mount.kind == "volume" and mount.source == name for mount in container.spec.mounts
            )
        ]

    async def remove(self, name: str, *, force: bool = False, user: str = "") -> None:
        """Removes it with all that is in it. ``user``: the container that is being removed with it."""
        if name not in self._records:
            if force:
                return
            raise NotFound(f"get {name}: no such volume")
        if users := [one for one in self.users(name) if one.id != user]:
            ids = ", ".join(container.id for container in users)
            raise Conflict(f"remove {name}: volume is in use - [{ids}]")
        del self._records[name]
        # First out of the way under a name that says so: what is interrupted here, ``reconcile`` ends.
        removed = self._paths.volume(name).with_name(_REMOVED + name)
        with contextlib.suppress(FileNotFoundError):
            self._paths.volume(name).rename(removed)
        self._store.delete("volume", name)
        await asyncio.to_thread(shutil.rmtree, removed, ignore_errors=True)
        self._events.publish("volume", "destroy", name, {"driver": "local"})

    async def reconcile(self) -> None:
        """Ends what the death of a daemon interrupted: removals, and the making of volumes that are still empty."""
        top = self._paths.root / "volumes"
        for entry in sorted(top.iterdir()) if top.is_dir() else []:
            if entry.name.startswith(_REMOVED):
                name = entry.name.removeprefix(_REMOVED)
                if self._records.pop(name, None) is not None:
                    self._store.delete("volume", name)
                await asyncio.to_thread(shutil.rmtree, entry, ignore_errors=True)
            elif entry.name not in self._records:
                # Never more than this: a directory with files in it may be all that is left of a lost database.
                with contextlib.suppress(OSError):
                    (entry / "_data").rmdir()
                with contextlib.suppress(OSError):
                    entry.rmdir()

    async def prune(self, *, everything: bool) -> list[str]:
        """Removes what no container names: anonymous ones, or all; their names."""
        gone = [
            record.name
            for record in self.all()
            if (everything or record.anonymous) and not self.users(record.name)
        ]
        for name in gone:
            await self.remove(name)
        return gone
