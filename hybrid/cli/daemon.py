"""hybrid daemon: the daemon itself, in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hybrid.cli.app import Settings, new, verb
from hybrid.client.address import local_root

app = new()


@verb(
    app,
    "daemon",
    "sudo hybrid daemon",
    "sudo hybrid --root /srv/hybrid daemon --host unix:///run/hybrid/hybrid.sock",
)
def daemon(
    ctx: typer.Context,
    root: Annotated[
        Path | None,
        typer.Option("--root", readable=False, help="State directory (/var/lib/hybrid)."),
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option("--host", "-H", help="Where to listen; may be repeated.")
    ] = None,
) -> int:
    """Run the daemon in the foreground; its log goes to stderr."""
    from hybrid.daemon.main import run

    settings = ctx.find_root().obj or Settings()
    hosts = host or ([settings.host] if settings.host else [])
    return run(local_root(root or settings.root, os.environ), hosts)
