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
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar, Union, cast

from hybrid.errors import InvalidInput

T = TypeVar("T")
MAX_STRING = 1 << 20
MAX_ITEMS = 1 << 14
MAX_DEPTH = 24
MAX_INTEGER = 1 << 63


def plain(value: Any) -> Any:
    """Dataclasses and bytes as what JSON has a form for: the ``default`` of ``json``."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def decode(cls: type[T], value: Any, where: str = "") -> T:
    """An instance of the dataclass ``cls`` from the JSON object ``value``, of which it may keep parts;
    InvalidInput names the bad field."""
    try:
        return cast(T, _decoder(cast(Hashable, cls))(value))
    except _Misfit as misfit:
        raise InvalidInput(f"{where or cls.__name__}{misfit.where}: {misfit.text}") from None


class _Misfit(Exception):
    """A value that does not fit its field. Where it is grows on the way out through the values around it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.where = ""

    def inside(self, step: str) -> _Misfit:
        self.where = step + self.where
        return self


_Decoder = Callable[[Any], Any]


@functools.cache
def _decoder(hint: Any) -> _Decoder:
    """What makes a field's value of a JSON value; found once for each annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _any
    if origin in (Union, types.UnionType):
        (one,) = (option for option in arguments if option is not types.NoneType)
        inner = _decoder(one)
        return lambda value: None if value is None else inner(value)
    if origin is typing.Literal:
        return functools.partial(_choice, arguments)
    if origin is list:
        return functools.partial(_list, _decoder(arguments[0]))
    if origin is dict:
        return functools.partial(_dict, *map(_decoder, arguments))
    if dataclasses.is_dataclass(hint):
        return _instances(cast(type, hint))
    return _SCALARS[hint]


def _instances(cls: type) -> _Decoder:
    hints = typing.get_type_hints(cls)
    decoders = {f.name: _decoder(hints[f.name]) for f in dataclasses.fields(cls)}
    needed = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]

    def instance(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Misfit("an object is needed")
        if unknown := value.keys() - decoders.keys():
            raise _Misfit(f"unknown field {sorted(map(str, unknown))[0]!r}")
        for name in needed:
            if name not in value:
                raise _Misfit(f"field {name!r} is missing")
        arguments = {}
        for name, item in value.items():
            try:
                arguments[name] = decoders[name](item)
            except _Misfit as misfit:
                raise misfit.inside(f".{name}") from None
        return cls(**arguments)

    return instance


def _choice(choices: tuple[Any, ...], value: Any) -> Any:
    if value not in choices:
        raise _Misfit(f"must be one of {', '.join(map(str, choices))}")
    return value


def _list(decoder: _Decoder, value: Any) -> list[Any]:
    found = []
    for number, item in enumerate(_sized(list, value)):
        try:
            found.append(decoder(item))
        except _Misfit as misfit:
            raise misfit.inside(f"[{number}]") from None
    return found


def _dict(key_decoder: _Decoder, decoder: _Decoder, value: Any) -> dict[Any, Any]:
    found = {}
    for key, item in _sized(dict, value).items():
        name = key_decoder(key)
        try:
            found[name] = decoder(item)
        except _Misfit as misfit:
            raise misfit.inside(f".{name}") from None
    return found


def _sized(kind: type[list[Any]] | type[dict[Any, Any]], value: Any) -> Any:
    if not isinstance(value, kind):
        raise _Misfit(f"a {kind.__name__} is needed")
    if len(value) > MAX_ITEMS:
        raise _Misfit(f"more than {MAX_ITEMS} items")
    return value


def _any(value: Any, depth: int = 1) -> Any:
    """Any JSON, checked and left as it is."""
    kind = type(value)
    if kind is list:
        _check_each(enumerate(_sized(list, value)), "[%s]", depth)
    elif kind is dict:
        for key in _sized(dict, value):
            _text(key)
        _check_each(value.items(), ".%s", depth)
    elif kind in _SCALARS:
        _SCALARS[kind](value)
    elif value is not None:
        raise _Misfit("JSON is needed")
    return value


def _check_each(items: Iterable[tuple[Any, Any]], step: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Misfit("nested too deeply")
    for name, item in items:
        try:
            _any(item, depth + 1)
        except _Misfit as misfit:
            raise misfit.inside(step % name) from None


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _Misfit("str is needed")
    if len(value) > MAX_STRING:
        raise _Misfit(f"longer than {MAX_STRING} characters")
    # JSON can carry lone surrogates; whoever prints or stores such text later would fail.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Misfit("not valid Unicode") from None
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise _Misfit("int is needed")
    if abs(value) > MAX_INTEGER:
        raise _Misfit("out of range")
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise _Misfit("bool is needed")
    return value


def _number(value: Any) -> float:
    if type(value) is int:
        return float(_integer(value))
    if type(value) is not float:
        raise _Misfit("float is needed")
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, str) and len(value) <= MAX_STRING:
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:  # binascii.Error, or text that is not ASCII
            pass
    raise _Misfit("base64 is needed")


_SCALARS: dict[Any, _Decoder] = {
    str: _text,
    int: _integer,
    bool: _truth,
    float: _number,
    bytes: _bytes,
}
