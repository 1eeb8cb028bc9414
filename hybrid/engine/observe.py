"""What containers do: their processes, and their figures."""

from __future__ import annotations

from hybrid.engine.containers import Containers
from hybrid.engine.live import Container
from hybrid.errors import Conflict
from hybrid.wire.messages import ContainerStats, ProcessTable, Stats, Top


class Observation:
    """Asks the agents."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    async def top(self, reference: str, arguments: str) -> ProcessTable:
        container = self._containers.find(reference)
        run = container.need_run("")
        return await run.machine.call(Top(container.id, arguments or "-ef"))

    async def stats(self, container: Container) -> ContainerStats | None:
        """The container's figures; None when it does not run."""
        run = container.run
        if run is None or not container.record.live:
            return None
        try:
            return await run.machine.call(Stats(container.id))
        except Conflict:
            return None
