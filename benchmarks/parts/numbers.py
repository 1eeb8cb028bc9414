"""Idle containers, each in a guest of its own, in growing numbers: what one costs, and what a new one then takes.

``memory-per-idle-container`` counts everything: QEMUs and helper processes (private memory, their share of what is
shared, page tables) and the daemon's growth. ``memory-lost-per-container`` is the check on it: by how much less memory
the host has left. ``latency-at-N`` is ``docker run --rm busybox true`` while N run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.bench import Bench
from benchmarks.figures import Figure, ratio, unmeasured
from benchmarks.memory import MIB, available, everything
from benchmarks.paired import command, turns
from benchmarks.rig import Rig
from hybrid.errors import HybridError

STEPS = (1, 10, 50, 100)
BARS = {"memory-per-idle-container": 40.0} | {f"latency-at-{step}": 1.5 for step in STEPS[1:]}
RUNS = 5
AT_ONCE = 2
SETTLE = 10.0


class Crowd:
    """The containers that run. ``end`` says why no more are started."""

    def __init__(self, rig: Rig, deadline: float) -> None:
        self._engine = rig.engine
        self._deadline = deadline
        self.running: list[str] = []
        self.seconds = 0.0
        self.end = ""

    def grow(self, size: int) -> bool:
        """Whether ``size`` containers run now."""
        start = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as workers:
            list(workers.map(self._start, range(size - len(self.running))))
        self.seconds += time.monotonic() - start
        return len(self.running) >= size

    def _start(self, _: int) -> None:
        if not self.end and time.monotonic() > self._deadline:
            self.end = "out of time"
        if self.end:
            return
        created = ""
        try:
            body = {"Image": "busybox", "Cmd": ["sleep", "100000"]}
            created = str(self._engine.create_container(body)["Id"])
            self._engine.start(created)
            self.running.append(created)
        except HybridError as refused:
            self.end = f"refused: {refused}"
            if created:
                self._engine.remove(created, force=True)

    def leave(self) -> None:
        with ThreadPoolExecutor(AT_ONCE) as workers:
            list(workers.map(lambda one: self._engine.remove(one, force=True), self.running))


def measure(bench: Bench) -> Iterator[Figure]:
    rig, limit = bench.hybrid, bench.options.guests
    true = command([*rig.docker, "run", "--rm", "busybox", "true"])
    true()
    rig.settle()
    daemon, free = everything([rig.daemon.pid]), available()
    others = everything(rig.helpers())
    crowd = Crowd(rig, time.monotonic() + 60 * bench.options.minutes)
    latencies: dict[int, list[float]] = {}
    try:
        for step in sorted({*(one for one in STEPS if one <= limit), limit}):
            if not crowd.grow(step):
                break
            if step in STEPS:
                latencies[step] = turns({"run": true}, bench.runs(RUNS), settle=rig.settle)["run"]
        rig.settle()
        time.sleep(SETTLE)
        count = len(crowd.running)
        used = everything(rig.helpers()) - others + everything([rig.daemon.pid]) - daemon
        lost = free - available()
    finally:
        crowd.leave()
    yield Figure("memory-per-idle-container", used / count / MIB, "MiB", runs=count)
    yield Figure("memory-lost-per-container", lost / count / MIB, "MiB", runs=count)
    end = crowd.end or f"no more than {limit} tried"
    yield Figure("density", count, "containers", note=end)
    yield Figure("start-rate", count / crowd.seconds, "1/s", note=f"{AT_ONCE} at a time")
    base = f"latency-at-{STEPS[0]}"
    yield Figure(base, statistics.median(latencies[STEPS[0]]), "s", runs=len(latencies[STEPS[0]]))
    for step in STEPS[1:]:
        name = f"latency-at-{step}"
        if step in latencies:
            yield ratio(name, latencies[step], latencies[STEPS[0]], base)
        else:
            yield unmeasured(name, base, f"{count} ran: {end}")
