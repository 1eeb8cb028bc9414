from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import InvalidInput
from hybrid.image.reference import parse

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("hybrid/app", "docker.io/hybrid/app:latest", "hybrid/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x:t", "localhost:5000/x:t", "localhost:5000/x:t"),
        ("reg.example/a/b/c", "reg.example/a/b/c:latest", "reg.example/a/b/c:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("x@" + DIGEST, "docker.io/library/x@" + DIGEST, "x@" + DIGEST),
        ("x:t@" + DIGEST, "docker.io/library/x:t@" + DIGEST, "x:t@" + DIGEST),
        ("a__b/c-d.e", "docker.io/a__b/c-d.e:latest", "a__b/c-d.e:latest"),
    ],
)
def test_names_are_normalised_as_docker_does(text: str, full: str, familiar: str) -> None:
    assert str(parse(text)) == full
    assert parse(text).familiar == familiar
    assert parse(full) == parse(text)


@pytest.mark.parametrize(
    "text",
    ["", ":tag", "a:", "Busybox", "a/B", "a//b", "-a", "a_", "a:" + "t" * 129, "a@sha256:12", "a b",
     "a" * 64, "x@" + "sha512:" + "a" * 128, "docker.io/", "a" * 300],
)  # fmt: skip
def test_what_docker_refuses_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse(text)


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    try:
        ref = parse(text)
    except InvalidInput:
        return
    assert parse(str(ref)) == ref
