"""A figure is the worse of two ways to count, its promise holds or not, and nothing unmeasured is left out."""

from __future__ import annotations

import contextlib
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import HERE, measure, write
from benchmarks.bench import Bench, Options
from benchmarks.chart import draw
from benchmarks.figures import Figure, from_json, merge, ratio, table, to_json, unmeasured
from benchmarks.paired import Failed, command, output, turns
from benchmarks.parts import PARTS, Part

SVG = "{http://www.w3.org/2000/svg}"


def test_the_ratio_is_the_worse_of_the_two_ways_to_count() -> None:
    pairs_worse = ratio("a", [1.0, 2.0, 9.0], [1.0, 1.0, 9.0], "peer")
    assert (pairs_worse.value, pairs_worse.peer, pairs_worse.ratio) == (2.0, 1.0, 2.0)
    assert (pairs_worse.lowest, pairs_worse.highest, pairs_worse.runs) == (1.0, 2.0, 3)
    medians_worse = ratio("b", [1.0, 2.0, 3.0], [2.0, 0.5, 1.0], "peer")
    assert medians_worse.ratio == 3.0
    assert ratio("c", [1.0, 3.0, 2.0], [4.0, 1.0, 2.0], "peer").ratio == 1.0


def test_an_allowance_is_taken_off_ours_alone() -> None:
    figure = ratio("a", [3.0, 3.0], [2.0, 2.0], "peer", allowance=1.0)
    assert (figure.value, figure.ratio) == (3.0, 1.0)


def test_pairs_have_two_sides() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio("a", [1.0, 2.0], [1.0], "peer")


def test_a_bar_is_about_the_ratio_where_there_is_a_peer_else_about_the_value() -> None:
    against = replace(ratio("a", [3.0], [2.0], "peer"), bar=1.5)
    assert against.holds is True
    assert replace(against, bar=1.49).holds is False
    assert replace(against, bar=None).holds is None
    assert Figure("b", 39.0, "MiB", bar=40.0).holds is True
    assert Figure("b", 41.0, "MiB", bar=40.0).holds is False


def test_what_could_not_be_measured_does_not_hold_and_says_why() -> None:
    figure = replace(unmeasured("a", "peer", "peer: not installed"), bar=1.0)
    assert figure.holds is False
    (*_, row) = table([figure]).splitlines()
    assert [cell.strip() for cell in row.split("|")][2:] == [
        "not measured",
        "peer",
        "",
        "1",
        "**no**",
        "peer: not installed",
        "",
    ]


def test_results_survive_their_file() -> None:
    figure = replace(ratio("a", [3.0], [2.0], "peer", note="n"), bar=1.0)
    entry = json.loads(json.dumps(to_json("part", figure)))
    assert from_json(entry) == figure
    assert (entry["holds"], entry["part"]) == (False, "part")
    assert {"name", "value", "unit", "against", "ratio", "bar", "holds"} <= entry.keys()


def test_a_part_that_is_run_again_replaces_its_own_figures_only() -> None:
    old = [to_json("p", Figure("a", 1.0, "s")), to_json("q", Figure("b", 2.0, "s"))]
    new = [to_json("p", Figure("c", 3.0, "s"))]
    assert [entry["name"] for entry in merge(old, new)] == ["b", "c"]


def test_sides_take_turns_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str, times: Iterator[float]) -> float:
        calls.append(name)
        return next(times)

    ours, theirs = iter([9.0, 1.0, 2.0]), iter([9.0, 3.0, 4.0])
    sides = {"ours": lambda: side("ours", ours), "theirs": lambda: side("theirs", theirs)}
    found = turns(sides, 2, settle=lambda: calls.append("rest"))
    assert found == {"ours": [1.0, 2.0], "theirs": [3.0, 4.0]}
    assert calls == ["rest", "ours", "rest", "theirs"] * 3


def test_a_command_that_fails_is_no_measurement() -> None:
    assert command(["true"])() > 0
    with pytest.raises(Failed, match="sh … echo words >&2; exit 3: exit 3: words"):
        output(["sh", "-c", "echo words >&2; exit 3"])


def test_a_part_that_breaks_still_reports_what_it_promised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(_: Bench) -> Iterator[Figure]:
        yield Figure("first", 1.0, "s")
        raise Failed("no such engine")

    with contextlib.ExitStack() as stack:
        bench = Bench(Options(), stack)
        found = list(measure(Part(broken, {"first": 2.0, "second": 1.0}), bench))
    assert [(one.name, one.bar, one.holds) for one in found] == [
        ("first", 2.0, True),
        ("second", 1.0, False),
    ]
    assert found[1].note == "Failed: no such engine"
    assert "no such engine" in capsys.readouterr().err


def test_the_chart_has_a_bar_for_each_promise() -> None:
    figures = [
        replace(ratio("held", [1.0], [2.0], "a <peer>"), bar=1.0),
        replace(ratio("missed", [9.0], [1.0], "peer"), bar=1.0),
        replace(unmeasured("absent", "peer", "why"), bar=1.0),
        Figure("not promised", 1.0, "s"),
    ]
    tree = ElementTree.fromstring(draw(figures))
    words = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"held", "missed", "absent", "not measured"} <= set(words)
    assert "not promised" not in words
    assert "0.5, at most 1 of a <peer>" in words
    kinds = [one.get("class") for one in tree.iter(f"{SVG}rect")]
    assert kinds == ["sheet", "yes", "no"]


def test_promises_have_names_of_their_own() -> None:
    names = [name for part in PARTS.values() for name in part.bars]
    assert len(names) == len(set(names))


def test_what_is_committed_is_what_the_results_say(tmp_path: Path) -> None:
    results = json.loads((HERE / "results.json").read_text())
    write(results, tmp_path)
    for name in ("results.json", "results.md", "chart.svg"):
        assert (tmp_path / name).read_text() == (HERE / name).read_text(), name
    for entry in results:
        assert from_json(entry).holds == entry["holds"]
        assert PARTS[entry["part"]].bars.get(entry["name"]) == entry["bar"]


def test_every_promise_is_among_the_committed_results() -> None:
    results = json.loads((HERE / "results.json").read_text())
    promised = {name for part in PARTS.values() for name in part.bars}
    assert promised <= {entry["name"] for entry in results}
