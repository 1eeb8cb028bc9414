"""hybrid ps, hybrid inspect."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from hybrid.cli import format
from hybrid.cli.app import new, verb
from hybrid.cli.connect import complete_container, engine
from hybrid.cli.main import fail
from hybrid.client.engine import Engine
from hybrid.errors import InvalidInput, NotFound

app = new()

# Shared by every listing.
Format = Annotated[
    str | None, typer.Option("--format", help="table, or json: one JSON object a line.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only ids or names, one a line.")]
NoTrunc = Annotated[bool, typer.Option("--no-trunc", help="Do not cut ids and commands.")]
Filters = Annotated[
    list[str] | None, typer.Option("--filter", "-f", metavar="NAME=VALUE", help="Show only these.")
]


@verb(
    app,
    "ps",
    "hybrid ps",
    "hybrid ps -a --filter status=exited",
    "hybrid ps -q | xargs hybrid stop",
    "hybrid ps --format json | jq .Names",
)
def ps(
    ctx: typer.Context,
    all: Annotated[bool, typer.Option("--all", "-a", help="Stopped ones too.")] = False,
    latest: Annotated[bool, typer.Option("--latest", "-l", help="Only the newest.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", help="Only the N newest.")] = 0,
    filter: Filters = None,
    quiet: Quiet = False,
    no_trunc: NoTrunc = False,
    format_: Format = None,
) -> None:
    """List containers."""
    client = engine(ctx)
    newest = 1 if latest else last
    listed = client.containers(all=all or bool(newest), filters=filters(filter))
    listed = listed[:newest] if newest else listed
    shown = str if no_trunc else format.short_id
    output = format.listing(
        format_,
        quiet,
        (
            "CONTAINER ID",
            "IMAGE",
            "COMMAND",
            "CREATED",
            "STATUS",
            "PORTS",
            "NAMES",
            "ISOLATION",
            "MACHINE",
        ),
        [_row(item, whole=no_trunc) for item in listed],
        [_object(item) for item in listed],
        [shown(item["Id"]) for item in listed],
    )
    emit(output)


def _row(item: Mapping[str, Any], *, whole: bool) -> Sequence[str]:
    hybrid = item.get("Hybrid") or {}
    return (
        item["Id"] if whole else format.short_id(item["Id"]),
        item.get("Image", ""),
        format.command_text(item.get("Command"), whole=whole),
        format.age(item.get("Created", 0), time.time()),
        item.get("Status", ""),
        format.ports_text(item.get("Ports") or ()),
        _names(item),
        str(hybrid.get("Isolation", "")),
        str(hybrid.get("Machine", "")),
    )


def _object(item: Mapping[str, Any]) -> dict[str, Any]:
    """docker's keys for ``ps --format json``, then hybrid's."""
    hybrid = item.get("Hybrid") or {}
    labels = item.get("Labels") or {}
    return {
        "ID": format.short_id(item["Id"]),
        "Names": _names(item),
        "Image": item.get("Image", ""),
        "Command": format.command_text(item.get("Command"), whole=False),
        "CreatedAt": item.get("Created", 0),
        "RunningFor": format.age(item.get("Created", 0), time.time()),
        "State": item.get("State", ""),
        "Status": item.get("Status", ""),
        "Ports": format.ports_text(item.get("Ports") or ()),
        "Labels": ",".join(f"{name}={value}" for name, value in labels.items()),
        "Networks": ",".join((item.get("NetworkSettings") or {}).get("Networks") or {}),
        "Isolation": hybrid.get("Isolation", ""),
        "Machine": hybrid.get("Machine", ""),
    }


def _names(item: Mapping[str, Any]) -> str:
    return ",".join(name.lstrip("/") for name in item.get("Names") or ())


@verb(
    app,
    "inspect",
    "hybrid inspect db",
    "hybrid inspect --type image busybox",
    "hybrid inspect db | jq '.[0].Hybrid'",
)
def inspect(
    ctx: typer.Context,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", autocompletion=complete_container)
    ],
    type: Annotated[
        str, typer.Option("--type", help="container, image, network, volume or machine.")
    ] = "",
    format_: Format = None,
) -> int:
    """Show everything that is known about containers, images, networks, volumes or machines."""
    if format_ not in (None, "json"):
        raise InvalidInput(f"unknown format {format_!r}: json (no Go templates: use jq)")
    client = engine(ctx)
    kinds = lookups(client)
    if type and type not in kinds:
        raise InvalidInput(f"unknown type {type!r}: one of {', '.join(kinds)}")
    wanted = {type: kinds[type]} if type else kinds
    return show_objects(names, lambda name: _find(name, wanted), compact=format_ == "json")


def lookups(client: Engine) -> dict[str, Callable[[str], dict[str, Any]]]:
    """What can be inspected, in the order in which a bare name is looked up."""
    return {
        "container": client.container,
        "image": client.image,
        "network": client.network,
        "volume": client.volume,
        "machine": client.machine,
    }


def _find(name: str, kinds: Mapping[str, Callable[[str], dict[str, Any]]]) -> dict[str, Any]:
    error: NotFound | None = None
    for lookup in kinds.values():
        try:
            return lookup(name)
        except NotFound as missing:
            error = error or missing
    if len(kinds) == 1 and error:
        raise error
    raise NotFound(f"No such object: {name}")


def show_objects(
    names: Sequence[str], lookup: Callable[[str], dict[str, Any]], *, compact: bool = False
) -> int:
    """Prints what was found as one JSON array, and what was not as error lines; docker's exit
    code."""
    found, code = [], 0
    for name in names:
        try:
            found.append(lookup(name))
        except NotFound as error:
            code = fail(error.message)
    print(json.dumps(found, indent=None if compact else 4))
    return code


def filters(given: Sequence[str] | None) -> dict[str, list[str]]:
    """``--filter name=value`` flags as the API has them."""
    result: dict[str, list[str]] = {}
    for item in given or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise InvalidInput(f"invalid filter {item!r}: expected NAME=VALUE")
        result.setdefault(name.strip().lower(), []).append(value.strip())
    return result


def emit(output: str) -> None:
    """Prints a listing; an empty one prints nothing."""
    if output:
        print(output)
