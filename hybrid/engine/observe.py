"""What containers do and are: their processes, their figures, and the evidence of their walls."""

from __future__ import annotations

import os
from typing import Any

from hybrid.engine.containers import Containers
from hybrid.engine.live import Container
from hybrid.errors import Conflict
from hybrid.paths import Paths
from hybrid.wire import codec
from hybrid.wire.messages import ContainerStats, Evidence, Probe, ProcessTable, Stats, Top


class Observation:
    """Asks the agents."""

    def __init__(self, paths: Paths, containers: Containers) -> None:
        self._paths = paths
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

    async def evidence(self, reference: str, addresses: list[str]) -> dict[str, Any]:
        """What both kernels and the daemon know of the container's walls; judged elsewhere.

        ``addresses`` (host:port) must not be reachable from inside.
        """
        container = self._containers.find(reference)
        run = container.need_run("cannot verify: ")
        machine = run.machine
        inside = await machine.call(Evidence(container.id))
        probes = await machine.call(Probe(container.id, addresses))
        return {
            "container": container.id,
            "name": container.record.name,
            "isolation": container.record.spec.isolation or "vm",
            "machine": codec.encode(machine.record),
            "facts": codec.encode(machine.facts),
            "host": self._host(),
            "provider": await machine.provider.evidence(machine.id),
            "inside": codec.encode(inside),
            "probes": codec.encode(probes.results),
            "asked": {
                "privileged": container.record.spec.privileged,
                "user_namespace": bool(container.record.id_base),
                "id_base": container.record.id_base,
                "capabilities": container.record.process.get("capabilities", {}),
                "no_new_privileges": container.record.process.get("noNewPrivileges", False),
            },
        }

    def _host(self) -> dict[str, Any]:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot_id = file.read().strip()
        return {"kernel": os.uname().release, "boot_id": boot_id, "instance": self._paths.instance}
