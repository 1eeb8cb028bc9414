"""What machines are made of: the providers and what they need, and the size of a guest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hybrid.errors import Unsupported
from hybrid.machine.provider import Boot, Lasting, Provider
from hybrid.machine.shares import ShareServer
from hybrid.units import MIB

# What a guest's kernel, agent and page tables need beside its container's limit.
GUEST_OVERHEAD = 192 * MIB


@dataclass(frozen=True)
class GuestSize:
    """What a guest of its own must have room for; 0: the profile's."""

    memory: int = 0
    cpus: int = 0
    profile: str = "default"


class Reach(Provider, Lasting, Protocol):
    """The provider of boxes that run already."""


@dataclass(frozen=True)
class Backends:
    """What the machines are made of; the daemon's wiring fills it in."""

    guest: Provider | None
    host: Provider | None
    remote: Reach | None
    shares: ShareServer
    boot: Callable[[], Boot]
    probe: Path  # the program that tries walls, for machines that have none

    def of(self, kind: str) -> Provider:
        provider = {"guest": self.guest, "host": self.host, "remote": self.remote}[kind]
        if provider is None:
            raise Unsupported(f"this daemon has no provider for {kind} machines: see 'hybrid info'")
        return provider

    def providers(self) -> list[Provider]:
        return [one for one in (self.guest, self.host, self.remote) if one is not None]
