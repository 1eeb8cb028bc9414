"""One container, as the agent holds it: its request, its processes, and what of it is kept open."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hybrid.agent import cgroups
from hybrid.agent.process import Process
from hybrid.agent.worker import Place
from hybrid.errors import Conflict, InvalidInput, NotFound
from hybrid.wire.messages import CreateContainer

_BEGIN_WAIT = 10.0


class Container:
    """One container: what it was made from and what it holds."""

    def __init__(self, request: CreateContainer, directory: Path, stack: AsyncExitStack) -> None:
        self.request = request
        self.directory = directory
        self.stack = stack
        self.init = Process(request.container, "", terminal=request.terminal, stdin=request.stdin)
        self.execs: dict[str, Process] = {}
        self.config: dict[str, Any] = {}
        self.group = cgroups.Group({})
        self.namespaces: dict[str, int] = {}  # kind to a held descriptor
        self.root = -1  # its root directory, as it sees it
        self.upper = ""  # what it writes to its root goes below this directory
        self._loader: tuple[int, int] | None = (
            None  # crun's program file, until init executes its own
        )
        self.oom_kills = 0

    def __repr__(self) -> str:
        return f"<Container {self.request.container[:12]} {self.init!r} execs={len(self.execs)}>"

    @property
    def place(self) -> Place:
        return Place(self.root, self.namespaces["user"] if self.request.id_map else -1)

    def machine_id(self, number: int) -> int:
        """The machine's id for one of the container's."""
        id_map = self.request.id_map
        if id_map is None:
            return number
        if number >= id_map.size:
            raise InvalidInput(f"id {number} is beyond the container's range of {id_map.size} ids")
        return id_map.base + number

    def joinable(self, kind: str) -> str:
        """The path of one of its namespaces for another to join: a descriptor of ours, never a pid's."""
        if self.init.status == "stopped":
            name = self.request.container
            raise Conflict(
                f"cannot join the {kind} namespace of container {name}: it is not running"
            )
        held = self.namespaces["net" if kind == "network" else kind]
        return f"/proc/{os.getpid()}/fd/{held}"

    def loaded(self, pid: int) -> None:
        """Init is there, still running crun's code."""
        self.init.pid = pid
        self._loader = _program(pid)

    async def begun(self) -> None:
        """Returns when init executes its own program (or has ended).

        Until then its filter is not set, so evidence would be wrong; and older crun (1.8) cannot
        join it, for its memory still belongs to the machine's user namespace.
        """
        deadline = time.monotonic() + _BEGIN_WAIT
        while self._loader is not None:
            if self.init.status == "created":
                raise Conflict(f"container {self.request.container} is not running")
            if _program(self.init.pid) != self._loader or time.monotonic() > deadline:
                self._loader = None
            else:
                await asyncio.sleep(0.002)

    def process(self, exec_id: str) -> Process:
        """Its init (""), or one of its execs."""
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise NotFound(f"no such exec: {exec_id}")
        return self.execs[exec_id]


def _program(pid: int) -> tuple[int, int] | None:
    """What file the process executes; None if it has ended."""
    try:
        found = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return found.st_dev, found.st_ino
