"""Sizes and times, as people write them and as Docker prints them."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[bkmgt]?)(?:i?b)?", re.IGNORECASE)
_SCALE = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": GIB << 10}


def parse_size(text: str) -> int:
    """Bytes from ``512``, ``64m``, ``1.5g``, ``2GiB``: binary multiples, as docker's ``--memory``; ValueError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"invalid size: {text!r} (a number with an optional unit b, k, m, g or t)")
    return int(float(match["number"]) * _SCALE[match["unit"].lower()])
