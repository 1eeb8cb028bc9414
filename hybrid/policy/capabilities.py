"""Linux capability sets: Docker's default fourteen, and what a request adds and drops.

Names are the kernel's (``CAP_NET_RAW``); a request may leave the prefix out and write any case, and
``ALL`` means every one. Unknown names are refused rather than passed to the runtime, which would
drop them with a warning.
"""

from __future__ import annotations

from collections.abc import Iterable

from hybrid.errors import Forbidden, InvalidInput

# include/uapi/linux/capability.h, in its order
ALL: tuple[str, ...] = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP "
        "LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER "
        "SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
        "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
        "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF "
        "CHECKPOINT_RESTORE"
    ).split()
)

# moby, daemon/pkg/oci/caps/defaults.go
DEFAULT: tuple[str, ...] = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
        "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
)


def name(text: str) -> str:
    """The kernel's name of the capability (or ``ALL``) that ``text`` means; InvalidInput if there
    is none.
    """
    upper = text.strip().upper()
    if upper in ("ALL", "CAP_ALL"):
        return "ALL"
    full = upper if upper.startswith("CAP_") else "CAP_" + upper
    if full not in ALL:
        raise InvalidInput(f'invalid capability: unknown capability "{text}"')
    return full


def select(
    base: Iterable[str],
    add: Iterable[str] = (),
    drop: Iterable[str] = (),
    allowed: Iterable[str] = ("ALL",),
) -> list[str]:
    """``base`` plus ``add`` minus ``drop``, in the kernel's order. An addition outside ``allowed``
    is Forbidden.

    As Docker: with ``add`` ALL everything but the dropped; with ``drop`` ALL only the added.
    """
    base_set, added, dropped = ({name(item) for item in items} for items in (base, add, drop))
    _check_allowed(added, base_set, {name(item) for item in allowed})
    if "ALL" in added:
        chosen = set(ALL) - dropped
    elif "ALL" in dropped:
        chosen = added
    else:
        chosen = (base_set | added) - dropped
    return [item for item in ALL if item in chosen]


def _check_allowed(added: set[str], base: set[str], allowed: set[str]) -> None:
    if "ALL" in allowed:
        return
    refused = sorted(added - base - allowed)
    if refused:
        raise Forbidden(
            f"the policy does not allow to add {', '.join(refused)}; "
            f"allowed: {', '.join(sorted(allowed)) or 'none'}"
        )
