"""One more process in a running container: ``exec NAME true``, the whole client.

``exec`` is docker's client on both sides; ``exec-crun`` hybrid's own against ``crun exec`` inside the same guest,
started and timed by a program there, with nothing between it and crun. ``exec-crun-fixed`` is the same against a
crun without random addresses, as the agent itself starts it where the guest's processor is emulated.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figures import Figure, ratio
from benchmarks.paired import command, output, turns

BARS = {"exec": 1.5, "exec-crun": 1.2}
RUNS = 15
AGENT_STATE = "/run/hybrid"  # in a guest
# argv[1] is a personality(2): 0, or 0x40000 for fixed addresses
INSIDE = """
import ctypes, subprocess, sys, time
ctypes.CDLL(None).personality(int(sys.argv[1], 0))
start = time.perf_counter()
subprocess.run(sys.argv[2:], check=True, stdin=subprocess.DEVNULL)
print(time.perf_counter() - start)
"""


def measure(bench: Bench) -> Iterator[Figure]:
    hybrid, dockerd = bench.hybrid, bench.dockerd()
    crun = ["crun", "--root", f"{AGENT_STATE}/crun", "--cgroup-manager", "cgroupfs", "exec"]
    theirs = output([*dockerd.run, "-d", "busybox", "sleep", "100000"]).strip()
    try:
        with hybrid.container() as container:
            name, machine = container["Id"], container["Hybrid"]["Machine"]

            def inside(personality: str) -> float:
                timed = ["python3", "-I", "-S", "-c", INSIDE, personality, *crun, name, "true"]
                return float(hybrid.in_machine(machine, *timed))

            sides = {
                "docker-cli": command([*hybrid.docker, "exec", name, "true"]),
                "dockerd": command([*dockerd.cli, "exec", theirs, "true"]),
                "hybrid-cli": command([*hybrid.cli, "exec", name, "true"]),
                "crun": lambda: inside("0"),
                "crun-fixed": lambda: inside("0x40000"),
            }
            times = turns(sides, bench.runs(RUNS))
    finally:
        output([*dockerd.cli, "rm", "-f", theirs])
    yield ratio("exec", times["docker-cli"], times["dockerd"], dockerd.name)
    yield ratio("exec-crun", times["hybrid-cli"], times["crun"], "crun exec in the guest")
    yield ratio(
        "exec-crun-fixed",
        times["hybrid-cli"],
        times["crun-fixed"],
        "crun exec in the guest, at fixed addresses",
    )
