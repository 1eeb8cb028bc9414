from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import InvalidInput
from hybrid.wire import messages
from hybrid.wire.catalogue import ANSWERS, EVENTS, REQUESTS
from hybrid.wire.codec import MAX_DEPTH, MAX_ITEMS, decode, plain
from hybrid.wire.messages import CreateContainer, Source
from hybrid.wire.value import Request


def encode(message: object) -> Any:
    """The JSON that goes over the link."""
    return json.loads(json.dumps(message, default=plain))


@pytest.mark.parametrize("request_type", REQUESTS.values(), ids=REQUESTS.keys())
def test_the_answer_that_the_type_checker_sees_is_the_one_at_run_time(
    request_type: type[Request[Any]],
) -> None:
    (base,) = request_type.__orig_bases__  # type: ignore[attr-defined]
    (answer,) = typing.get_args(base)
    assert answer.__forward_arg__ == ANSWERS[request_type].__name__


def test_all_requests_are_in_the_table() -> None:
    found = {
        value
        for value in vars(messages).values()
        if isinstance(value, type) and issubclass(value, Request) and value is not Request
    }
    assert found == set(ANSWERS)


simple: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=5),
    int: st.integers(-(1 << 63), 1 << 63),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bytes: st.binary(max_size=9),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of an annotation that messages use."""
    if hint in simple:
        return simple[hint]
    if dataclasses.is_dataclass(hint):
        return instances(hint)  # type: ignore[arg-type]
    if hint is Any:
        return st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=2)
    return st.one_of([st.none() if one is type(None) else values(one) for one in arguments])


def instances(cls: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{f.name: values(hints[f.name]) for f in dataclasses.fields(cls)})


@given(st.data())
def test_every_message_survives_the_codec(data: st.DataObject) -> None:
    classes = [*ANSWERS, *set(ANSWERS.values()), *EVENTS.values(), messages.Hello]
    cls = data.draw(st.sampled_from(sorted(classes, key=lambda one: one.__name__)))
    message = data.draw(instances(cls))
    assert decode(cls, encode(message)) == message


GOOD = encode(CreateContainer("c", {}, [Source("disk", "l0")], None, None, "none"))

BAD = {
    "unknown field": (GOOD | {"extra": 1}, "unknown field 'extra'"),
    "missing field": ({"container": "c"}, "field 'config' is missing"),
    "wrong type": (GOOD | {"container": 5}, "container: str is needed"),
    "number for a truth": (GOOD | {"stdin": 1}, "stdin: bool is needed"),
    "truth for a number": (GOOD | {"rows": True}, "rows: int is needed"),
    "not one of the choices": (GOOD | {"network": "moon"}, "network: must be one of"),
    "unhashable choice": (GOOD | {"network": []}, "network: must be one of"),
    "bad list item": (GOOD | {"layers": [{"kind": "disk"}]}, r"layers\[0\]: field 'name'"),
    "too many items": (GOOD | {"layers": [{}] * (MAX_ITEMS + 1)}, "more than"),
    "integer out of range": (GOOD | {"rows": 1 << 70}, "rows: out of range"),
    "lone surrogate": (GOOD | {"container": "\ud800"}, "container: not valid Unicode"),
    "no object": ([], "an object is needed"),
}


@pytest.mark.parametrize(("value", "text"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused_by_field(value: object, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        decode(CreateContainer, value)


def test_nesting_is_bounded() -> None:
    deep: Any = {}
    for _ in range(MAX_DEPTH + 2):
        deep = {"x": deep}
    with pytest.raises(InvalidInput, match="nested too deeply"):
        decode(CreateContainer, GOOD | {"config": deep})


@pytest.mark.parametrize("value", ["a", "a===", 5, "ä", "\ud800"])
def test_bytes_are_base64(value: object) -> None:
    with pytest.raises(InvalidInput, match="base64 is needed"):
        decode(
            messages.Configure,
            encode(messages.Configure("m", "h", 0, b"", False)) | {"entropy": value},
        )
