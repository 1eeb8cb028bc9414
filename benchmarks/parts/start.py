"""What it costs to start the CLI, against a bare typer app of one command on the same typer.

``cli-start`` is ``--version``; ``cli-start-command`` a real command's start: the command table, the command's module
and its options.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figure, ratio
from benchmarks.paired import command, turns
from benchmarks.rig import HYBRID

BARS = {"cli-start": 1.25}
RUNS = 21
BARE = """\
import typer
app = typer.Typer()

@app.command()
def main(version: bool = False) -> None:
    if version:
        print("0")

app()
"""


def measure(bench: Bench) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as scratch:
        # A file, as the console script is one: `python -c` would not use cached byte code either.
        bare = Path(scratch) / "bare.py"
        bare.write_text(BARE)
        sides = {
            "bare": command([sys.executable, str(bare), "--version"]),
            "version": command([HYBRID, "--version"]),
            "help": command([HYBRID, "ps", "--help"]),
        }
        times = turns(sides, bench.runs(RUNS))
    yield ratio("cli-start", times["version"], times["bare"], "bare typer app")
    yield ratio("cli-start-command", times["help"], times["bare"], "bare typer app")
