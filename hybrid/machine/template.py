"""Templates: frozen guests that new ones are cloned from. What they are keyed by, which are there, and which are used.

A template is one guest's memory and its device state, taken when its agent was ready and before it was given an
identity, a secret, a device of a container's or a network. Both are sealed files in memory (``machine.memory``): they
go with the daemon that holds them, and nothing half-made is ever in the table. Making one is the provider's.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.errors import HybridError, NotFound, Unavailable
from hybrid.machine import memory
from hybrid.machine.design import HostFacts
from hybrid.machine.provider import MachineRequest

log = logging.getLogger(__name__)
# The name of a template's own guest begins so: what bears it outlives no daemon.
BUILDING = "template"
_KEY_LENGTH = 12
_RETRY = 300.0  # seconds until a template whose making failed is tried again


@dataclass(frozen=True)
class Limits:
    """What the daemon's configuration says. ``max_age`` is in seconds."""

    enabled: bool = True
    max_age: float = 86_400.0
    max_count: int = 6


@dataclass
class Template:
    """One frozen guest. ``key`` names all that it depends on."""

    key: str
    profile: str
    size: int  # bytes of guest memory
    cpus: int
    memory: int  # descriptor
    state: int  # descriptor
    digest: str  # of the device state
    made: float = field(default_factory=time.time)
    took: float = 0.0  # seconds that its making took
    clones: int = 0
    users: int = 0  # clones that are being made of it now
    dropped: bool = False

    @property
    def age(self) -> float:
        return max(0.0, time.time() - self.made)

    def is_old(self, max_age: float) -> bool:
        return self.age > max_age

    @property
    def used(self) -> int:
        """Bytes of the host's memory."""
        return memory.used(self.memory) + memory.used(self.state)

    def problem(self, max_age: float) -> str:
        """Why it must not be used; empty if it may be."""
        if self.is_old(max_age):
            return f"it is {self.age:.0f} s old"
        if not (memory.is_sealed(self.memory) and memory.is_sealed(self.state)):
            return "its memory is not sealed"
        if os.fstat(self.memory).st_size != self.size:
            return "its memory has another size than the guest"
        if memory.digest(self.state) != self.digest:
            return "its device state does not have the checksum that was noted"
        return ""

    def close(self) -> None:
        os.close(self.memory)
        os.close(self.state)


Build = Callable[[], Awaitable[Template]]


def key_of(request: MachineRequest, facts: HostFacts, emulator: Iterable[str]) -> str:
    """Names everything that a template depends on: files by content or identity, shape, processor and QEMU.

    ``emulator`` are words that change with QEMU and libvirt.
    """
    assert request.boot is not None
    boot = request.boot
    shape = request.profile.model_dump_json()
    words = [
        *(_identity(path) for path in (boot.kernel, boot.initrd, boot.root)),
        boot.command_line,
        shape,
        str(request.memory),
        str(request.cpus),
        repr(facts),
        *emulator,
    ]
    joined = "\0".join(words).encode()
    return hashlib.sha256(joined).hexdigest()[:_KEY_LENGTH]


def _identity(path: Path) -> str:
    """Built guest images are never changed in place, but replaced."""
    status = path.stat()
    return f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


class Templates:
    """The templates of one provider."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._made: dict[str, Template] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._asked: set[str] = set()
        self._failed: dict[str, tuple[float, str]] = {}
        self.unavailable = "" if limits.enabled else "switched off in daemon.yaml (clones: false)"
        """Why guests are booted, not cloned; empty if they are cloned."""

    def all(self) -> list[Template]:
        return sorted(self._made.values(), key=lambda template: template.made)

    async def take(self, key: str, build: Build, *, common: bool) -> Template | None:
        """The template of that key, to be given back with ``release``; None: boot.

        It is made if there is none; of an uncommon shape at the second time only, for its memory would be held in vain.
        All that want one while it is made wait for it.
        """
        if self.unavailable:
            return None
        async with self._locks.setdefault(key, asyncio.Lock()):
            template = await self._usable(key)
            if template is None:
                if self._failed.get(key, (0.0, ""))[0] > time.monotonic():
                    return None
                if not common and key not in self._asked:
                    self._asked.add(key)
                    return None
                template = await self._make(key, build)
            if template is not None:
                template.users += 1
            return template

    async def borrow(self, key: str) -> Template | None:
        """The template of that key if there is one, as ``take`` gives it; none is made."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            template = await self._usable(key)
            if template is not None:
                template.users += 1
            return template

    def release(self, template: Template) -> None:
        template.users -= 1
        if template.dropped and not template.users:
            template.close()

    def discard(self, template: Template, reason: str) -> None:
        """It is never used again; clones of it run on."""
        if self._made.get(template.key) is not template:
            return
        log.warning("template %s is discarded: %s", template.key, reason)
        self._drop(template)

    def failed(self, key: str, error: Exception) -> None:
        """No template of that key for a while: its guest does not come up, or cannot be frozen."""
        log.warning("template %s cannot be made, guests are booted: %s", key, error)
        self._failed[key] = time.monotonic() + _RETRY, str(error)

    def why_not(self, key: str) -> str:
        """Why a guest with that key was booted just now."""
        if self.unavailable:
            return self.unavailable
        _, failure = self._failed.get(key, (0.0, ""))
        return failure or "the first of its size: a template is made for the next"

    def remove(self, reference: str) -> Template:
        """Drops the template whose key begins with ``reference``; NotFound if there is no such one."""
        found = [one for key, one in self._made.items() if reference and key.startswith(reference)]
        if len(found) != 1:
            raise NotFound(f"No such template: {reference}")
        self._drop(found[0])
        return found[0]

    def close(self) -> None:
        for template in self.all():
            self._drop(template)

    async def _usable(self, key: str) -> Template | None:
        template = self._made.get(key)
        if template is None:
            return None
        problem = await asyncio.to_thread(template.problem, self.limits.max_age)
        if problem:
            self.discard(template, problem)
            return None
        return template

    async def _make(self, key: str, build: Build) -> Template | None:
        started = time.monotonic()
        try:
            template = await build()
        except (HybridError, OSError) as error:
            self.failed(key, error)
            return None
        self._failed.pop(key, None)
        template.took = time.monotonic() - started
        self._made[key] = template
        log.info("template %s made in %.1f s", key, template.took)
        while len(self._made) > self.limits.max_count:
            self._drop(self.all()[0])
        return template

    def _drop(self, template: Template) -> None:
        self._made.pop(template.key, None)
        template.dropped = True
        if not template.users:
            template.close()


def check_digest(state: int) -> str:
    """The checksum of a device state that was just taken; Unavailable if there is none."""
    if os.fstat(state).st_size == 0:
        raise Unavailable("QEMU saved no device state")
    return memory.digest(state)
