"""What is resident: for each running guest, for the daemon, for the agents.

Guests with one sleeping container and one named volume each. A guest's RAM is shared memory where a file server maps
it, so it counts as Shmem; Anonymous is QEMU's own; its program's pages are shared by all guests.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.memory import MIB, fields, memory

BARS: dict[str, float] = {}
GUESTS = 3
SETTLE = "sleep 5; cat /proc/$PPID/status; cat /proc/meminfo"


def measure(bench: Bench) -> Iterator[Figure]:
    rig = bench.hybrid
    volumes = [f"bench-{number}" for number in range(GUESTS)]
    with ExitStack() as stack:
        containers = [stack.enter_context(rig.container("-v", f"{v}:/data")) for v in volumes]
        stack.enter_context(rig.container("--isolation", "container"))
        insides = [
            fields(rig.in_machine(one["Hybrid"]["Machine"], "sh", "-c", SETTLE))
            for one in containers
        ]
        guests = [memory(pid) for pid in rig.guests()]
        files = (rig.paths.run / "m").glob("*/*.pid")
        servers = [memory(json.loads(file.read_text())["pid"])["Pss"] for file in files]
        daemon = memory(rig.daemon.pid)["Pss"]
        agent = memory(rig.host_agent()[0])["Pss"]
    for volume in volumes:
        rig.run("volume", "rm", volume)
    found: dict[str, list[int]] = {
        "resident-qemu-own": [one["Anonymous"] for one in guests],
        "resident-guest-ram": [one["Pss_Shmem"] for one in guests],
        "resident-qemu": [one["Pss"] for one in guests],
        "resident-file-servers": [sum(servers) // GUESTS],
        "resident-agent-in-guest": [one["VmRSS"] for one in insides],
        "used-in-guest": [one["MemTotal"] - one["MemAvailable"] for one in insides],
        "resident-daemon": [daemon],
        "resident-host-agent": [agent],
    }
    for name, values in found.items():
        yield Figure(name, statistics.median(values) / MIB, "MiB", runs=len(values))
