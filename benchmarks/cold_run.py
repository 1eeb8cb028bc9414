"""A container in a new guest, against a bare boot of the same guest.

    python benchmarks/cold_run.py [--root DIR] [--runs 7]

Ours is the whole command ``hybrid run --rm busybox true``, from its start to its exit. Theirs is QEMU without
libvirt: the same kernel, initrd, root, command line, machine type, accelerator, CPU and memory as our guests have (read
off a running one), one virtio-serial port, to the hello of the agent and no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hybrid.link import serial
from hybrid.link.client import AgentClient
from paired import command, compare, report
from rig import IMAGE, Rig, options

BOUND = 1.3
TIMEOUT = 120.0
SAME = ("-machine", "-accel", "-cpu", "-m", "-object", "-smp", "-kernel", "-initrd", "-append")


def bare_command(ours: list[str], root: Path, port: Path) -> list[str]:
    """QEMU's command line for the bare boot, from one of our own."""
    pairs = itertools.pairwise(ours)
    same = [(name, value) for name, value in pairs if name in SAME and '"secret"' not in value]
    bare = [ours[0], "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-no-hpet"]
    bare += [word for pair in same if "rng-builtin" not in pair[1] for word in pair]
    bare += ["-drive", f"if=none,id=root,format=raw,readonly=on,file={root}"]
    bare += ["-device", "virtio-blk-pci,drive=root,serial=hybrid-root"]
    bare += ["-device", "virtio-serial-pci,max_ports=2", "-serial", "null"]
    bare += ["-chardev", f"socket,id=agent,path={port},server=on,wait=off"]
    return [*bare, "-device", "virtserialport,chardev=agent,name=hybrid.agent"]


def bare_boot(ours: list[str], root: Path) -> Callable[[], object]:
    def boot() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            port = Path(scratch) / "port"
            process = subprocess.Popen(bare_command(ours, root, port))
            try:
                asyncio.run(_hello(process, port))
            finally:
                process.kill()
                process.wait()

    return boot


async def _hello(process: subprocess.Popen[bytes], port: Path) -> None:
    while not port.exists():
        if process.poll() is not None:
            sys.exit("the bare QEMU did not start")
        await asyncio.sleep(0.002)
    client = await AgentClient.connect(await serial.connect(port), timeout=TIMEOUT)
    await client.close()


def main() -> int:
    chosen = options(__doc__, 7).parse_args()
    rig = Rig(chosen.root)
    with rig.container():
        time.sleep(1)
        line = Path(f"/proc/{rig.guests()[0]}/cmdline").read_bytes().decode().split("\0")
    with contextlib.suppress(ValueError):
        line.remove("")
    result = compare(
        "hybrid run --rm busybox true, to the agent's hello on bare QEMU",
        command(rig.argv("run", "--rm", IMAGE, "true")),
        bare_boot(line, rig.paths.guest / "current" / "root"),
        runs=chosen.runs,
        bound=BOUND,
    )
    report([result])
    return int(not result.kept)


if __name__ == "__main__":
    sys.exit(main())
