"""Restart policies: whether a container that ended starts again, and after how long. Pure.

Back-off: 100 ms, doubling with each start that did not last 10 s, at most one minute.
"""

from __future__ import annotations

from hybrid.engine.container import Record
from hybrid.errors import InvalidInput

FIRST_DELAY = 0.1
MAX_DELAY = 60.0
LASTED = 10.0
POLICIES = frozenset({"no", "always", "unless-stopped", "on-failure"})


def checked(name: str, maximum: int) -> None:
    """InvalidInput for a policy that means nothing."""
    if name not in POLICIES:
        raise InvalidInput(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or"
            " 'unless-stopped'"
        )
    if maximum and name != "on-failure":
        raise InvalidInput(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        )
    if maximum < 0:
        raise InvalidInput("invalid restart policy: maximum retry count cannot be negative")


def again(record: Record) -> bool:
    """Whether a container that has just ended by itself is to be started again."""
    if record.stopped_by_user:
        return False
    policy = record.spec.restart
    if policy.name in ("always", "unless-stopped"):
        return True
    if policy.name == "on-failure" and record.exit_code != 0:
        return not policy.maximum or record.restart_count < policy.maximum
    return False


def on_daemon_start(record: Record) -> bool:
    """Whether a container found not running when the daemon starts is to be started.

    ``always`` also starts what a user had stopped; ``unless-stopped`` does not (as Docker's).
    """
    if record.status == "created":
        return False
    return record.spec.restart.name == "always" or again(record)


def next_delay(previous: float, ran_for: float) -> float:
    """Seconds to wait before the next start, given the last delay (0: none yet) and how long it ran."""
    if not previous or ran_for >= LASTED:
        return FIRST_DELAY
    return min(previous * 2, MAX_DELAY)
