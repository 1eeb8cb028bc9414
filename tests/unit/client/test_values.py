from __future__ import annotations

import pytest

from hybrid.client.values import nano_cpus, pairs, restart_policy, ulimit
from hybrid.errors import InvalidInput
from hybrid.units import parse_duration, parse_size


def test_restart_policies() -> None:
    assert restart_policy("") == {"Name": "no", "MaximumRetryCount": 0}
    assert restart_policy("on-failure:3") == {"Name": "on-failure", "MaximumRetryCount": 3}
    for text in ("sometimes", "always:3", "on-failure:x", "on-failure:"):
        with pytest.raises(InvalidInput):
            restart_policy(text)


def test_cpus() -> None:
    assert nano_cpus("1.5") == 1_500_000_000
    for text in ("0", "-1", "x", "nan", "inf"):
        with pytest.raises(InvalidInput):
            nano_cpus(text)


def test_ulimits() -> None:
    assert ulimit("nofile=1:2") == {"Name": "nofile", "Soft": 1, "Hard": 2}
    assert ulimit("nproc=5") == {"Name": "nproc", "Soft": 5, "Hard": 5}
    with pytest.raises(InvalidInput):
        ulimit("nofile")


def test_pairs() -> None:
    assert pairs(["a=b=c"], "x") == {"a": "b=c"}
    for text in ("a", "=b"):
        with pytest.raises(InvalidInput, match="invalid x"):
            pairs([text], "x")


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("0", 0), ("500ms", 5 * 10**8), ("1m30s", 90 * 10**9), ("1.5h", 5400 * 10**9), ("2us", 2000)],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "5", "s", "1d", "1s x", "-1s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


def test_sizes() -> None:
    assert parse_size("1.5g") == 3 << 29
    with pytest.raises(ValueError, match="invalid size"):
        parse_size("1x")
