"""Reading JSON bodies so that nothing is silently ignored. Pure.

``Fields`` hands out an object's members by name and kind. ``finish`` refuses every member that was not asked for,
unless its value says nothing (null, zero, empty).
"""

from __future__ import annotations

from typing import Any

from hybrid.errors import InvalidInput, Unsupported

MAX_TEXT = 1 << 20
MAX_ITEMS = 1 << 14
MAX_DEPTH = 20
MAX_INTEGER = 1 << 63


def check_sound(body: Any) -> None:
    """InvalidInput for JSON that could not be stored, told to a machine or printed: what nests endlessly, NUL
    characters, lone surrogates, and strings, numbers and lists beyond what the store and the link carry.
    """
    level, depth = [body], 0
    while level:
        if depth > MAX_DEPTH:
            raise InvalidInput("invalid request: the body is nested too deeply")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict | list):
                if len(value) > MAX_ITEMS:
                    raise InvalidInput(
                        f"invalid request: a list or object of more than {MAX_ITEMS} items"
                    )
                inner += value
                if isinstance(value, dict):
                    inner += value.values()
            elif isinstance(value, str):
                _check_text(value)
            elif isinstance(value, int | float) and not abs(value) < MAX_INTEGER:
                raise InvalidInput("invalid request: a number is out of range")
        level, depth = inner, depth + 1


def _check_text(value: str) -> None:
    if len(value) > MAX_TEXT:
        raise InvalidInput(f"invalid request: a string of more than {MAX_TEXT} characters")
    if "\0" in value:
        raise InvalidInput("invalid request: a string holds a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput("invalid request: a string is not valid Unicode") from None


def one_line(text: str, what: str) -> str:
    """``text``, which goes into a file that is read line by line: without control characters."""
    if not all(c.isprintable() for c in text):
        raise InvalidInput(f"invalid {what} {text[:80]!r}: it holds control characters")
    return text


def number_within(text: str, least: int, most: int) -> int | None:
    """The decimal number, if ``text`` is one in that range."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        return None
    return int(text) if least <= int(text) <= most else None


def neutral(value: Any) -> bool:
    """Whether a value says nothing."""
    if isinstance(value, dict):
        return all(neutral(item) for item in value.values())
    if isinstance(value, list):
        return all(neutral(item) for item in value)
    return value in (None, False, 0, "")


class Fields:
    """One JSON object; ``where`` names it in errors ("HostConfig.")."""

    def __init__(self, value: Any, where: str = "") -> None:
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise InvalidInput(
                f"invalid request: {where.rstrip('.') or 'the body'} must be an object"
            )
        self._value = value
        self._where = where
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def raw(self, name: str) -> Any:
        self._taken.add(name)
        return self._value.get(name)

    def _typed(self, name: str, kind: type | tuple[type, ...], what: str, default: Any) -> Any:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise InvalidInput(f"invalid request: {self._where}{name} must be {what}")
        return value

    def text(self, name: str, default: str = "") -> str:
        value: str = self._typed(name, str, "a string", default)
        return value

    def integer(self, name: str, default: int = 0) -> int:
        value: int = self._typed(name, int, "a whole number", default)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value: bool = self._typed(name, bool, "true or false", default)
        return value

    def strings(self, name: str) -> list[str] | None:
        """A list of strings; one string alone is a list of one (as Docker reads commands)."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidInput(f"invalid request: {self._where}{name} must be a list of strings")
        return list(value)

    def table(self, name: str) -> dict[str, str]:
        value = self._typed(name, dict, "an object of strings", {})
        if not all(isinstance(item, str) for item in value.values()):
            raise InvalidInput(f"invalid request: {self._where}{name} must be an object of strings")
        return dict(value)

    def object(self, name: str) -> dict[str, Any]:
        return dict(self._typed(name, dict, "an object", {}))

    def inner(self, name: str) -> Fields:
        return Fields(self.raw(name), f"{self._where}{name}.")

    def items(self, name: str) -> list[Fields]:
        value = self._typed(name, list, "a list", [])
        return [
            Fields(item, f"{self._where}{name}[{number}].") for number, item in enumerate(value)
        ]

    def ignore(self, *names: str) -> None:
        """Members that mean nothing here, whatever they say."""
        self._taken.update(names)

    def finish(self) -> None:
        """Unsupported, naming it, for a member that nobody asked for and that says something."""
        for name, value in self._value.items():
            if name not in self._taken and not neutral(value):
                raise Unsupported(
                    f"{self._where}{name} is not supported by this build: leave it out"
                )
