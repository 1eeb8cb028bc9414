"""Sides timed in turns, so that all of them meet the same machine.

A figure is only ever a ratio within one run; absolute seconds say what the machine was, not what hybrid is.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TIMEOUT = 300.0  # of a command
Side = Callable[[], float]  # does its work once; how long that took


class Failed(Exception):
    """Something that must be measured does not work: its own words."""


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def output(argv: Sequence[str]) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        last = words.partition("\n\nRun 'docker")[0].rpartition("\n")[2]  # without docker's hint
        raise Failed(f"{Path(argv[0]).name} … {argv[-1]}: exit {done.returncode}: {last}")
    return done.stdout.decode(errors="replace")


def command(argv: Sequence[str]) -> Side:
    """A whole command, from its start to its exit."""
    return lambda: seconds(lambda: output(argv))


def turns(
    sides: Mapping[str, Side], runs: int, *, settle: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """``runs`` rounds in which each side has its turn, after one round that does not count. Before each turn ``settle``
    lets the machine come to rest."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name, side in sides.items():
            settle()
            took = side()
            if number:
                times[name].append(took)
    return times
