"""A container in a guest that is booted for it, against a bare boot of the same kernel and root to the agent's hello.

Ours is the whole command ``hybrid run --rm busybox true``, from its start to its exit.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figures import Figure, ratio
from benchmarks.paired import command, turns

BARS = {"run-cold": 1.3}
RUNS = 7


def measure(bench: Bench) -> Iterator[Figure]:
    sides = {
        "hybrid": command([*bench.booting.cli, "run", "--rm", "busybox", "true"]),
        "floor": bench.floors.boot,
    }
    times = turns(sides, bench.runs(RUNS))
    yield ratio("run-cold", times["hybrid"], times["floor"], "bare QEMU boot to the agent's hello")
