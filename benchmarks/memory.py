"""What is resident: for each running guest, for the daemon, for the agents.

    python benchmarks/memory.py [--root DIR] [--runs 3]

``--runs`` guests, each with one sleeping container and one named volume. A guest's RAM is shared memory (file
servers map it), so it counts as Shmem; Anonymous is QEMU's own; its program's pages are shared by all guests.
"""

from __future__ import annotations

import json
import statistics
import sys
from contextlib import ExitStack

from rig import MIB, Rig, fields, memory, options

SETTLE = "sleep 5; cat /proc/$PPID/status; cat /proc/meminfo"


def main() -> int:
    chosen = options(__doc__, 3).parse_args()
    rig = Rig(chosen.root)
    with ExitStack() as stack:
        volumes = [f"bench-memory-{number}" for number in range(chosen.runs)]
        containers = [stack.enter_context(rig.container("-v", f"{v}:/data")) for v in volumes]
        stack.enter_context(rig.container("--isolation", "container"))
        insides = [
            fields(rig.in_machine(one["Hybrid"]["Machine"], "sh", "-c", SETTLE))
            for one in containers
        ]
        guests = [memory(pid) for pid in rig.guests()]
        files = (rig.paths.run / "m").glob("*/*.pid")
        servers = [memory(json.loads(file.read_text())["pid"])["Pss"] for file in files]
        daemon, agent = memory(rig.daemon), memory(rig.host_agent())
    for volume in volumes:
        rig.run("volume", "rm", volume)
    figures = {
        "guest: QEMU, Anonymous": _middle(guests, "Anonymous"),
        "guest: its RAM so far (Shmem)": _middle(guests, "Pss_Shmem"),
        "guest: QEMU, all (Pss)": _middle(guests, "Pss"),
        "guest: file servers of one volume (Pss)": sum(servers) / len(containers) / MIB,
        "guest: the agent inside (Rss)": _middle(insides, "VmRSS"),
        "guest: used inside": statistics.median(
            (one["MemTotal"] - one["MemAvailable"]) / MIB for one in insides
        ),
        f"daemon with {chosen.runs} guests (Pss)": daemon["Pss"] / MIB,
        "host's own agent (Pss)": agent["Pss"] / MIB,
    }
    for name, value in figures.items():
        print(f"{name}: {value:.1f} MiB")
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))
    return 0


def _middle(found: list[dict[str, int]], name: str) -> float:
    return statistics.median(one[name] for one in found) / MIB


if __name__ == "__main__":
    sys.exit(main())
