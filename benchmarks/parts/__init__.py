"""One module a part: ``measure`` yields its figures, ``BARS`` names what was promised of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.parts import (
    clone,
    cold,
    execute,
    link,
    nginx,
    numbers,
    output,
    resident,
    run,
    start,
)


@dataclass(frozen=True)
class Part:
    measure: Callable[[Bench], Iterator[Figure]]
    bars: Mapping[str, float]


PARTS = {
    "start": Part(start.measure, start.BARS),
    "run": Part(run.measure, run.BARS),
    "nginx": Part(nginx.measure, nginx.BARS),
    "clone": Part(clone.measure, clone.BARS),
    "cold": Part(cold.measure, cold.BARS),
    "exec": Part(execute.measure, execute.BARS),
    "numbers": Part(numbers.measure, numbers.BARS),
    "resident": Part(resident.measure, resident.BARS),
    "output": Part(output.measure, output.BARS),
    "link": Part(link.measure, link.BARS),
}
