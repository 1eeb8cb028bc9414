"""A new guest through libvirt until its agent answers, against a clone on bare QEMU to the agent's hello.

Ours is the provider as the daemon uses it, in this process, so that neither client nor HTTP is in it: a domain with a
user, a sandbox and a log of its own. ``clone-configured`` goes on until the clone has an identity: reseeded, named, its
clock set, locked down.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figure, ratio
from benchmarks.paired import Failed, turns
from hybrid.guest.image import current
from hybrid.link.client import AgentClient
from hybrid.machine import profile
from hybrid.machine.provider import Boot, MachineRequest
from hybrid.machine.providers.cloned import ClonedProvider
from hybrid.paths import Paths
from hybrid.wire.messages import Configure
from tests.built import BUILT

BARS = {"clone-ready": 3.0}
RUNS = 9
TIMEOUT = 60.0
AGAINST = "clone on bare QEMU to the hello"


def measure(bench: Bench) -> Iterator[Figure]:
    configured: list[float] = []
    with _provider() as (runner, provider), bench.floors.cloning() as floor:

        def ours() -> float:
            ready, named = runner.run(_clone(provider))
            configured.append(named)
            return ready

        times = turns({"hybrid": ours, "floor": floor}, bench.runs(RUNS))
    yield ratio("clone-ready", times["hybrid"], times["floor"], AGAINST)
    yield ratio("clone-configured", configured[1:], times["floor"], AGAINST)


@contextlib.contextmanager
def _provider() -> Iterator[tuple[asyncio.Runner, ClonedProvider]]:
    with (
        tempfile.TemporaryDirectory(prefix="hybrid-bench-", dir="/var/tmp") as root,
        asyncio.Runner() as runner,
    ):
        os.chmod(root, 0o711)  # guests have users of their own
        paths = Paths.of(Path(root))
        provider = ClonedProvider(paths)
        try:
            runner.run(provider.open())
            yield runner, provider
        finally:
            runner.run(provider.close())
            shutil.rmtree(paths.run, ignore_errors=True)


async def _clone(provider: ClonedProvider) -> tuple[float, float]:
    """Seconds to the agent's hello, and to an identity."""
    image, shape = current(BUILT), profile.load("default")
    machine = secrets.token_hex(16)
    request = MachineRequest(
        machine,
        "bench",
        shape,
        shape.memory,
        shape.cpus,
        Boot(image.kernel, image.initrd, image.root, image.command_line),
        shares_later=False,
    )
    start = time.perf_counter()
    await provider.create(request)
    try:
        client = await AgentClient.connect(await provider.connect(machine), timeout=TIMEOUT)
        ready = time.perf_counter() - start
        await client.call(Configure(machine, "bench", time.time_ns(), os.urandom(64), True))
        named = time.perf_counter() - start
        await client.close()
        origin = provider.origin(machine)
        if origin is None or origin.kind != "clone":
            raise Failed(f"not cloned: {origin and origin.reason}")
        return ready, named
    finally:
        await provider.destroy(machine)
