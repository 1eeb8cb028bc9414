"""A container's processes as ``ps`` shows them, read from /proc: a machine need not have a ps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import Unsupported
from hybrid.wire.messages import ProcessTable

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_FULL = ("uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd")
_LONG = ("user", "pid", "pcpu", "pmem", "vsz", "rss", "tty", "stat", "start", "time", "args")


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    uid: int
    fields: list[str]  # /proc/PID/stat after the name: state first
    name: str
    command: str
    boot: float  # seconds since the epoch

    @property
    def seconds(self) -> float:
        return (int(self.fields[11]) + int(self.fields[12])) / _TICKS

    @property
    def began(self) -> float:
        return self.boot + int(self.fields[19]) / _TICKS

    @property
    def terminal(self) -> str:
        number = int(self.fields[4])
        major, minor = os.major(number), os.minor(number)
        return f"pts/{minor}" if 136 <= major < 144 else "?" if not number else f"{major}:{minor}"

    @property
    def share(self) -> float:
        return 100 * self.seconds / max(1.0, time.time() - self.began)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest:02}"


def _start(process: _Process) -> str:
    style = "%H:%M" if time.time() - process.began < 86400 else "%b%d"
    return time.strftime(style, time.localtime(process.began))


_COLUMNS: dict[str, tuple[str, Callable[[_Process], str]]] = {
    "uid": ("UID", lambda p: str(p.uid)),
    "user": ("USER", lambda p: str(p.uid)),
    "pid": ("PID", lambda p: str(p.pid)),
    "ppid": ("PPID", lambda p: p.fields[1]),
    "pgid": ("PGID", lambda p: p.fields[2]),
    "sid": ("SID", lambda p: p.fields[3]),
    "c": ("C", lambda p: str(int(p.share))),
    "pcpu": ("%CPU", lambda p: f"{p.share:.1f}"),
    "pmem": ("%MEM", lambda p: f"{100 * int(p.fields[21]) / os.sysconf('SC_PHYS_PAGES'):.1f}"),
    "vsz": ("VSZ", lambda p: str(int(p.fields[20]) >> 10)),
    "rss": ("RSS", lambda p: str(int(p.fields[21]) * _PAGE >> 10)),
    "stime": ("STIME", _start),
    "start": ("START", _start),
    "tty": ("TTY", lambda p: p.terminal),
    "time": ("TIME", lambda p: _clock(p.seconds)),
    "etime": ("ELAPSED", lambda p: _clock(time.time() - p.began)),
    "stat": ("STAT", lambda p: p.fields[0]),
    "nice": ("NI", lambda p: p.fields[16]),
    "comm": ("COMMAND", lambda p: p.name),
    "cmd": ("CMD", lambda p: p.command),
    "args": ("COMMAND", lambda p: p.command),
}
_ALIASES = {
    "%cpu": "pcpu",
    "%mem": "pmem",
    "command": "args",
    "euid": "uid",
    "ni": "nice",
    "s": "stat",
    "cputime": "time",
}


def columns(arguments: str) -> Sequence[str]:
    """The columns that ps arguments ask for: ``-ef``, ``aux`` or ``-o name,…``; Unsupported for others."""
    words = arguments.split()
    if len(words) >= 2 and words[-2].strip("-ex") == "o":
        names = [_ALIASES.get(name, name) for name in words[-1].lower().split(",")]
        for name in names:
            if name not in _COLUMNS:
                raise Unsupported(f"top: unknown column {name!r}; known are {', '.join(_COLUMNS)}")
        return names
    flags = set("".join(words).replace("-", ""))
    if flags <= set("ef"):
        return _FULL
    if flags <= set("aux"):
        return _LONG
    raise Unsupported(
        f"top: ps arguments {arguments!r} are not supported (use -ef, aux or -o column,…)"
    )


def table(pids: Sequence[int], arguments: str) -> ProcessTable:
    """The processes that still live, one row each."""
    names = columns(arguments)
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    found = [process for pid in pids if (process := _read(pid, boot)) is not None]
    rows = [[_COLUMNS[name][1](process) for name in names] for process in found]
    return ProcessTable([_COLUMNS[name][0] for name in names], rows)


def _read(pid: int, boot: float) -> _Process | None:
    directory = Path(f"/proc/{pid}")
    try:
        text = (directory / "stat").read_text(errors="replace")
        command = (directory / "cmdline").read_bytes()
        uid = directory.stat().st_uid
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    line = command.replace(b"\0", b" ").decode("utf-8", "replace").strip() or f"[{name}]"
    return _Process(pid, uid, rest.split(), name, line, boot)
