"""Proof of a container's walls: what its policy promises, gathered evidence from both kernels, and the judgement.

The promise is the runtime spec that policy yields for the container's request; whether it is kept is read from the
host's /proc (the guest's QEMU), the guest's /proc (the container) and from attempts made inside the container.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybrid.engine import boxes, bundle
from hybrid.engine.blobs import send_blobs
from hybrid.engine.containers import Containers
from hybrid.engine.live import Container
from hybrid.engine.machine import Machine
from hybrid.errors import Unsupported
from hybrid.policy import profile as profiles
from hybrid.policy import runtime_spec
from hybrid.verify.judge import NAMESPACES, HostFacts, Promise, Report, allowed_probes, judge
from hybrid.wire.messages import Evidence, Facts, Probe

METADATA = "169.254.169.254:80"  # where clouds keep credentials
MAX_NEIGHBOURS = 16


class Prover:
    """``policy`` names the daemon's policy profile; ``probe`` is the program that tries walls, for boxes."""

    def __init__(self, containers: Containers, policy: Callable[[], str], probe: Path) -> None:
        self._containers = containers
        self._policy = policy
        self._probe = probe

    async def prove(self, reference: str) -> Report:
        """The judged evidence of one running container; NotFound and Conflict (not running) as elsewhere."""
        container = self._containers.find(reference)
        run = container.need_run("cannot verify: ")
        machine, record = run.machine, container.record
        program = await self._program(machine)
        promise = self._promise(container, machine)
        async with _listener() as port:
            addresses = [*self._host_services(container, port), *self._neighbours(container)]
            inside, probes, facts = await asyncio.gather(
                machine.call(Evidence(container.id, list(promise.masked_paths))),
                machine.call(Probe(container.id, addresses, program)),
                machine.call(Facts()),
            )
        provider = await machine.provider.evidence(machine.id) if machine.own_kernel else {}
        if machine.record.origin is not None:
            provider |= {"origin": asdict(machine.record.origin)}
        checks = judge(promise, _host_facts(), facts, inside, probes, provider)
        return Report(container.id, record.name, record.spec.isolation or "vm", checks)

    async def _program(self, machine: Machine) -> str:
        """The probe program as a blob of the box; empty where the machine has its own."""
        if not boxes.is_box(machine.provider.features):
            return ""
        if not self._probe.is_file():
            raise Unsupported(
                "cannot verify: the probe program is built with the guest image: run 'hybrid guest build'"
            )
        (program,) = await send_blobs(machine, [self._probe])
        return program

    def _promise(self, container: Container, machine: Machine) -> Promise:
        record = container.record
        config = runtime_spec.build(
            bundle.spec_request(
                record,
                profiles.load(self._policy()),
                machine.facts,
                [],
                id_base=record.id_base,
            )
        )
        linux, process = config["linux"], config["process"]
        capabilities = frozenset(process["capabilities"]["bounding"])
        seccomp = bool(linux.get("seccomp"))
        return Promise(
            own_kernel=machine.own_kernel,
            box=boxes.is_box(machine.provider.features),
            capabilities=capabilities,
            seccomp=seccomp,
            no_new_privileges=bool(process.get("noNewPrivileges")),
            user_namespace=bool(record.id_base),
            masked_paths=tuple(linux.get("maskedPaths", ())),
            namespaces=_own_namespaces(container),
            memory=_limit(linux, "memory"),
            pids=_limit(linux, "pids"),
            allowed_probes=allowed_probes(capabilities, seccomp=seccomp),
        )

    def _host_services(self, container: Container, port: int) -> list[str]:
        """A service that really listens on this host right now, at each address where the container may seek it."""
        if bundle.network_kind(container.record.spec)[0] != "own":
            return []
        gateways = {one.gateway for one in container.record.endpoints.values() if one.gateway}
        return [f"{gateway}:{port}" for gateway in sorted(gateways)] + [METADATA]

    def _neighbours(self, container: Container) -> list[str]:
        """Ports of containers with which it shares no network."""
        networks = set(container.record.endpoints)
        if not networks:
            return []
        found = []
        for other in self._containers.all():
            if not other.record.live or networks & set(other.record.endpoints):
                continue
            for endpoint in other.record.endpoints.values():
                for exposed in other.record.spec.exposed:
                    port, _, protocol = exposed.partition("/")
                    if endpoint.ip and protocol in ("", "tcp"):
                        found.append(f"{endpoint.ip}:{port}")
        return sorted(found)[:MAX_NEIGHBOURS]


@asynccontextmanager
async def _listener() -> AsyncIterator[int]:
    """A TCP service on all of the host's IPv4 addresses, there while the probe runs; its port."""
    server = await asyncio.start_server(_hang_up, "0.0.0.0", 0, family=socket.AF_INET)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def _own_namespaces(container: Container) -> frozenset[str]:
    """The namespaces that the request leaves to the container alone (with its machine as the other side)."""
    spec = container.record.spec
    shared = {
        kind
        for kind, mode in (
            ("net", spec.network_mode),
            ("pid", spec.pid_mode),
            ("ipc", spec.ipc_mode),
        )
        if mode == "host"
    }
    return frozenset(NAMESPACES) - shared


def _limit(linux: dict[str, Any], resource: str) -> int:
    limit = linux.get("resources", {}).get(resource, {}).get("limit", 0)
    return limit if isinstance(limit, int) and limit > 0 else 0


def _host_facts() -> HostFacts:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return HostFacts(file.read().strip(), os.uname().release)
