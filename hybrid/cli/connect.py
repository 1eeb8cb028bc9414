"""From the options before the command to a daemon that answers; started here when none does and
we may."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from hybrid.cli.app import Settings
from hybrid.client.address import UnixAddress, resolve
from hybrid.client.engine import Engine
from hybrid.client.http import NotListening
from hybrid.errors import Unavailable


def engine(ctx: typer.Context, *, start: bool = True) -> Engine:
    """The daemon that this command line names; with ``start`` it is started if it is ours to
    start."""
    settings = ctx.find_root().obj or Settings()
    address = resolve(settings.host, settings.root, os.environ)
    found = Engine(address)
    root = address.root if isinstance(address, UnixAddress) else None
    if not start or root is None:
        return found
    try:
        found.ping()
    except NotListening as error:
        _start(found, Path(root), error)
    return found


def _start(found: Engine, root: Path, error: NotListening) -> None:
    if os.geteuid() != 0:
        raise Unavailable(
            f"no daemon listens on {found.http.address}: start it with 'sudo hybrid daemon'"
        ) from error
    from hybrid.cli.launch import launch

    launch(found, root)


def complete_container(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of containers, for the shell's completion; nothing when no daemon answers."""
    return _complete(ctx, incomplete, running=False)


def complete_running(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of running containers, for the shell's completion."""
    return _complete(ctx, incomplete, running=True)


def _complete(ctx: typer.Context, incomplete: str, *, running: bool) -> list[str]:
    from hybrid.errors import HybridError

    try:
        listed = engine(ctx, start=False).containers(all=not running)
    except HybridError:
        return []
    names = [name.lstrip("/") for container in listed for name in container.get("Names") or ()]
    return [name for name in names if name.startswith(incomplete)]


def complete_image(ctx: typer.Context, incomplete: str) -> list[str]:
    """Image references, for the shell's completion."""
    from hybrid.errors import HybridError

    try:
        images = engine(ctx, start=False).images()
    except HybridError:
        return []
    tags = [tag for image in images for tag in image.get("RepoTags") or ()]
    return [tag for tag in tags if tag.startswith(incomplete)]


def complete_machine(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of machines, for the shell's completion."""
    from hybrid.errors import HybridError

    try:
        machines = engine(ctx, start=False).machines()
    except HybridError:
        return []
    return [
        name for machine in machines if (name := str(machine.get("Name"))).startswith(incomplete)
    ]
