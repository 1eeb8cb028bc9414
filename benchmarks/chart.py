"""The chart of the promises: how much of what its bar allows each figure takes. Pure.

python -m benchmarks.chart benchmarks/results.json > benchmarks/chart.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks.figures import Figure, from_json, number

WIDTH, ROW, TOP = 980, 30, 64
LEFT, SCALE = 230, 250  # where the bars begin; the length of a bar that takes all that is allowed
MOST = 1.5  # longer bars are cut here, and their numbers tell
STYLE = """\
    text { fill: #1f2937; }
    .t { font-weight: 600; font-size: 16px; }
    .s { font-size: 12px; fill: #4b5563; }
    .sheet { fill: #ffffff; }
    .yes { fill: #2c8a43; }
    .no { fill: #c2571a; }
    .bar { stroke: #1d5fa8; stroke-width: 2; stroke-dasharray: 4 3; }"""


def draw(figures: Sequence[Figure]) -> str:
    """The SVG: a bar for each figure that has a promise; the dashed line is where promises end."""
    promised = [figure for figure in figures if figure.bar]
    height = TOP + ROW * len(promised) + 16
    edge = LEFT + SCALE
    title = "Measured, as parts of what was promised"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="system-ui, \'DejaVu Sans\', sans-serif" font-size="14"'
        f' role="img" aria-label="{title}">',
        f"  <style>\n{STYLE}\n  </style>",
        f'  <rect class="sheet" width="{WIDTH}" height="{height}" rx="10"/>',
        f'  <text class="t" x="20" y="30">{title}</text>',
        f'  <text class="s" x="{edge}" y="50" text-anchor="middle">all that is allowed</text>',
    ]
    for place, figure in enumerate(promised):
        lines += _row(figure, TOP + ROW * place)
    lines.append(f'  <path class="bar" d="M{edge} {TOP - 6}V{height - 12}"/>')
    return "\n".join([*lines, "</svg>", ""])


def _row(figure: Figure, top: int) -> list[str]:
    middle = top + ROW // 2 + 1
    name = f'  <text x="{LEFT - 10}" y="{middle}" text-anchor="end">{escape(figure.name)}</text>'
    if figure.measured is None or figure.bar is None:
        return [name, _words(LEFT + 6, middle, "not measured")]
    length = round(SCALE * min(figure.measured / figure.bar, MOST))
    kind = "yes" if figure.holds else "no"
    rectangle = (
        f'  <rect class="{kind}" x="{LEFT}" y="{top}" width="{length}" height="{ROW - 10}"/>'
    )
    unit = "" if figure.against else f" {figure.unit}"
    words = f"{number(figure.measured)}{unit}, at most {number(figure.bar)}{unit}"
    if figure.against:
        words += f" of {figure.against.partition(';')[0]}"
    return [name, rectangle, _words(LEFT + round(SCALE * MOST) + 12, middle, words)]


def _words(x: int, y: int, words: str) -> str:
    return f'  <text class="s" x="{x}" y="{y}">{escape(words)}</text>'


if __name__ == "__main__":
    entries = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(draw([from_json(entry) for entry in entries]))
