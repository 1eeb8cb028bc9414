"""Measures all parts, or those named: a table on stdout; results.json, results.md and chart.svg beside this file.

A part that is run alone replaces its own figures in results.json and leaves the others'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.bench import Bench, Options
from benchmarks.chart import draw
from benchmarks.figures import Figure, unmeasured
from benchmarks.parts import PARTS, Part

HERE = Path(__file__).resolve().parent


def measure(part: Part, bench: Bench) -> Iterator[Figure]:
    """The part's figures with their bars; what a failure kept from being measured is said, not left out."""
    missing, why = dict(part.bars), "the part did not yield it"
    try:
        for figure in part.measure(bench):
            yield replace(figure, bar=missing.pop(figure.name, None))
    except Exception as error:
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}"
    for name, bar in missing.items():
        yield replace(unmeasured(name, "", why), bar=bar)


def machine() -> str:
    """One line on what was measured on."""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, Linux {platform.release()}, load {load:.1f} at the start"


def write(results: list[dict[str, Any]], directory: Path) -> None:
    """results.json and what is made of it."""
    found = [figures.from_json(entry) for entry in results]
    text = "[\n" + ",\n".join(json.dumps(entry) for entry in results) + "\n]\n"
    (directory / "results.json").write_text(text)
    (directory / "chart.svg").write_text(draw(found))
    (directory / "results.md").write_text(f"# Results\n\n{figures.table(found)}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--runs", type=int, default=0, help="rounds, in place of each part's own number"
    )
    parser.add_argument(
        "--guests", type=int, default=Options.guests, help="to run at once, at most"
    )
    parser.add_argument("--minutes", type=float, default=Options.minutes, help="to start them in")
    parser.add_argument("--output", type=Path, default=HERE, help="directory of results.json")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if os.geteuid():
        parser.error("needs root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # what was started is stopped
    print(machine(), flush=True)
    new: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        bench = Bench(Options(chosen.runs, chosen.guests, chosen.minutes), stack)
        for name in chosen.parts or PARTS:
            start = time.monotonic()
            print(f"measuring: {name} …", end="", file=sys.stderr, flush=True)
            new += [figures.to_json(name, figure) for figure in measure(PARTS[name], bench)]
            print(f" {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    file = chosen.output / "results.json"
    old = json.loads(file.read_text()) if file.exists() else []
    write(figures.merge(old, new), chosen.output)
    print(figures.table([figures.from_json(entry) for entry in new]))
    if kept := [entry["name"] for entry in new if entry["holds"] is False]:
        print(f"does not hold: {', '.join(kept)}")
    return int(any(entry["value"] is None and entry["bar"] is not None for entry in new))


if __name__ == "__main__":
    sys.exit(main())
