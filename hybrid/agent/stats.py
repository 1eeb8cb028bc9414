"""What a container uses, in the figures of cgroup v2; from v1 as far as it has them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from hybrid.agent.cgroups import Group
from hybrid.wire.messages import ContainerStats

_NETDEV = ("bytes", "packets", "errors", "dropped")
_V1_TICK_NS = 10_000_000  # cpuacct.stat counts in USER_HZ, 100 a second


def read(group: Group, pid: int) -> ContainerStats:
    """The present figures; ``pid`` is its init (0: it has ended)."""
    common: dict[str, Any] = {
        "system_cpu": _machine_cpu(),
        "cpus": os.cpu_count() or 1,
        "pids": group.number("pids", "pids.current") or len(group.processes()),
        "pids_limit": group.number("pids", "pids.max"),
        "read_ns": time.time_ns(),
        "networks": _networks(pid),
    }
    return _v2(group, common) if group.unified else _v1(group, common)


def _v2(group: Group, common: dict[str, Any]) -> ContainerStats:
    cpu = group.table("", "cpu.stat")
    return ContainerStats(
        cpu_total=cpu.get("usage_usec", 0) * 1000,
        cpu_user=cpu.get("user_usec", 0) * 1000,
        cpu_system=cpu.get("system_usec", 0) * 1000,
        cpu_periods=cpu.get("nr_periods", 0),
        cpu_throttled=cpu.get("nr_throttled", 0),
        cpu_throttled_time=cpu.get("throttled_usec", 0) * 1000,
        memory=group.number("", "memory.current"),
        memory_limit=group.number("", "memory.max") or _machine_memory(),
        memory_stat=group.table("", "memory.stat"),
        blkio=_io_v2(group.text("", "io.stat")),
        **common,
    )


def _v1(group: Group, common: dict[str, Any]) -> ContainerStats:
    cpu = group.table("cpu", "cpu.stat")
    account = group.table("cpuacct", "cpuacct.stat")
    limit = group.number("memory", "memory.limit_in_bytes")
    machine = _machine_memory()
    stat = group.table("memory", "memory.stat")
    names = {"total_rss": "anon", "total_cache": "file", "total_inactive_file": "inactive_file"}
    return ContainerStats(
        cpu_total=group.number("cpuacct", "cpuacct.usage"),
        cpu_user=account.get("user", 0) * _V1_TICK_NS,
        cpu_system=account.get("system", 0) * _V1_TICK_NS,
        cpu_periods=cpu.get("nr_periods", 0),
        cpu_throttled=cpu.get("nr_throttled", 0),
        cpu_throttled_time=cpu.get("throttled_time", 0),
        memory=group.number("memory", "memory.usage_in_bytes"),
        memory_limit=min(limit, machine) if limit else machine,
        memory_stat={new: stat[old] for old, new in names.items() if old in stat},
        blkio=_io_v1(group.text("blkio", "blkio.throttle.io_service_bytes_recursive")),
        **common,
    )


def _io_v2(text: str) -> list[dict[str, Any]]:
    """Lines of ``major:minor rbytes=… wbytes=…``."""
    found = []
    for line in text.splitlines():
        device, *fields = line.split()
        major, _, minor = device.partition(":")
        values = dict(field.partition("=")[::2] for field in fields)
        for name, operation in (("rbytes", "read"), ("wbytes", "write")):
            if values.get(name, "").isdecimal():
                found.append(
                    {
                        "major": int(major),
                        "minor": int(minor),
                        "op": operation,
                        "value": int(values[name]),
                    }
                )
    return found


def _io_v1(text: str) -> list[dict[str, Any]]:
    """Lines of ``major:minor Read value``."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] in ("Read", "Write") and fields[2].isdecimal():
            major, _, minor = fields[0].partition(":")
            found.append(
                {
                    "major": int(major),
                    "minor": int(minor),
                    "op": fields[1].lower(),
                    "value": int(fields[2]),
                }
            )
    return found


def _networks(pid: int) -> dict[str, dict[str, int]]:
    """/proc/PID/net/dev: eight receive columns, then eight of transmit."""
    found = {}
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:] if pid else []
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        columns = [int(column) for column in rest.split()]
        if name.strip() != "lo" and len(columns) >= 16:
            received = {f"rx_{key}": value for key, value in zip(_NETDEV, columns[:4], strict=True)}
            sent = {f"tx_{key}": value for key, value in zip(_NETDEV, columns[8:12], strict=True)}
            found[name.strip()] = received | sent
    return found


def _machine_cpu() -> int:
    """All CPU time of the machine in nanoseconds (first line of /proc/stat, without guest time)."""
    with open("/proc/stat") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    return sum(ticks) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
