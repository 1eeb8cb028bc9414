"""``run --rm busybox true`` on the default bridge network, the whole client from start to exit.

Ours is doubly isolated. Docker's client drives hybrid and dockerd alike; hybrid's own client is measured against
docker's with dockerd, too. ``pool-empty`` is a daemon that keeps no guests ready.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figures import Figure, ratio, unmeasured
from benchmarks.paired import Failed, command, turns

BARS = {"run-warm-docker-cli": 1.0, "run-warm-hybrid-cli": 1.0, "run-pool-empty": 3.0}
RUNS = 9
TRUE = ["--rm", "busybox", "true"]


def measure(bench: Bench) -> Iterator[Figure]:
    dockerd = bench.dockerd()
    sides = {
        "docker-cli": command([*bench.hybrid.docker, "run", *TRUE]),
        "dockerd": command([*dockerd.run, *TRUE]),
        "hybrid-cli": command([*bench.hybrid.cli, "run", *TRUE]),
        "pool-empty": command([*bench.unpooled.docker, "run", *TRUE]),
    }
    others = {}
    for name, start in (("podman", bench.podman), ("gvisor", bench.gvisor)):
        try:
            others[name] = start()
            sides[name] = command([*others[name].run, *TRUE])
        except Failed as failed:
            yield unmeasured(f"run-warm-to-{name}", name, str(failed))
    times = turns(sides, bench.runs(RUNS), settle=bench.hybrid.settle)
    for name in ("docker-cli", "hybrid-cli"):
        yield ratio(f"run-warm-{name}", times[name], times["dockerd"], dockerd.name)
    for name, peer in others.items():
        ours = times["docker-cli"]
        yield ratio(f"run-warm-to-{name}", ours, times[name], peer.name, note=peer.note)
    yield ratio("run-pool-empty", times["pool-empty"], times["dockerd"], dockerd.name)
