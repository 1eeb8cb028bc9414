"""What this host's kernel says about a guest's QEMU process: facts from /proc, never from
configuration.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Collection
from pathlib import Path

from hybrid.errors import NotFound

_PROC = Path("/proc")
# Devices that every QEMU may hold: they lead to its own guest or nowhere.
_OWN_DEVICES = frozenset(
    ("/dev/null", "/dev/urandom", "/dev/kvm", "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock")
)
# What is no file of the host: anonymous memory, sockets, pipes, eventfd and the like.
_NOT_A_FILE = re.compile(r"/memfd:|/dev/zero \(deleted\)|[a-z_]+:")


def private_memory(pid: int) -> int:
    """Bytes of the host's memory that only this process has; 0 if it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    # Not Private_Dirty: that counts pages of a shared file in memory as well.
    return int(status_fields(rollup)["Anonymous"].split()[0]) << 10


def status_fields(text: str) -> dict[str, str]:
    """/proc/PID/status as a dict."""
    return {
        name: value.strip()
        for name, separator, value in (line.partition(":") for line in text.splitlines())
        if separator
    }


def namespaces(pid: int | str) -> dict[str, int]:
    """The inode of each of the process's namespaces; ``pid`` may be ``self``."""
    found = {}
    for link in (_PROC / str(pid) / "ns").iterdir():
        kind, _, number = os.readlink(link).partition(":")
        found[kind if kind == link.name else link.name] = int(number.strip("[]"))
    return found


def device_model(arguments: list[str]) -> list[str]:
    """The drivers of all ``-device`` options of a QEMU command line, sorted, each once."""
    drivers = set()
    for option, value in itertools.pairwise(arguments):
        if option == "-device":
            drivers.add(
                str(json.loads(value).get("driver"))
                if value.startswith("{")
                else value.partition(",")[0]
            )
    return sorted(drivers)


def accelerator(arguments: list[str]) -> str:
    """``kvm`` or ``tcg``: what the QEMU command line says runs the guest."""
    for option, value in itertools.pairwise(arguments):
        if option == "-accel":
            return value.partition(",")[0]
    return "tcg"


def open_files(pid: int, own: Collection[str]) -> list[dict[str, object]]:
    """Files of the host that the process has open, and whether each is in ``own``."""
    paths = set()
    for link in (_PROC / str(pid) / "fd").iterdir():
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            continue
        if not _NOT_A_FILE.match(target):
            paths.add(target)
    return [{"path": path, "own": path in own or path in _OWN_DEVICES} for path in sorted(paths)]


def processes_of(uid: int) -> list[int]:
    """The pids of all processes with the (effective) ``uid``."""
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == uid:
                    found.append(int(entry.name))
            except FileNotFoundError:
                continue
    return found


def user_ids() -> set[int]:
    """The uids of all processes of the host."""
    found = set()
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                found.add(entry.stat().st_uid)
            except FileNotFoundError:
                continue
    return found


def command_line(pid: int) -> list[str]:
    """The arguments of the process; empty for a dead one that was not reaped."""
    try:
        text = (_PROC / str(pid) / "cmdline").read_text(errors="replace")
    except OSError:
        return []
    return text.split("\0")[:-1]


def gather(pid: int, own: Collection[str]) -> dict[str, object]:
    """All evidence about the QEMU ``pid``, which may have the files ``own`` open; NotFound if it is
    gone.
    """
    try:
        status = status_fields((_PROC / str(pid) / "status").read_text())
        arguments = command_line(pid)
        uid, gid = int(status["Uid"].split()[1]), int(status["Gid"].split()[1])
        return {
            "pid": pid,
            "uid": uid,
            "gid": gid,
            "groups": [int(group) for group in status["Groups"].split()],
            "seccomp": int(status.get("Seccomp", "0")),
            "seccomp_filters": int(status.get("Seccomp_filters", "0")),
            "no_new_privs": status.get("NoNewPrivs") == "1",
            "cap_eff": status["CapEff"],
            "namespaces": namespaces(pid),
            "daemon_namespaces": namespaces("self"),
            "open_files": open_files(pid, own),
            "uid_shared_with": [other for other in processes_of(uid) if other != pid],
            "cgroup": (_PROC / str(pid) / "cgroup").read_text().strip(),
            "accelerator": accelerator(arguments),
            "device_model": device_model(arguments),
        }
    except (FileNotFoundError, ProcessLookupError, KeyError) as error:
        raise NotFound(f"the guest's QEMU process {pid} is gone") from error
