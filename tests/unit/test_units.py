"""Durations in words: the daemon's and the client's are the same."""

from __future__ import annotations

import pytest

from hybrid.units import human_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"),
        (0.4, "Less than a second"),
        (1, "1 second"),
        (1.9, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (120, "2 minutes"),
        (180, "3 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (10000, "3 hours"),
        (86400 * 3, "3 days"),
        (86400 * 20, "2 weeks"),
        (86400 * 21, "3 weeks"),
        (86400 * 90, "3 months"),
        (86400 * 100, "3 months"),
        (86400 * 800, "2 years"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text
