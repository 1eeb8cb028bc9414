from __future__ import annotations

import pytest

from hybrid.wire.value import Value, value


@value
class Point(Value):
    x: int
    y: int = 0


@value
class Size(Value):
    x: int
    y: int = 0


def test_values_of_one_class_with_equal_fields_are_equal() -> None:
    assert Point(1) == Point(1, 0)
    assert Point(1) != Point(2)
    assert Point(1) != Size(1)
    assert len({Point(1), Point(1), Size(1)}) == 2


def test_a_value_shows_its_fields() -> None:
    assert repr(Point(1, y=2)) == "Point(x=1, y=2)"


def test_there_are_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Point(1).z = 3  # type: ignore[attr-defined]
