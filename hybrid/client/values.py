"""Small values as people write them, in the form that the Engine API has for them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hybrid.errors import InvalidInput

Json = dict[str, Any]


def pairs(given: Iterable[str], what: str) -> dict[str, str]:
    """NAME=VALUE flags as a mapping."""
    result = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise InvalidInput(f"invalid {what} {item!r}: expected NAME=VALUE")
        result[name] = value
    return result


def restart_policy(text: str) -> Json:
    """``on-failure:3`` as the API has it."""
    name, colon, count = text.partition(":")
    if name not in ("", "no", "always", "unless-stopped", "on-failure"):
        raise InvalidInput(
            f"invalid restart policy {text!r}: no, always, unless-stopped or on-failure[:retries]"
        )
    if colon and (name != "on-failure" or not count.isdigit()):
        raise InvalidInput(f"invalid restart policy {text!r}: only on-failure takes a count")
    return {"Name": name or "no", "MaximumRetryCount": int(count) if count else 0}


def nano_cpus(text: str) -> int:
    """``1.5`` CPUs in the API's unit."""
    try:
        count = float(text)
    except ValueError:
        count = -1.0
    if not 0 < count < 1 << 20:
        raise InvalidInput(f"invalid number of CPUs {text!r}")
    return round(count * 1e9)


def ulimit(text: str) -> Json:
    """``nofile=1024:2048`` as the API has it."""
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    try:
        return {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}
    except ValueError as error:
        raise InvalidInput(f"invalid ulimit {text!r}: expected NAME=SOFT[:HARD]") from error
