"""The quick way round urllib quotes as urllib does."""

from __future__ import annotations

from urllib import parse

from hypothesis import given
from hypothesis import strategies as st

from hybrid.client.quoting import quote


@given(st.text(), st.sampled_from(["", "/:@", "/:@%"]))
def test_quotes_as_urllib_does(text: str, safe: str) -> None:
    assert quote(text, safe) == parse.quote(text, safe)
