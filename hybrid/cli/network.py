"""hybrid network ls, inspect, create, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from hybrid.cli import format
from hybrid.cli.app import new, verb
from hybrid.cli.connect import engine
from hybrid.cli.containers import Filters, Format, NoTrunc, Quiet, emit, filters, show_objects
from hybrid.cli.flags import labels
from hybrid.cli.lifecycle import each

app = new(help="Networks: who can reach whom.")

Names = Annotated[list[str], typer.Argument(metavar="NETWORK...")]


@verb(app, "ls", "hybrid network ls", "hybrid network ls -q")
def ls(
    ctx: typer.Context,
    filter: Filters = None,
    quiet: Quiet = False,
    no_trunc: NoTrunc = False,
    format_: Format = None,
) -> None:
    """List networks."""
    shown = str if no_trunc else format.short_id
    networks = engine(ctx).networks(filters(filter))
    rows, objects = [], []
    for network in networks:
        ipam = (network.get("IPAM") or {}).get("Config") or [{}]
        subnet, internal = str(ipam[0].get("Subnet", "")), bool(network.get("Internal"))
        row = (shown(network["Id"]), network["Name"], network.get("Driver", ""), subnet)
        rows.append((*row, "yes" if internal else "no"))
        names = ("ID", "Name", "Driver", "Subnet")
        objects.append(dict(zip(names, row, strict=True)) | {"Internal": internal})
    headings = ("NETWORK ID", "NAME", "DRIVER", "SUBNET", "INTERNAL")
    emit(format.listing(format_, quiet, headings, rows, objects, [row[0] for row in rows]))


@verb(app, "inspect", "hybrid network inspect bridge")
def inspect(ctx: typer.Context, names: Names) -> int:
    """Show everything that is known about networks."""
    return show_objects(names, engine(ctx).network)


@verb(app, "create", "hybrid network create back --internal")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NETWORK")],
    internal: Annotated[bool, typer.Option("--internal", help="No way out.")] = False,
    subnet: Annotated[str, typer.Option("--subnet", help="Such as 10.9.0.0/24.")] = "",
    gateway: Annotated[str, typer.Option("--gateway", help="Address of the host in it.")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE.")] = None,
) -> None:
    """Create a network."""
    pool = {"Subnet": subnet, "Gateway": gateway}
    config = {key: value for key, value in pool.items() if value}
    body = {
        "Name": name,
        "Driver": "bridge",
        "Internal": internal,
        "Labels": labels(label or ()),
        "IPAM": {"Config": [config] if config else []},
    }
    print(engine(ctx).create_network(body))


@verb(app, "rm", "hybrid network rm back")
def rm(ctx: typer.Context, names: Names) -> int:
    """Remove networks."""
    return each(names, "removing", engine(ctx).remove_network)
