"""Points in time as Docker prints them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

ZERO = "0001-01-01T00:00:00Z"


def rfc3339(time_ns: int) -> str:
    """``2025-01-01T00:00:00.123456789Z``; Go's zero time for 0."""
    if not time_ns:
        return ZERO
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{fraction:09d}".rstrip("0")
    return f"{text}.{digits}Z" if digits else f"{text}Z"


def fixed(time_ns: int) -> str:
    """With all nine digits, as before a log line."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"
