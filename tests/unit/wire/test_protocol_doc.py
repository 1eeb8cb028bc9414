"""docs/agent-protocol.md names every message, with its answer, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from hybrid.wire.catalogue import ANSWERS, EVENTS
from hybrid.wire.frame import FrameType
from hybrid.wire.messages import VERSION

DOC = (Path(__file__).parents[3] / "docs/agent-protocol.md").read_text()


def test_requests_and_their_answers() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", DOC, re.MULTILINE)
    assert rows == [(request.__name__, answer.__name__) for request, answer in ANSWERS.items()]


def test_events() -> None:
    assert re.findall(r"^\| `(\w+)` \| [^`]", DOC, re.MULTILINE) == list(EVENTS)


def test_frames_and_version() -> None:
    rows = re.findall(r"^\| (\d) \| ([A-Z]+) \|", DOC, re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == [(t.value, t.name) for t in FrameType]
    assert f"Version {VERSION}." in DOC
