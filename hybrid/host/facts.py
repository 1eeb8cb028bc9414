"""What a box reached over SSH is and has: one command, and the parser of what it prints."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hybrid.errors import Unavailable, Unsupported

MINIMUM_PYTHON = (3, 11)  # asyncio.timeout and TaskGroup
# POSIX sh, for nothing else is known to be there yet. sbin is not on every user's path.
COMMAND = """
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
echo hybrid-facts=1
echo uid=$(id -u)
echo kernel=$(uname -s) $(uname -r)
echo architecture=$(uname -m)
echo python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
echo crun=$(crun --version 2>/dev/null | head -n 1)
if test -e /sys/fs/cgroup/cgroup.controllers; then echo cgroup=v2
elif test -e /sys/fs/cgroup/unified/cgroup.controllers; then echo cgroup=hybrid
else echo cgroup=v1; fi
echo hybrid-facts=end
"""
MAX_OUTPUT = 16 << 10
_LINE = re.compile(r"([a-z-]+)=([\x20-\x7e]{0,200})")
_PYTHON = re.compile(r"(\d{1,2})\.(\d{1,3})")
_CRUN = re.compile(r"crun version (\d[0-9A-Za-z.+~-]{0,40})")


@dataclass(frozen=True)
class BoxFacts:
    """``python`` is None and ``crun`` "" where it is missing."""

    uid: int
    kernel: str
    architecture: str
    python: tuple[int, int] | None
    crun: str
    cgroup: str


def parse(output: str, where: str) -> BoxFacts:
    """The facts in the command's output; a login shell may have printed greetings before."""
    if len(output) > MAX_OUTPUT or "hybrid-facts=end" not in output:
        raise Unavailable(f"{where}: its shell does not run commands as a POSIX shell would")
    _, _, relevant = output.partition("hybrid-facts=1\n")
    fields: dict[str, str] = {}
    for line in relevant.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match:
            fields.setdefault(match[1], match[2].strip())
    python = _PYTHON.fullmatch(fields.get("python", ""))
    crun = _CRUN.fullmatch(fields.get("crun", ""))
    uid = fields.get("uid", "")
    return BoxFacts(
        uid=int(uid) if uid.isdigit() and len(uid) < 11 else -1,
        kernel=fields.get("kernel", ""),
        architecture=fields.get("architecture", ""),
        python=(int(python[1]), int(python[2])) if python else None,
        crun=crun[1] if crun else "",
        cgroup=fields.get("cgroup", ""),
    )


def require(facts: BoxFacts, where: str) -> None:
    """Unsupported, naming what to do, unless the agent can run containers there."""
    if not facts.kernel.startswith("Linux "):
        raise Unsupported(f"{where}: not a Linux box ({facts.kernel or 'no uname'})")
    if facts.python is None:
        raise Unsupported(f"{where}: no python3 there; install the package python3")
    if facts.python < MINIMUM_PYTHON:
        have, need = (".".join(map(str, version)) for version in (facts.python, MINIMUM_PYTHON))
        raise Unsupported(f"{where}: its python3 is {have}; the agent needs {need} or newer")
    if not facts.crun:
        raise Unsupported(f"{where}: no crun there; install the package crun")
    if facts.uid != 0:
        raise Unsupported(
            f"{where}: the agent needs root there and this user has uid {facts.uid};"
            " log in as root (ssh://root@…)"
        )
