"""Which kernel settings a container may have of its own: those that belong to its namespaces."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hybrid.errors import InvalidInput

_IPC = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax "
    "kernel.shmmni kernel.shm_rmid_forced".split()
)
_NAME = re.compile(r"[a-zA-Z0-9_-]+([./][a-zA-Z0-9_:@-]+)+")


def build(
    requested: Mapping[str, str], *, own_network: bool, own_ipc: bool, ids: int
) -> dict[str, str]:
    """The request's settings over Docker's defaults (ports and ping for everybody). ``ids``: how
    many ids the container's user namespace maps, 0 without one; a group outside it can't be named
    in ``ping_group_range``.
    """
    result: dict[str, str] = {}
    if own_network:
        result["net.ipv4.ip_unprivileged_port_start"] = "0"
        result["net.ipv4.ping_group_range"] = f"0 {min(ids - 1, 2147483647) if ids else 2147483647}"
    for name, value in requested.items():
        if not _NAME.fullmatch(name) or "\0" in value or len(value) > 1024:
            raise InvalidInput(f"invalid sysctl {name[:80]!r}")
        dotted = name.replace("/", ".") if "." not in name.split("/")[0] else name
        if dotted.startswith("net."):
            if not own_network:
                raise InvalidInput(
                    f"sysctl '{name}' not allowed: it has no network namespace of its own"
                )
        elif dotted in _IPC or dotted.startswith("fs.mqueue."):
            if not own_ipc:
                raise InvalidInput(
                    f"sysctl '{name}' not allowed: it has no ipc namespace of its own"
                )
        else:
            raise InvalidInput(
                f"sysctl '{name}' is not allowed: it is not of a namespace of the container's"
            )
        result[dotted] = value
    return result
