"""Runs all measurements of one daemon: each one's lines, then all figures as one line of JSON.

python benchmarks/everything.py [--root DIR]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rig import options

SCRIPTS = ("cli_start", "cold_run", "exec", "output", "memory")
NEEDS_NO_DAEMON = ("cli_start",)


def main() -> int:
    chosen = options(__doc__, 0).parse_args()
    root = ["--root", str(chosen.root)] if chosen.root else []
    figures, missed = {}, []
    for name in SCRIPTS:
        script = Path(__file__).parent / f"{name}.py"
        arguments = [] if name in NEEDS_NO_DAEMON else root
        done = subprocess.run(
            [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True
        )
        *lines, last = done.stdout.strip().splitlines() or [""]
        print(f"## {name}", *lines, sep="\n", flush=True)
        figures[name] = json.loads(last) if last.startswith(("[", "{")) else None
        if done.returncode:
            missed.append(name)
    if missed:
        print(f"not kept: {', '.join(missed)}")
    print(json.dumps(figures))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
