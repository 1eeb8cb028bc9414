"""The version of the client."""

from __future__ import annotations

VERSION = "0.1.0"


def line() -> str:
    """What ``hybrid --version`` prints."""
    return f"hybrid version {VERSION}"
