"""Two commands timed in turns, so that both meet the same machine: medians and their ratio.

A figure is only ever a ratio within one run; absolute seconds say what the machine was, not what hybrid is.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Result:
    """Medians in seconds. ``ratio`` is the median of the pairs' ours over theirs, ``of_medians`` that of the medians:
    where the two are far apart, or ``lowest`` and ``highest`` pair, the machine was too busy to tell.
    ``bound`` is what was promised (0: nothing).
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    bound: float
    runs: int
    of_medians: float
    lowest: float
    highest: float

    @property
    def kept(self) -> bool:
        """Whether the promise was kept, by either way of counting."""
        return not self.bound or max(self.ratio, self.of_medians) <= self.bound


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def command(argv: Sequence[str]) -> Callable[[], object]:
    """A run of ``argv`` that fails loudly when the command does."""

    def run() -> object:
        done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.decode()[-500:]}")
        return done

    return run


def compare(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], *, runs: int, bound: float
) -> Result:
    """``runs`` interleaved pairs after one warm-up of each."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    return result(name, pairs, bound=bound)


def result(name: str, pairs: Sequence[tuple[float, float]], *, bound: float) -> Result:
    """What pairs of (ours, theirs) say. Two of a pair met the same machine, two pairs perhaps not."""
    mine, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    middle = statistics.median(ratios)
    return Result(name, mine, peer, middle, bound, len(pairs), mine / peer, ratios[0], ratios[-1])


def report(results: Sequence[Result]) -> None:
    """A line a figure for people, and the same as JSON on the last line."""
    for one in results:
        bound = f" (at most {one.bound})" if one.bound else ""
        print(f"{one.name}: {one.ours:.3f} s against {one.theirs:.3f} s: {one.ratio:.2f}{bound}")
        print(
            f"    of the medians {one.of_medians:.2f}; {one.runs} pairs from {one.lowest:.2f} to {one.highest:.2f}"
        )
    print(json.dumps([asdict(one) for one in results]))
