"""Percent-encoding for paths. ``urllib.parse`` takes long to load, and most names need none."""

from __future__ import annotations

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")


def quote(text: str, safe: str = "") -> str:
    """As ``urllib.parse.quote``."""
    if _PLAIN.union(safe).issuperset(text):
        return text
    import urllib.parse

    return urllib.parse.quote(text, safe=safe)
