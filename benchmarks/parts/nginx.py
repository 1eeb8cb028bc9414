"""``run -d -p`` of nginx to its first answered request on the published port.

The clock runs from the start of docker's client until a program that has been asking all along, where the port is
published, gets its answer. What the guest itself takes to start nginx is taken off ours before the ratio is made: in a
new guest, with a container of the same image that only sleeps, nginx is started by hand in that container's
namespaces, and the clock runs from there to the first answer inside the guest.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.bench import Bench
from benchmarks.figures import Figure, ratio
from benchmarks.paired import Failed, Side, output, turns

BARS = {"nginx-first-answer": 1.2}
RUNS = 5
STARTS = 3  # of nginx by hand, each in a new guest
WAIT = 60.0
# What is not answered at once is asked again: a packet sent too early is lost, and its sender slow to try again.
ASK = f"""
import socket, sys, time
def ask(port):
    end = time.monotonic() + {WAIT}
    while time.monotonic() < end:
        try:
            with socket.socket() as connection:
                connection.settimeout(0.05)
                connection.connect((b"127.0.0.1", port))
                connection.settimeout(5)
                connection.sendall(b"GET /nginx-health HTTP/1.0\\r\\n\\r\\n")
                if b" 200 " in connection.recv(99):
                    return time.monotonic()
        except OSError:
            pass
        time.sleep(0.005)
    sys.exit("nginx did not answer")
"""
OUTSIDE = f"{ASK}\nprint('asking', flush=True)\nprint(ask(int(sys.argv[1])))"
INSIDE = f"""{ASK}
import json, os, subprocess
state = json.loads(subprocess.check_output(sys.argv[1:]))
spaces = [os.open(f"/proc/{{state['pid']}}/ns/{{kind}}", os.O_RDONLY) for kind in ("user", "pid", "mnt", "net")]
for space in spaces:
    os.setns(space)
os.setgid(0)
os.setuid(0)
start = time.monotonic()
subprocess.Popen(["/usr/local/bin/nginx-entrypoint", "nginx", "-g", "daemon off;"],
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(ask(80) - start)
"""


def measure(bench: Bench) -> Iterator[Figure]:
    dockerd = bench.dockerd()
    sides = {
        "hybrid": _first_answer(bench.hybrid.docker, []),
        "dockerd": _first_answer(dockerd.cli, dockerd.inside),
    }
    times = turns(sides, bench.runs(RUNS), settle=bench.hybrid.settle)
    own = statistics.median(_own_start(bench) for _ in range(STARTS))
    yield Figure("nginx-own-start", own, "s", note="in the guest, nothing else")
    yield ratio(
        "nginx-first-answer",
        times["hybrid"],
        times["dockerd"],
        dockerd.name,
        allowance=own,
        note="nginx-own-start is taken off ours",
    )


def _first_answer(cli: Sequence[str], inside: Sequence[str]) -> Side:
    def once() -> float:
        # Below those that the kernel gives to clients: the asker must not connect to itself.
        port = str(random.randrange(20000, 30000))
        asking = [*inside, sys.executable, "-c", OUTSIDE, port]
        with subprocess.Popen(asking, stdout=subprocess.PIPE, text=True) as asker:
            assert asker.stdout is not None
            asker.stdout.readline()
            start = time.monotonic()
            try:
                publish = f"127.0.0.1:{port}:80"
                name = output([*cli, "run", "-d", "-p", publish, "nginx"]).strip()
                answered = asker.stdout.readline()
            finally:
                asker.kill()
        output([*cli, "rm", "-f", name])
        if not answered:
            raise Failed(f"nginx did not answer on port {port}")
        return float(answered) - start

    return once


def _own_start(bench: Bench) -> float:
    hybrid = bench.hybrid
    flags = ("--entrypoint", "sleep")
    with hybrid.container(*flags, image="nginx", command=("100000",)) as container:
        state = ["crun", "--root", "/run/hybrid/crun", "state", container["Id"]]
        inside = ["python3", "-I", "-S", "-c", INSIDE, *state]
        return float(hybrid.in_machine(container["Hybrid"]["Machine"], *inside))
