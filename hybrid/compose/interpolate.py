"""``${NAME:-default}`` in compose files, as the compose specification has it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hybrid.errors import InvalidInput

_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Za-z_]\w*)|(?P<brace>\{))",
)
_INNER = re.compile(r"(?P<name>[A-Za-z_]\w*)(?P<operator>:?[-?+])?")


def interpolate(value: Any, environment: Mapping[str, str], path: str = "") -> Any:
    """``value`` with every string in it interpolated; keys stay as they are."""
    match value:
        case str():
            return substitute(value, environment, path)
        case dict():
            return {
                key: interpolate(item, environment, f"{path}.{key}".lstrip("."))
                for key, item in value.items()
            }
        case list():
            return [interpolate(item, environment, f"{path}[{i}]") for i, item in enumerate(value)]
    return value


def substitute(text: str, environment: Mapping[str, str], path: str = "") -> str:
    """One string; InvalidInput names ``path`` when the syntax is wrong or a variable is
    required."""
    result, position = [], 0
    while (dollar := text.find("$", position)) >= 0:
        result.append(text[position:dollar])
        match = _VARIABLE.match(text, dollar)
        if not match:
            raise InvalidInput(
                f"{path}: invalid interpolation in {text!r}: write $$ for a dollar sign"
            )
        position = match.end()
        if match["escaped"]:
            result.append("$")
        elif match["plain"]:
            result.append(environment.get(match["plain"], ""))
        else:
            end = _closing(text, position, path)
            result.append(_expand(text[position:end], environment, path))
            position = end + 1
    return "".join(result) + text[position:]


def _closing(text: str, start: int, path: str) -> int:
    """Where the brace that was opened before ``start`` closes; defaults may nest."""
    depth = 1
    for index in range(start, len(text)):
        if text[index] == "{" and text[index - 1] == "$":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if not depth:
                return index
    raise InvalidInput(f"{path}: ${{ without }} in {text!r}")


def _expand(inner: str, environment: Mapping[str, str], path: str) -> str:
    match = _INNER.match(inner)
    if not match or (not match["operator"] and match.end() != len(inner)):
        raise InvalidInput(f"{path}: invalid interpolation ${{{inner}}}")
    name, operator, rest = match["name"], match["operator"] or "", inner[match.end() :]
    value = environment.get(name)
    # With the colon an empty value counts as unset.
    present = bool(value) if operator.startswith(":") else value is not None
    match operator[-1:]:
        case "-":
            return (value or "") if present else substitute(rest, environment, path)
        case "+":
            return substitute(rest, environment, path) if present else ""
        case "?" if not present:
            reason = substitute(rest, environment, path) or "it is not set"
            raise InvalidInput(f"{path}: variable {name} is required: {reason}")
    return value or ""
