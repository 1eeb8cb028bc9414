"""Sizes and times, as people write them and as Docker prints them."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[bkmgt]?)(?:i?b)?", re.IGNORECASE)
_SCALE = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": GIB << 10}


def parse_size(text: str) -> int:
    """Bytes from ``512``, ``64m``, ``1.5g``, ``2GiB``: binary multiples, as docker's
    ``--memory``; ValueError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"invalid size: {text!r} (a number with an optional unit b, k, m, g or t)")
    return int(float(match["number"]) * _SCALE[match["unit"].lower()])


_DURATION_PART = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>h|ms|m|s|us|µs|ns)")
_NANOSECONDS = {
    "h": 3600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "µs": 10**3,
    "ns": 1,
}


def parse_duration(text: str) -> int:
    """Nanoseconds from ``1m30s``, ``500ms``, ``0``, as Go writes them; ValueError otherwise."""
    rest, total = text.strip(), 0.0
    if rest == "0":
        return 0
    while match := _DURATION_PART.match(rest):
        total += float(match["number"]) * _NANOSECONDS[match["unit"]]
        rest = rest[match.end() :]
    if rest or not text.strip():
        raise ValueError(f"invalid duration: {text!r} (such as 500ms, 30s, 1m30s or 2h)")
    return int(total)


def human_duration(seconds: float) -> str:
    """A duration in words (docker/go-units ``HumanDuration``)."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{hours // 24 // 365} years"
