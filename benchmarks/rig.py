"""The hybrid under test: its commands, its processes, and what they take of this host's memory."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid.client.address import local_root
from hybrid.guest.imagebuild import build_image
from hybrid.paths import Paths, data_dir

KIB = 1024
MIB = 1024 * KIB
HYBRID = str(Path(sys.executable).parent / "hybrid")
AGENT_STATE = "/run/hybrid"  # the agent's, in a guest
IMAGE = "busybox"


def options(text: str | None, runs: int) -> argparse.ArgumentParser:
    """The options that all measurements have."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--root", type=Path, help="the daemon's state directory")
    parser.add_argument("--runs", type=int, default=runs)
    return parser


class Rig:
    """One daemon, which the first command starts if need be, with its guest image and busybox."""

    def __init__(self, root: Path | None) -> None:
        self.paths = Paths.of(local_root(root, os.environ))
        self.base = [HYBRID, "--root", str(self.paths.root)]
        self.run("guest", "build")
        if subprocess.run(self.argv("image", "inspect", IMAGE), capture_output=True).returncode:
            archive = self.paths.root / "examples" / f"{IMAGE}.tar"
            build_image(self.paths, data_dir() / "images" / IMAGE, archive, lambda text: None)
            self.run("image", "load", "-i", str(archive))

    def argv(self, *arguments: str) -> list[str]:
        return [*self.base, *arguments]

    def run(self, *arguments: str) -> str:
        """The output of a hybrid command that must succeed."""
        done = subprocess.run(self.argv(*arguments), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"hybrid {' '.join(arguments)}: exit {done.returncode}: {done.stderr[-500:]}")
        return done.stdout

    @contextlib.contextmanager
    def container(self, *flags: str) -> Iterator[dict[str, Any]]:
        """A container that sleeps, as ``inspect`` shows it; removed at the end."""
        identity = self.run("run", "-d", *flags, IMAGE, "sleep", "100000").strip()
        try:
            yield json.loads(self.run("inspect", identity))[0]
        finally:
            self.run("rm", "-f", identity)

    def in_machine(self, machine: str, *command: str) -> str:
        return self.run("machine", "shell", machine, *command)

    @property
    def daemon(self) -> int:
        return int(self.paths.pid_file.read_text())

    def guests(self) -> list[int]:
        """The QEMU processes of this daemon."""
        return processes(f"guest=hybrid-{self.paths.instance}-")

    def host_agent(self) -> int:
        return processes(str(self.paths.host_agent), "--unix")[0]


def processes(*words: str) -> list[int]:
    """Processes whose command lines have all these words in them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in line for word in words) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def fields(text: str) -> dict[str, int]:
    """The "Name: N kB" lines of a file of /proc, in bytes."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * KIB
    return found


def memory(pid: int) -> dict[str, int]:
    """Rss, Pss, Anonymous, Pss_Shmem, …"""
    return fields(Path(f"/proc/{pid}/smaps_rollup").read_text())


def peak(pid: int) -> int:
    return fields(Path(f"/proc/{pid}/status").read_text())["VmHWM"]


def forget_peak(pid: int) -> int:
    """Lets the peak start again at what is resident now, which is returned (proc(5): clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5\n")
    return fields(Path(f"/proc/{pid}/status").read_text())["VmRSS"]
