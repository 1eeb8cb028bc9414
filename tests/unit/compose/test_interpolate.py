from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.compose.interpolate import interpolate, substitute
from hybrid.errors import InvalidInput

ENVIRONMENT = {"SET": "v", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$SET ${SET}", "v v"),
        ("$UNSET|${UNSET}", "|"),
        ("$$SET $${SET}", "$SET ${SET}"),
        ("${UNSET:-d} ${EMPTY:-d} ${SET:-d}", "d d v"),
        ("${UNSET-d} ${EMPTY-d} ${SET-d}", "d  v"),
        ("${UNSET:+r} ${EMPTY:+r} ${SET:+r}", "  r"),
        ("${EMPTY+r}", "r"),
        ("${UNSET:-${SET}-${UNSET:-x}}", "v-x"),
        ("${SET:?gone}", "v"),
        ("${EMPTY?gone}", ""),
        ("a:${UNSET:-b:c}", "a:b:c"),
    ],
)
def test_forms(text: str, expected: str) -> None:
    assert substitute(text, ENVIRONMENT) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("${UNSET?gone away}", "variable UNSET is required: gone away"),
        ("${EMPTY:?}", "variable EMPTY is required"),
        ("$ x", r"write \$\$"),
        ("${SET", "without }"),
        ("${SET!x}", "invalid interpolation"),
        ("${}", "invalid interpolation"),
    ],
)
def test_errors_name_the_place(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=rf"services\.a\.image: .*{says}"):
        interpolate({"services": {"a": {"image": text}}}, ENVIRONMENT)


@given(st.text())
def test_text_without_a_dollar_is_left_alone(text: str) -> None:
    plain = text.replace("$", "")
    assert substitute(plain, ENVIRONMENT) == plain


@given(st.text())
def test_an_escaped_text_comes_back(text: str) -> None:
    assert substitute(text.replace("$", "$$"), ENVIRONMENT) == text


def test_everything_but_strings_is_left_alone() -> None:
    value = {"a": [1, None, True, {"b": "$SET"}]}
    assert interpolate(value, ENVIRONMENT) == {"a": [1, None, True, {"b": "v"}]}
