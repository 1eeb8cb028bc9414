"""What a measurement says: one figure, the same for all parts. Pure: numbers in, text and JSON out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One figure, with what it is measured against.

    ``value`` and ``peer`` are medians in ``unit``. ``ratio`` is the median of the pairs' value over peer, or the ratio
    of the medians where that is worse: the two are far apart only when the machine was too busy to tell, as when
    ``lowest`` and ``highest`` pair are. ``bar`` is what was promised at most, of the ratio or, where there is no
    peer, of the value. A ``value`` of None could not be measured; then ``note`` says why, and no bar holds.
    """

    name: str
    value: float | None
    unit: str
    against: str = ""
    peer: float | None = None
    ratio: float | None = None
    bar: float | None = None
    runs: int = 0
    lowest: float | None = None
    highest: float | None = None
    note: str = ""

    @property
    def measured(self) -> float | None:
        """What the bar is about."""
        return self.ratio if self.against else self.value

    @property
    def holds(self) -> bool | None:
        """Whether the promise is kept; None: nothing was promised."""
        if self.bar is None:
            return None
        return self.measured is not None and self.measured <= self.bar


def ratio(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    against: str,
    *,
    unit: str = "s",
    allowance: float = 0.0,
    note: str = "",
) -> Figure:
    """The figure of pairs taken in turns. ``allowance`` is taken off ours before the ratio is made."""
    value, peer = statistics.median(ours), statistics.median(theirs)
    pairs = sorted((mine - allowance) / other for mine, other in zip(ours, theirs, strict=True))
    worse = max(statistics.median(pairs), (value - allowance) / peer)
    return Figure(
        name,
        value,
        unit,
        against,
        peer,
        worse,
        runs=len(pairs),
        lowest=pairs[0],
        highest=pairs[-1],
        note=note,
    )


def unmeasured(name: str, against: str, why: str) -> Figure:
    return Figure(name, None, "", against, note=why)


def to_json(part: str, figure: Figure) -> dict[str, Any]:
    entry = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in asdict(figure).items()
    }
    return {**entry, "holds": figure.holds, "part": part}


def from_json(entry: dict[str, Any]) -> Figure:
    return Figure(**{field.name: entry[field.name] for field in fields(Figure)})


def merge(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The new results, and of the old ones those of parts that were not run again."""
    again = {entry["part"] for entry in new}
    return [entry for entry in old if entry["part"] not in again] + new


def table(figures: Sequence[Figure]) -> str:
    """For the terminal and for Markdown alike."""
    heads = ("figure", "measured", "against", "ratio", "at most", "holds", "note")
    rows = [_row(figure) for figure in figures]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, tuple("-" * width for width in widths), *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _row(figure: Figure) -> tuple[str, ...]:
    against = figure.against
    if figure.peer is not None:
        against += f": {number(figure.peer)} {figure.unit}"
    spread = f" ({number(figure.lowest)} to {number(figure.highest)})" if figure.runs > 1 else ""
    return (
        figure.name,
        "not measured" if figure.value is None else f"{number(figure.value)} {figure.unit}",
        against,
        number(figure.ratio) + spread if figure.ratio is not None else "",
        number(figure.bar),
        {None: "", True: "yes", False: "**no**"}[figure.holds],
        figure.note,
    )


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
