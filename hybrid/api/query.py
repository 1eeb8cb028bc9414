"""Query parameters and filters, read as Docker's server reads them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping

from hybrid.api.fields import check_sound
from hybrid.errors import InvalidInput

_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_FALSE = frozenset({"", "0", "no", "false", "none"})
_PATTERN_MAX = 256
_REPEAT = re.compile(r"[*+?{]")
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_REPEATS_MAX = 3
Filters = dict[str, list[str]]


def flag(query: Mapping[str, str], name: str, default: bool = False) -> bool:
    """Anything but "", 0, no, false and none is true."""
    if name not in query:
        return default
    return query[name].strip().lower() not in _FALSE


def integer(query: Mapping[str, str], name: str) -> int | None:
    """None when absent; InvalidInput when it is not a number."""
    value = query.get(name, "")
    if value == "":
        return None
    if not _INTEGER.fullmatch(value):
        raise InvalidInput(f"invalid value for {name}: {value[:40]!r} is not a number")
    return int(value)


def filters(query: Mapping[str, str], known: Iterable[str]) -> Filters:
    """``{"label":["a=b"]}`` and ``{"label":{"a=b":true}}``; InvalidInput for what Docker refuses."""
    text = query.get("filters", "")
    if not text:
        return {}
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("invalid filter") from error
    if not isinstance(parsed, dict):
        raise InvalidInput("invalid filter")
    check_sound(parsed)
    result: Filters = {}
    allowed = set(known)
    for key, values in parsed.items():
        if key not in allowed:
            raise InvalidInput(f"invalid filter '{key}'")
        if isinstance(values, dict):
            values = [value for value, on in values.items() if on]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InvalidInput("invalid filter")
        result[key] = values
    return result


def one_of(chosen: Filters, key: str, allowed: Iterable[str]) -> None:
    """InvalidInput if that filter has a value that means nothing."""
    known = set(allowed)
    for value in chosen.get(key, []):
        if value not in known:
            raise InvalidInput(f"invalid filter '{key}={value}'")


def labels_match(chosen: Filters, labels: Mapping[str, str]) -> bool:
    """All of ``label`` hold and none of ``label!``."""

    def holds(wanted: str) -> bool:
        key, equals, value = wanted.partition("=")
        return key in labels and (not equals or labels[key] == value)

    return all(map(holds, chosen.get("label", []))) and not any(
        map(holds, chosen.get("label!", []))
    )


def any_match(values: list[str] | None, test: Callable[[str], bool]) -> bool:
    """True without that filter, else if one of its values passes."""
    return values is None or any(map(test, values))


def name_matches(pattern: str, *names: str) -> bool:
    """As a regular expression anywhere in one of the names; a malformed one as plain text.

    Python's expressions backtrack: one whose time could explode is InvalidInput (Docker's cannot).
    """
    if len(pattern) > _PATTERN_MAX:
        raise InvalidInput(f"invalid filter: a name pattern has at most {_PATTERN_MAX} characters")
    if _REPEATED_GROUP.search(pattern) or len(_REPEAT.findall(pattern)) > _REPEATS_MAX:
        raise InvalidInput(f"invalid filter: the name pattern {pattern[:40]!r} is too complex")
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return any(pattern in name for name in names)
    return any(compiled.search(name) for name in names)


def seconds(text: str) -> int | None:
    """``1700000000`` or ``1700000000.000000123`` in nanoseconds; None for "" and 0."""
    if text in ("", "0"):
        return None
    whole, _, fraction = text.partition(".")
    try:
        sign = -1 if whole.startswith("-") else 1
        return int(whole or "0") * 1_000_000_000 + sign * int((fraction + "0" * 9)[:9])
    except ValueError as error:
        raise InvalidInput(f"invalid timestamp: {text[:40]!r}") from error
