"""Dataclasses to JSON objects and back, validated on the receiving side.

``decode`` believes nothing: unknown or missing keys, wrong types and values out of bounds are an
``InvalidInput`` that names the field. Standard library only, for the agent runs it too. ``bytes``
travel as base64.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar, Union

from hybrid.errors import InvalidInput

T = TypeVar("T")
MAX_STRING = 1 << 20
MAX_ITEMS = 1 << 14
MAX_DEPTH = 24
MAX_INTEGER = 1 << 63


def encode(value: Any) -> Any:
    """The JSON form of a dataclass instance (or of what its fields may hold)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return value


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(cls)
    return {
        f.name: (
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    }


def decode(cls: type[T], value: Any, where: str = "") -> T:
    """An instance of the dataclass ``cls`` from the JSON object ``value``; InvalidInput names the
    bad field."""
    where = where or cls.__name__
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: an object is needed")
    kind: type = cls
    fields = _fields(kind)
    unknown = value.keys() - fields.keys()
    if unknown:
        raise InvalidInput(f"{where}: unknown field {sorted(map(str, unknown))[0]!r}")
    arguments = {}
    for name, (hint, required) in fields.items():
        if name in value:
            arguments[name] = _value(hint, value[name], f"{where}.{name}", 0)
        elif required:
            raise InvalidInput(f"{where}: field {name!r} is missing")
    return cls(**arguments)


def _value(hint: Any, value: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"{where}: nested too deeply")
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        (inner,) = (option for option in options if option is not type(None))
        return _value(inner, value, where, depth)
    if hint is Any:
        return _any(value, where, depth)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise InvalidInput(
                f"{where}: must be one of {', '.join(map(str, typing.get_args(hint)))}"
            )
        return value
    if origin is list:
        (item,) = typing.get_args(hint)
        return [
            _value(item, one, f"{where}[{n}]", depth + 1)
            for n, one in enumerate(_sized(list, value, where))
        ]
    if origin is dict:
        key_hint, item = typing.get_args(hint)
        return {
            _value(key_hint, key, where, depth + 1): _value(item, one, f"{where}.{key}", depth + 1)
            for key, one in _sized(dict, value, where).items()
        }
    if dataclasses.is_dataclass(hint):
        return decode(hint, value, where)  # type: ignore[arg-type]
    return _scalar(hint, value, where)


def _sized(kind: type[list[Any]] | type[dict[Any, Any]], value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidInput(f"{where}: a {kind.__name__} is needed")
    if len(value) > MAX_ITEMS:
        raise InvalidInput(f"{where}: more than {MAX_ITEMS} items")
    return value


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is bytes:
        if isinstance(value, str) and len(value) <= MAX_STRING:
            try:
                return base64.b64decode(value, validate=True)
            except ValueError:  # binascii.Error, or text that is not ASCII
                pass
        raise InvalidInput(f"{where}: base64 is needed")
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise InvalidInput(f"{where}: {hint.__name__} is needed")
    if hint is str:
        _check_text(value, where)
    if hint is int and abs(value) > MAX_INTEGER:
        raise InvalidInput(f"{where}: out of range")
    return value


def _check_text(value: str, where: str) -> None:
    if len(value) > MAX_STRING:
        raise InvalidInput(f"{where}: longer than {MAX_STRING} characters")
    # JSON can carry lone surrogates; whoever prints or stores such text later would fail.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"{where}: not valid Unicode") from None


def _any(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, list):
        return [_value(Any, one, where, depth + 1) for one in _sized(list, value, where)]
    if isinstance(value, dict):
        return {
            _scalar(str, key, where): _value(Any, one, where, depth + 1)
            for key, one in _sized(dict, value, where).items()
        }
    if value is None or isinstance(value, bool):
        return value
    return _scalar(type(value) if type(value) in (str, int, float) else str, value, where)
