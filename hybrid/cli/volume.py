"""hybrid volume ls, inspect, create, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from hybrid.cli import format
from hybrid.cli.app import new, verb
from hybrid.cli.connect import engine
from hybrid.cli.containers import Filters, Format, Quiet, emit, filters, show_objects
from hybrid.cli.flags import labels
from hybrid.cli.lifecycle import each
from hybrid.client.values import pairs

app = new(help="Volumes: data that outlives containers.")

Names = Annotated[list[str], typer.Argument(metavar="VOLUME...")]


@verb(app, "ls", "hybrid volume ls", "hybrid volume ls -q --filter label=backup")
def ls(
    ctx: typer.Context, filter: Filters = None, quiet: Quiet = False, format_: Format = None
) -> None:
    """List volumes."""
    volumes = engine(ctx).volumes(filters(filter))
    rows = [(volume.get("Driver", ""), volume["Name"]) for volume in volumes]
    objects = [{"Driver": driver, "Name": name} for driver, name in rows]
    names = [name for _, name in rows]
    emit(format.listing(format_, quiet, ("DRIVER", "VOLUME NAME"), rows, objects, names))


@verb(app, "inspect", "hybrid volume inspect data")
def inspect(ctx: typer.Context, names: Names) -> int:
    """Show everything that is known about volumes."""
    return show_objects(names, engine(ctx).volume)


@verb(app, "create", "hybrid volume create data")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[VOLUME]")] = "",
    driver: Annotated[str, typer.Option("--driver", "-d", help="Driver.")] = "local",
    label: Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE.")] = None,
    opt: Annotated[list[str] | None, typer.Option("--opt", "-o", help="NAME=VALUE.")] = None,
) -> None:
    """Create a volume."""
    body = {
        "Name": name,
        "Driver": driver,
        "Labels": labels(label or ()),
        "DriverOpts": pairs(opt or (), "driver option"),
    }
    print(engine(ctx).create_volume(body)["Name"])


@verb(app, "rm", "hybrid volume rm data")
def rm(
    ctx: typer.Context,
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="Missing is no error.")] = False,
) -> int:
    """Remove volumes and what is in them."""
    client = engine(ctx)
    return each(names, "removing", lambda name: client.remove_volume(name, force=force))
