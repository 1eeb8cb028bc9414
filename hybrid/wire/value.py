"""Dataclasses that are cheap to define: compared, hashed and shown by code that is written once.

``dataclass(frozen=True)`` generates and compiles six methods for each class; with fifty messages
that was a third of what the agent imports, at each boot of a guest. Immutable for the type checker
only.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Generic, TypeVar, dataclass_transform

T = TypeVar("T")
AnswerT = TypeVar("AnswerT", covariant=True)


class Value:
    """Base of all values: two of one class with equal fields are equal."""

    __slots__ = ()

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, Value)
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        names = self.__match_args__  # type: ignore[attr-defined]
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({fields})"


class Request(Value, Generic[AnswerT]):
    """Base of all requests: names the class of the answer for the type checker (``catalogue.ANSWERS`` does so at
    run time).
    """

    __slots__ = ()


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def value(cls: type[T]) -> type[T]:
    """Makes a subclass of ``Value`` a dataclass with slots."""
    return dataclasses.dataclass(eq=False, repr=False, slots=True)(cls)
