"""A container that writes to stdout, read by the client: how fast, and what memory it takes on the way.

    python benchmarks/output.py [--root DIR] [--mib 256] [--runs 3]

The clock runs from the first byte that the client hands on to the last, so that no boot is in it. The growth is the
process's peak while it runs, over what was resident before: once with a reader that takes all it gets, once with one
that stops for a while.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from rig import IMAGE, MIB, Rig, fields, forget_peak, options, peak

BOUND = 32 * MIB
BLOCK = 1 << 16
PAUSE = 3.0
AGENT = "cat /proc/$PPID/status"


@dataclass(frozen=True)
class Flow:
    """One run. Memory in MiB; None: not looked at."""

    isolation: str
    reader: str
    mb_per_s: float
    daemon_growth: float
    agent_growth: float | None


def flow(rig: Rig, isolation: str, mib: int, *, pause: float) -> Flow:
    with rig.container("--isolation", isolation) as container:
        machine = container["Hybrid"]["Machine"]
        daemon, daemon_before = rig.daemon, forget_peak(rig.daemon)
        agent_before = agent(rig, machine, isolation)["VmRSS"]
        if isolation == "container":
            forget_peak(rig.host_agent())
        speed = read(rig, container["Id"], mib << 20, pause)
        grown = peak(daemon) - daemon_before
        agent_grown = agent(rig, machine, isolation)["VmHWM"] - agent_before
    reader = f"stops for {pause:g} s" if pause else "steady"
    return Flow(isolation, reader, speed / 1e6, grown / MIB, agent_grown / MIB)


def agent(rig: Rig, machine: str, isolation: str) -> dict[str, int]:
    """The status of the agent's process."""
    if isolation == "container":
        with open(f"/proc/{rig.host_agent()}/status") as file:
            return fields(file.read())
    return fields(rig.in_machine(machine, "sh", "-c", AGENT))


def read(rig: Rig, name: str, size: int, pause: float) -> float:
    """Bytes a second, over all but the wait for the first ones and the pause."""
    command = ["dd", "if=/dev/zero", f"bs={BLOCK}", f"count={size // BLOCK}"]
    argv = rig.argv("exec", name, *command)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        output = process.stdout.fileno()
        total = len(os.read(output, 1))
        start = time.perf_counter()
        time.sleep(pause)
        while data := os.read(output, BLOCK):
            total += len(data)
        took = time.perf_counter() - start - pause
    if process.wait() or total != size:
        sys.exit(f"{total} of {size} bytes came, exit code {process.returncode}")
    return size / took


def stored(rig: Rig, isolation: str, mib: int) -> Flow:
    """The same as a container's own output, which the daemon writes to the container's log as well."""
    daemon, before = rig.daemon, forget_peak(rig.daemon)
    command = ["dd", "if=/dev/zero", f"bs={BLOCK}", f"count={mib << 20 >> 16}"]
    argv = rig.argv("run", "--rm", "--isolation", isolation, IMAGE, *command)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        output = process.stdout.fileno()
        total = len(os.read(output, 1))
        start = time.perf_counter()
        while data := os.read(output, BLOCK):
            total += len(data)
        took = time.perf_counter() - start
    if process.wait() or total != mib << 20:
        sys.exit(f"{total} of {mib << 20} bytes came, exit code {process.returncode}")
    return Flow(isolation, "run, logged", total / took / 1e6, (peak(daemon) - before) / MIB, None)


def main() -> int:
    parser = options(__doc__, 3)
    parser.add_argument("--mib", type=int, default=256)
    chosen = parser.parse_args()
    rig = Rig(chosen.root)
    results = []
    for isolation in ("container", "vm"):
        steady = [flow(rig, isolation, chosen.mib, pause=0) for _ in range(chosen.runs)]
        results.append(_median(steady))
        results.append(flow(rig, isolation, chosen.mib, pause=PAUSE))
        results.append(stored(rig, isolation, chosen.mib))
    for one in results:
        agent_text = "" if one.agent_growth is None else f", agent +{one.agent_growth:.1f} MiB"
        print(
            f"{chosen.mib} MiB, {one.isolation}, reader {one.reader}: {one.mb_per_s:.1f} MB/s, daemon"
            f" +{one.daemon_growth:.1f} MiB (at most {BOUND // MIB}){agent_text}"
        )
    print(json.dumps([asdict(one) for one in results]))
    return int(any(one.daemon_growth * MIB >= BOUND for one in results))


def _median(flows: list[Flow]) -> Flow:
    return Flow(
        flows[0].isolation,
        flows[0].reader,
        statistics.median(one.mb_per_s for one in flows),
        max(one.daemon_growth for one in flows),
        max(one.agent_growth or 0.0 for one in flows),
    )


if __name__ == "__main__":
    sys.exit(main())
