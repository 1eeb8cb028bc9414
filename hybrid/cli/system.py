"""hybrid info, hybrid version."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from hybrid.cli import format
from hybrid.cli.app import new, verb
from hybrid.cli.connect import engine
from hybrid.cli.main import fail
from hybrid.cli.version import VERSION
from hybrid.errors import HybridError, InvalidInput

app = new()

Format = Annotated[str | None, typer.Option("--format", help="json, instead of text.")]


@verb(app, "info", "hybrid info", "hybrid info --format json | jq .Hybrid")
def info(ctx: typer.Context, format_: Format = None) -> None:
    """Show what the daemon and this host can do."""
    answer = engine(ctx).info()
    if _as_json(format_):
        print(json.dumps(answer))
        return
    own = answer.pop("Hybrid") or {}
    running = answer.get("ContainersRunning", 0)
    summary = {
        "Containers": f"{answer.get('Containers', 0)} ({running} running)",
        "Images": answer.get("Images", 0),
        "Server version": answer.get("ServerVersion", ""),
        "Operating system": answer.get("OperatingSystem", ""),
        "Kernel": answer.get("KernelVersion", ""),
        "Architecture": answer.get("Architecture", ""),
        "CPUs": answer.get("NCPU", 0),
        "Memory": format.size(answer.get("MemTotal", 0)),
        "Cgroup": answer.get("CgroupVersion", ""),
        "Root": answer.get("DockerRootDir", ""),
        "hybrid": own,
        "Warnings": answer.get("Warnings") or [],
    }
    print("\n".join(_lines(summary)))


def _lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested values as an indented outline, in the style of ``docker info``."""
    for name, value in values.items():
        match value:
            case dict():
                yield f"{indent}{name}:"
                yield from _lines(value, f"{indent} ")
            case list():
                yield f"{indent}{name}: {'none' if not value else ''}".rstrip()
                yield from (f"{indent} {format.printable(str(item))}" for item in value)
            case _:
                yield f"{indent}{name}: {format.printable(str(value))}"


@verb(app, "version", "hybrid version", "hybrid version --format json")
def version(ctx: typer.Context, format_: Format = None) -> int:
    """Show client and server versions."""
    client = {"Version": VERSION, "Python": platform.python_version(), "Os": "linux"}
    server: dict[str, Any] | None
    error = ""
    try:
        server = engine(ctx, start=False).version()
    except HybridError as failed:
        server, error = None, failed.message
    if _as_json(format_):
        print(json.dumps({"Client": client, "Server": server}))
    else:
        print("\n".join(_lines({"Client": client})))
        if server:
            shown = ("Version", "ApiVersion", "MinAPIVersion", "KernelVersion", "Os", "Arch")
            print("\n".join(_lines({"Server": {k: server[k] for k in shown if k in server}})))
    return fail(error) if error else 0


def _as_json(style: str | None) -> bool:
    if style not in (None, "json"):
        raise InvalidInput(f"unknown format {style!r}: json (no Go templates: use jq)")
    return style == "json"
