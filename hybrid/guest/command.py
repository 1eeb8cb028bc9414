"""Runs the build's outside programs: clean environment, one clear line on failure."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hybrid.errors import Internal, Unavailable

# the Debian package that has each program
PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "gcc": "gcc libc6-dev linux-libc-dev",
    "dpkg": "dpkg",
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def require(program: str) -> str:
    """The program's path; Unavailable names the Debian package to install."""
    path = shutil.which(program, path=_PATH)
    if path is None:
        package = PACKAGES.get(program, program)
        raise Unavailable(f"{program} is not installed; install it: apt-get install {package}")
    return path


def run(argv: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    """Standard output of a program that must succeed;

    Internal with the command, ready to paste, otherwise.
    """
    words = [str(word) for word in argv]
    words[0] = words[0] if "/" in words[0] else require(words[0])
    base = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    done = subprocess.run(
        words,
        env=base | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-3:]
        raise Internal(
            f"command failed with status {done.returncode}: {shlex.join(words)}: {' | '.join(last)}"
        )
    return done.stdout
