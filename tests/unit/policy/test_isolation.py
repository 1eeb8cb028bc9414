from __future__ import annotations

import pytest

from hybrid.errors import InvalidInput
from hybrid.policy.isolation import Isolation, choose, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Isolation("vm")),
        ("default", Isolation("vm")),
        ("vm", Isolation("vm")),
        ("vm:apps", Isolation("shared", "apps")),
        ("container", Isolation("container")),
        ("machine:box-1", Isolation("machine", "box-1")),
    ],
)
def test_words(text: str, expected: Isolation) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["process", "hyperv", "vm:", "vm:a/b", "machine", "machine:", "VM"]
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="invalid isolation"):
        parse(text)


def test_runtime_names_the_same() -> None:
    assert choose("", "hybrid-vm") == Isolation("vm")
    assert choose("", "hybrid-container") == Isolation("container")
    assert choose("container", "") == Isolation("container")


def test_contradictions_and_unknown_runtimes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="contradicts"):
        choose("container", "hybrid-vm")
    with pytest.raises(InvalidInput, match="unknown or invalid runtime name: runc"):
        choose("", "runc")
