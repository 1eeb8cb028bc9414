"""Which daemon is meant: what follows from its root alone. Light to import, for commands that need no other name.

Two daemons with different roots share nothing: ``of(root)`` (8 hex digits of the root's real path) is part of every
host-wide name (run directory, bridge, tap, nftables table, domain).
"""

from __future__ import annotations

import os

DEFAULT_ROOT = "/var/lib/hybrid"
DEFAULT_RUN = "/run/hybrid"
SOCKET = "hybrid.sock"
StrPath = str | os.PathLike[str]


def real_root(root: StrPath | None) -> str:
    """The root without symlinks; None is the default one."""
    return os.path.realpath(root or DEFAULT_ROOT)


def of(root: str) -> str:
    """The root's part of host-wide names."""
    import hashlib  # slow to load, and the default root's run directory does not need it

    return hashlib.sha256(os.fsencode(root)).hexdigest()[:8]


def run_directory(root: str) -> str:
    """Where the sockets and pid files are of the daemon whose real root that is."""
    return DEFAULT_RUN if root == DEFAULT_ROOT else f"/run/hybrid-{of(root)}"


def api_socket(root: str) -> str:
    """Where it listens."""
    return f"{run_directory(root)}/{SOCKET}"
