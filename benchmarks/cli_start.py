"""What it costs to start the CLI, against a bare typer app of one command on the same typer.

    python benchmarks/cli_start.py [--runs 21]

``--version`` is the promised figure; a real command's start (``ps --help``: the command table, the
command's module and its options) is shown beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from paired import command, compare, report

BOUND = 1.25
BARE = """\
import typer
app = typer.Typer()

@app.command()
def main(version: bool = False) -> None:
    if version:
        print("0")

app()
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=21)
    runs = options.parse_args().runs
    hybrid = str(Path(sys.executable).parent / "hybrid")
    with tempfile.TemporaryDirectory() as scratch:
        # A file, as the console script is one: `python -c` would not use cached byte code either.
        bare = Path(scratch) / "bare.py"
        bare.write_text(BARE)
        peer = command([sys.executable, str(bare), "--version"])
        results = [
            compare(
                "hybrid --version", command([hybrid, "--version"]), peer, runs=runs, bound=BOUND
            ),
            compare(
                "hybrid ps --help", command([hybrid, "ps", "--help"]), peer, runs=runs, bound=0
            ),
        ]
    report(results)
    return int(not all(result.kept for result in results))


if __name__ == "__main__":
    sys.exit(main())
