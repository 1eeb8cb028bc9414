"""hybrid logs."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from hybrid.cli import format
from hybrid.cli.app import new, verb
from hybrid.cli.connect import complete_container, engine
from hybrid.cli.session import write
from hybrid.client.frames import STDERR, Demultiplexer
from hybrid.errors import InvalidInput
from hybrid.units import parse_duration

app = new()


@verb(
    app,
    "logs",
    "hybrid logs -f web",
    "hybrid logs --tail 20 --timestamps db",
    "hybrid logs --since 10m web",
)
def logs(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="CONTAINER", autocompletion=complete_container)],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it comes.")] = False,
    tail: Annotated[str, typer.Option("--tail", "-n", help="Lines from the end.")] = "all",
    since: Annotated[str, typer.Option("--since", help="From this time, or 10m ago.")] = "",
    until: Annotated[str, typer.Option("--until", help="Up to this time, or 10m ago.")] = "",
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Show times.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Show extra attributes.")] = False,
) -> None:
    """Show what a container wrote."""
    client = engine(ctx)
    tty = bool(client.container(name)["Config"].get("Tty"))
    now = time.time()
    response = client.logs(
        name,
        {
            "stdout": True,
            "stderr": True,
            "follow": follow,
            "tail": tail,
            "since": moment(since, now),
            "until": moment(until, now),
            "timestamps": timestamps,
            "details": details or None,
        },
    )
    frames = Demultiplexer()
    for block in response.blocks():
        if tty:
            write(1, block)
            continue
        for stream, piece in frames.receive(block):
            write(2 if stream >= STDERR else 1, piece)


def moment(text: str, now: float) -> str | None:
    """Unix time, as the API wants it, of ``10m`` (ago), a Unix time or an RFC 3339 time."""
    if not text:
        return None
    if re.fullmatch(r"\d+(\.\d{1,9})?", text):
        return text
    try:
        return f"{now - parse_duration(text) / 1e9:.9f}"
    except ValueError:
        if then := format.timestamp(text):
            return f"{then:.9f}"
    raise InvalidInput(f"invalid time {text!r}: a duration such as 10m, or 2026-01-31T12:00:00Z")
