"""A new guest, against a clone on bare QEMU to the agent's hello.

Ours runs from the API call to its answer that the agent is ready. It goes through libvirt and ends with an identity of
its own: reseeded, named, locked down.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figures import Figure, ratio
from benchmarks.paired import seconds, turns

BARS = {"clone-ready": 3.0}
RUNS = 9
NAME = "bench-clone"


def measure(bench: Bench) -> Iterator[Figure]:
    engine = bench.hybrid.engine

    def ours() -> float:
        took = seconds(lambda: engine.create_machine({"Name": NAME}))
        engine.remove_machine(NAME, force=True)
        return took

    with bench.floors.cloning() as floor:
        times = turns({"hybrid": ours, "floor": floor}, bench.runs(RUNS))
    yield ratio("clone-ready", times["hybrid"], times["floor"], "clone on bare QEMU to the hello")
