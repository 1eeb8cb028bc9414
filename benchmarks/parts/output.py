"""A container that writes 256 MiB to stdout, read by the client: how fast, and what memory it takes on the way.

The clock runs from the first byte that the client hands on to the last, so that no start is in it. The growth is the
process's peak while it runs, over what was resident before; the promise is about the worst of all ways: a reader that
takes all it gets, one that stops for a while, and ``run``, whose output the daemon writes to the log as well.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.memory import MIB, fields, forget_peak, peak
from benchmarks.paired import Failed
from benchmarks.rig import Rig

BARS = {"output-daemon-growth": 32.0}
SIZE = 256 * MIB
BLOCK = 1 << 16
PAUSE = 3.0
WRITE = ["dd", "if=/dev/zero", f"bs={BLOCK}", f"count={SIZE // BLOCK}"]
AGENT = "cat /proc/$PPID/status"


def measure(bench: Bench) -> Iterator[Figure]:
    rig = bench.hybrid
    growth: list[float] = []
    for isolation in ("container", "vm"):
        where = {"container": "host", "vm": "guest"}[isolation]
        flags = ["--isolation", isolation]
        with rig.container(*flags) as container:
            before = _agent(rig, container["Hybrid"]["Machine"], "VmRSS")
            argv = [*rig.cli, "exec", container["Id"], *WRITE]
            yield _speed(f"output-exec-{where}", rig, argv, growth)
            yield _speed(f"output-exec-{where}-stopped", rig, argv, growth, pause=PAUSE)
            grown = _agent(rig, container["Hybrid"]["Machine"], "VmHWM") - before
        yield Figure(f"output-agent-growth-{where}", grown / MIB, "MiB")
        argv = [*rig.cli, "run", "--rm", *flags, "busybox", *WRITE]
        yield _speed(f"output-run-{where}", rig, argv, growth)
    yield Figure("output-daemon-growth", max(growth), "MiB", runs=len(growth))


def _speed(
    name: str, rig: Rig, argv: Sequence[str], growth: list[float], *, pause: float = 0
) -> Figure:
    before = forget_peak(rig.daemon.pid)
    speed = _read(argv, pause) / 1e6
    growth.append((peak(rig.daemon.pid) - before) / MIB)
    note = f"the reader stops for {pause:g} s" if pause else ""
    return Figure(name, speed, "MB/s", note=note)


def _read(argv: Sequence[str], pause: float) -> float:
    """Bytes a second, over all but the wait for the first ones and the pause."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        output = process.stdout.fileno()
        total = len(os.read(output, 1))
        start = time.perf_counter()
        time.sleep(pause)
        while data := os.read(output, BLOCK):
            total += len(data)
        took = time.perf_counter() - start - pause
    if process.wait() or total != SIZE:
        raise Failed(f"{total} of {SIZE} bytes came, exit code {process.returncode}")
    return SIZE / took


def _agent(rig: Rig, machine: str, field: str) -> int:
    """Of the status of the agent's process; its peak is since the agent's start."""
    if machine == "host":
        return fields(Path(f"/proc/{rig.host_agent()[0]}/status").read_text())[field]
    return fields(rig.in_machine(machine, "sh", "-c", AGENT))[field]
