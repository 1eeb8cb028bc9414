"""Signals by name or number, as ``docker kill --signal`` and ``STOPSIGNAL`` write them."""

from __future__ import annotations

import signal
import sys

from hybrid.errors import InvalidInput


def parse(text: str) -> int:
    """``KILL``, ``SIGKILL``, ``9``, ``RTMIN+3`` → the number; InvalidInput otherwise."""
    word = text.strip().upper()
    if word.isdecimal():
        number = int(word)
        if 0 < number <= signal.SIGRTMAX:
            return number
        raise InvalidInput(f"invalid signal: {text}")
    word = word.removeprefix("SIG")
    for base in ("RTMIN", "RTMAX"):
        rest = word.removeprefix(base)
        if rest != word and (rest == "" or (rest[0] in "+-" and rest[1:].isdecimal())):
            number = int(getattr(signal, f"SIG{base}")) + int(rest or "0")
            if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
                return number
    found = getattr(signal.Signals, f"SIG{word}", None)
    if found is None or sys.platform != "linux":
        raise InvalidInput(f"invalid signal: {text}")
    return int(found)
