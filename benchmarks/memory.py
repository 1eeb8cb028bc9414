"""What processes take of this host's memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB


def fields(text: str) -> dict[str, int]:
    """The "Name: N kB" lines of a file of /proc, in bytes."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * KIB
    return found


def processes(*words: str) -> list[int]:
    """Processes whose command lines have all these words in them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in line for word in words) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def memory(pid: int) -> dict[str, int]:
    """Rss, Pss, Anonymous, Pss_Shmem, …"""
    return fields(Path(f"/proc/{pid}/smaps_rollup").read_text())


def everything(pids: Iterable[int]) -> int:
    """Private memory, the share of what is shared, and page tables."""
    return sum(
        memory(pid)["Pss"] + fields(Path(f"/proc/{pid}/status").read_text())["VmPTE"]
        for pid in pids
    )


def available() -> int:
    """What this host still has to give."""
    return fields(Path("/proc/meminfo").read_text())["MemAvailable"]


def peak(pid: int) -> int:
    return fields(Path(f"/proc/{pid}/status").read_text())["VmHWM"]


def forget_peak(pid: int) -> int:
    """Lets the peak start again at what is resident now, which is returned (proc(5): clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5\n")
    return fields(Path(f"/proc/{pid}/status").read_text())["VmRSS"]
