"""What the parts share: the options, the daemons under test and the peers, each started when first asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from benchmarks import peers
from benchmarks.floors import Floors
from benchmarks.paired import Failed
from benchmarks.peers import Peer
from benchmarks.rig import Rig, rig
from hybrid.guest.image import current
from tests.built import BUILT

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """``runs`` 0: as many as each part finds enough. ``guests`` and ``minutes`` bound how many guests run at once."""

    runs: int = 0
    guests: int = 100
    minutes: float = 6.0


class Bench:
    """Everything started is stopped by ``stack``."""

    def __init__(self, options: Options, stack: contextlib.ExitStack) -> None:
        self.options = options
        self._stack = stack
        self._peers: dict[str, Peer | Failed] = {}

    def runs(self, usual: int) -> int:
        return self.options.runs or usual

    @cached_property
    def docker(self) -> str:
        """The docker client, the same on both sides."""
        return peers.program("docker")

    @cached_property
    def hybrid(self) -> Rig:
        """As configured by default."""
        return self._stack.enter_context(rig(self.docker, {}))

    @cached_property
    def unpooled(self) -> Rig:
        """With no guests that stand ready."""
        return self._stack.enter_context(rig(self.docker, {"pool_size": 0}))

    @cached_property
    def booting(self) -> Rig:
        """With guests that boot."""
        return self._stack.enter_context(rig(self.docker, {"clones": False}))

    @cached_property
    def floors(self) -> Floors:
        return Floors(self.hybrid.guest_command(), current(BUILT))

    def dockerd(self) -> Peer:
        return self._peer("dockerd", lambda: self._stack.enter_context(peers.dockerd(self.docker)))

    def gvisor(self) -> Peer:
        return self._peer("gvisor", lambda: peers.gvisor(self.dockerd()))

    def podman(self) -> Peer:
        return self._peer("podman", lambda: self._stack.enter_context(peers.podman()))

    def _peer(self, name: str, start: Callable[[], Peer]) -> Peer:
        """Started once; one that cannot run here says the same each time."""
        if name not in self._peers:
            try:
                self._peers[name] = start()
            except Failed as failed:
                self._peers[name] = failed
        found = self._peers[name]
        if isinstance(found, Failed):
            raise found
        return found
