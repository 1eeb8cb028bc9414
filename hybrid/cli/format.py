"""What listings look like: tables, ages, sizes, ports. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hybrid.errors import InvalidInput
from hybrid.units import human_duration

GAP = "   "
ID_LENGTH = 12
COMMAND_LENGTH = 20
_FRACTION = re.compile(r"\.\d+")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], width: int = 0) -> str:
    """Columns as wide as their widest cell, three spaces apart, as docker prints them.

    Lines longer than ``width`` (0: any) are cut, with an ellipsis.
    """
    # What comes from images and containers may hold escape sequences: they stop here.
    cells = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    lines = (
        GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
    return "\n".join(f"{line[: width - 1]}…" if 0 < width < len(line) else line for line in lines)


def printable(text: str) -> str:
    """``text`` with control characters escaped, fit for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listing(
    style: str | None,
    quiet: bool,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    objects: Sequence[Mapping[str, Any]],
    names: Sequence[str],
) -> str:
    """A listing as asked: a table, ``--quiet`` names one a line, or ``--format json`` one object
    a line."""
    if style not in (None, "", "table", "json"):
        raise InvalidInput(
            f"unknown format {style!r}: table or json (no Go templates: filter the json with jq)"
        )
    if quiet:
        return "\n".join(names)
    if style == "json":
        return "\n".join(json.dumps(item) for item in objects)
    return table(headings, rows)


def age(moment: float | str, now: float) -> str:
    """How long ago a Unix time or an RFC 3339 time was."""
    then = moment if isinstance(moment, int | float) else timestamp(moment)
    return f"{human_duration(max(0.0, now - then))} ago"


def timestamp(text: str) -> float:
    """Unix time of an RFC 3339 time with up to nanoseconds; 0 when it is none."""
    try:
        moment = datetime.fromisoformat(_FRACTION.sub(lambda found: found[0][:7], text))
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def size(count: int | float) -> str:
    """Bytes in docker's decimal units with three significant digits: ``1.23MB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g}{unit}"
        amount /= 1000
    return f"{amount:.3g}TB"


def short_id(identity: str) -> str:
    """The first 12 digits, without the digest's algorithm."""
    return identity.removeprefix("sha256:")[:ID_LENGTH]


def command_text(command: Sequence[str] | str | None, *, whole: bool) -> str:
    """A command as ``ps`` shows it: quoted, cut to 20 characters."""
    text = command if isinstance(command, str) else shlex.join(command or ())
    if not whole and len(text) > COMMAND_LENGTH:
        text = f"{text[: COMMAND_LENGTH - 1]}…"
    return f'"{text}"'


def ports_text(ports: Iterable[Mapping[str, Any]]) -> str:
    """The PORTS column from ``ps`` entries."""
    shown = []
    for port in ports:
        inside = f"{port['PrivatePort']}/{port['Type']}"
        if not port.get("PublicPort"):
            shown.append(inside)
            continue
        address = str(port.get("IP") or "0.0.0.0")
        host = f"[{address}]" if ":" in address else address
        shown.append(f"{host}:{port['PublicPort']}->{inside}")
    return ", ".join(sorted(set(shown)))


def ready_after(value: object) -> str:
    """Seconds from request to running, as ``1.83s``; a dash when it is not known."""
    return f"{value:.2f}s" if isinstance(value, int | float) and value > 0 else "-"
