"""hybrid template ls, build, rm: the frozen guests that new ones are cloned from."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from hybrid.cli import format
from hybrid.cli.app import new, verb
from hybrid.cli.connect import engine
from hybrid.cli.containers import Format, Quiet, emit
from hybrid.cli.flags import size
from hybrid.cli.lifecycle import each
from hybrid.cli.progress import progress

app = new(help="Templates: frozen guests that new ones are cloned from.")

Keys = Annotated[list[str], typer.Argument(metavar="TEMPLATE...")]


@verb(app, "ls", "hybrid template ls", "hybrid template ls --format json")
def ls(ctx: typer.Context, quiet: Quiet = False, format_: Format = None) -> None:
    """List templates."""
    templates, now = engine(ctx).templates(), time.time()
    rows = [
        (
            template["Key"],
            template["Profile"],
            str(template["Cpus"]),
            format.size(template["Memory"]),
            format.age(template["Created"], now),
            format.size(template["Used"]),
            str(template["Clones"]),
            str(template["Ready"]),
        )
        for template in templates
    ]
    headings = ("TEMPLATE", "PROFILE", "CPUS", "MEMORY", "CREATED", "USED", "CLONES", "READY")
    emit(format.listing(format_, quiet, headings, rows, templates, [row[0] for row in rows]))


@verb(app, "build", "hybrid template build", "hybrid template build --profile large")
def build(
    ctx: typer.Context,
    profile: Annotated[str, typer.Option("--profile", help="Machine shape.")] = "default",
    memory: Annotated[str, typer.Option("--memory", "-m", help="Such as 512m.")] = "",
    cpus: Annotated[int, typer.Option("--cpus", help="Number of CPUs.")] = 0,
) -> None:
    """Make the template of a machine shape now, instead of at the first container that needs it."""
    body: dict[str, Any] = {"Profile": profile}
    if memory:
        body["Memory"] = size(memory, "--memory")
    if cpus:
        body["Cpus"] = cpus
    with progress(f"booting a guest of profile {profile}"):
        template = engine(ctx).build_template(body)
    print(template["Key"])


@verb(app, "rm", "hybrid template rm 3f2a91c04b7d")
def rm(ctx: typer.Context, keys: Keys) -> int:
    """Remove templates; guests that were cloned from them run on."""
    return each(keys, "removing", engine(ctx).remove_template)
