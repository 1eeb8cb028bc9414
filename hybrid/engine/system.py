"""The daemon and this host, as ``info``, ``version`` and ``system df`` show them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid.machine.provider import Provider
from hybrid.paths import Paths

if TYPE_CHECKING:
    from hybrid.engine.engine import Engine


@dataclass(frozen=True)
class HostFacts:
    name: str
    kernel: str
    architecture: str
    operating_system: str
    cpus: int
    memory: int
    cgroup: str  # "1" or "2"


@dataclass(frozen=True)
class Summary:
    host: HostFacts
    root: Path
    containers: int
    running: int
    paused: int
    stopped: int
    images: int
    machines: int
    providers: dict[str, list[str]] = field(default_factory=dict)  # name → features
    warnings: list[str] = field(default_factory=list)


def host_facts() -> HostFacts:
    """Read from this host's kernel, not from configuration."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return HostFacts(
        name=platform.node(),
        kernel=os.uname().release,
        architecture=os.uname().machine,
        operating_system=release.get("PRETTY_NAME", "Linux"),
        cpus=os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cgroup="2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "1",
    )


class System:
    """Counts what there is."""

    def __init__(self, paths: Paths, engine: Engine) -> None:
        self._paths = paths
        self._engine = engine

    async def summary(self) -> Summary:
        statuses = [record.status for record in self._engine.containers.records()]
        providers: list[Provider] = self._engine.machines.backends.providers()
        return Summary(
            host=host_facts(),
            root=self._paths.root,
            containers=len(statuses),
            running=sum(status == "running" for status in statuses),
            paused=sum(status == "paused" for status in statuses),
            stopped=sum(status not in ("running", "paused") for status in statuses),
            images=len(self._engine.images.all()),
            machines=len(self._engine.machines.all()),
            providers={
                one.name: sorted(feature.value for feature in one.features) for one in providers
            },
            warnings=await self._engine.warnings(),
        )
