"""One more process in a running container, against the same by crun alone inside the same guest.

    python benchmarks/exec.py [--root DIR] [--runs 15]

Ours is the whole command ``hybrid exec NAME true``, the start of its Python process included. Theirs is
``crun exec NAME true``, started and timed by a program in the guest, with nothing between it and crun.
"""

from __future__ import annotations

import sys

from paired import command, report, result, seconds
from rig import AGENT_STATE, Rig, options

BOUND = 1.5
INSIDE = """
import subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdin=subprocess.DEVNULL)
print(time.perf_counter() - start)
"""


def main() -> int:
    chosen = options(__doc__, 15).parse_args()
    rig = Rig(chosen.root)
    with rig.container() as container:
        name, machine = container["Id"], container["Hybrid"]["Machine"]
        crun = ["crun", "--root", f"{AGENT_STATE}/crun", "--cgroup-manager", "cgroupfs", "exec"]
        ours = command(rig.argv("exec", name, "true"))

        def inside() -> float:
            timed = ["python3", "-I", "-S", "-c", INSIDE, *crun, name, "true"]
            return float(rig.in_machine(machine, *timed))

        ours(), inside()
        pairs = [(seconds(ours), inside()) for _ in range(chosen.runs)]
    found = result("hybrid exec, to crun exec in the guest", pairs, bound=BOUND)
    report([found])
    return int(not found.kept)


if __name__ == "__main__":
    sys.exit(main())
