"""Resource limits of processes: crun sets them inside the user namespace, where a hard limit can only be lowered.

So the agent, which its children inherit from, first raises its own to what is asked.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Any

from hybrid.errors import InvalidInput, Unsupported

_OPEN_FILES = 1 << 20  # what containers are used to get


def raise_open_files() -> None:
    """Many containers mean many descriptors here, and containers inherit the limit; as far as this machine allows."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))


def allow(process: dict[str, Any]) -> None:
    """Raises the agent's hard limits to those of an OCI ``process``; Unsupported if this machine does not let it."""
    for limit in process.get("rlimits") or []:
        name = str(limit.get("type"))
        number = getattr(resource, name, None) if name.startswith("RLIMIT_") else None
        if number is None:
            raise InvalidInput(f"unknown resource limit {name!r}")
        wanted = _value(limit.get("hard", 0))
        soft, hard = resource.getrlimit(number)
        if hard == resource.RLIM_INFINITY or (wanted != resource.RLIM_INFINITY and wanted <= hard):
            continue
        try:
            resource.setrlimit(number, (soft, wanted))
        except (OSError, ValueError) as error:
            raise Unsupported(
                f"{name} cannot be raised from {hard} to {wanted} on this machine: {error}"
            ) from error


@contextlib.contextmanager
def out_of_memory_score(score: int) -> Iterator[None]:
    """What is started inside the block has that oom_score_adj: crun (1.8 to 1.21) sets it in ``create`` only, and a
    guest's agent has one that spares it."""
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        before = file.read()
        if int(before) == score:
            yield
            return
        file.write(b"%d" % score)
        try:
            yield
        finally:
            file.write(before)


def _value(number: Any) -> int:
    """The OCI specification writes infinity as the largest unsigned number."""
    return resource.RLIM_INFINITY if int(number) >= (1 << 63) else int(number)
