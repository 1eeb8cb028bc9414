"""hybrid guest: the image that machines boot."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from hybrid.cli.app import Settings, new, verb
from hybrid.cli.progress import progress
from hybrid.client.address import local_root
from hybrid.paths import Paths

app = new(help="The guest image: kernel, initramfs and root of every machine.")


@app.callback()
def guest() -> None:
    """The guest image: kernel, initramfs and root of every machine."""


@verb(app, "build", "sudo hybrid guest build")
def build(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the image's hash.")] = False,
) -> None:
    """Build the guest image and the tools that serve it, unless their inputs are unchanged.

    Older builds that no machine uses are removed, but for the one before.
    """
    from hybrid.guest.build import build_guest
    from hybrid.guest.prune import prune
    from hybrid.guest.tools import build_tools

    settings = ctx.find_root().obj or Settings()
    paths = Paths.of(local_root(settings.root, os.environ))
    with progress("building the guest image") as shown:
        image = build_guest(paths, shown)
        build_tools(paths, shown)
        prune(paths, shown)
    print(image.hash if quiet else f"guest image {image.hash}: {image.directory}")
