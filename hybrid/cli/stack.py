"""hybrid up, hybrid down: a compose file's services, each behind the walls it asks for."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybrid.cli import format
from hybrid.cli.app import new, verb
from hybrid.cli.connect import engine
from hybrid.cli.progress import progress
from hybrid.errors import HybridError, InvalidInput

if TYPE_CHECKING:
    from hybrid.client.engine import Engine
    from hybrid.compose.load import Project

app = new()
HEADINGS = ("SERVICE", "ISOLATION", "MACHINE", "KERNEL", "ADDRESSES", "PORTS", "READY AFTER")
SERVICE_LABEL = "com.docker.compose.service"

File = Annotated[
    Path | None, typer.Option("--file", "-f", help="Compose file (compose.yaml here or above).")
]
Name = Annotated[str, typer.Option("--project-name", "-p", help="Instead of the directory's name.")]


@verb(
    app,
    "up",
    "hybrid up",
    "hybrid up -f examples/stack/compose.yaml",
    "hybrid up --remove-orphans db",
    "hybrid up --attach",
)
def up(
    ctx: typer.Context,
    services: Annotated[list[str] | None, typer.Argument(metavar="SERVICE")] = None,
    file: File = None,
    project_name: Name = "",
    detach: Annotated[
        bool, typer.Option("--detach/--attach", "-d", help="Return when all is ready (default).")
    ] = True,
    force_recreate: Annotated[
        bool, typer.Option("--force-recreate", help="Unchanged ones too.")
    ] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="Remove what is not in the file.")
    ] = False,
    wait_timeout: Annotated[
        int, typer.Option("--wait-timeout", help="Seconds for a service to become healthy.")
    ] = 180,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the names.")] = False,
    format_: Annotated[
        str | None, typer.Option("--format", help="table, or json: one object a line.")
    ] = None,
) -> int:
    """Create and start a compose file's services, and wait until they are ready.

    Unlike docker compose it returns once every service runs and is healthy; --attach stays and
    shows what they write, until Ctrl-C stops them.
    """
    from hybrid.compose.project import Up

    if format_ not in (None, "table", "json"):
        raise InvalidInput(f"unknown format {format_!r}: table or json")
    project = _load(file, project_name)
    client = engine(ctx)
    with progress(f"bringing up {project.name}") as shown:
        task = Up(client, project, shown.line, timeout=float(wait_timeout), recreate=force_recreate)
        containers = task.run(services or [], remove_orphans=remove_orphans)
    print(table(containers, format_, quiet=quiet))
    if detach:
        return 0
    sys.stdout.flush()
    return _attach(client, project, containers)


@verb(app, "down", "hybrid down", "hybrid down -v")
def down(
    ctx: typer.Context,
    file: File = None,
    project_name: Name = "",
    volumes: Annotated[
        bool, typer.Option("--volumes", "-v", help="The file's volumes and their data too.")
    ] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="What is not in the file too.")
    ] = False,
    timeout: Annotated[
        int | None, typer.Option("--timeout", "-t", help="Seconds until one is killed.")
    ] = None,
) -> None:
    """Stop and remove a compose file's containers and networks."""
    from hybrid.compose.project import down as take_down

    project = _load(file, project_name)
    client = engine(ctx)
    with progress(f"taking down {project.name}") as shown:
        take_down(
            client,
            project,
            shown.line,
            volumes=volumes,
            remove_orphans=remove_orphans,
            timeout=timeout,
        )


def _load(file: Path | None, name: str) -> Project:
    from hybrid.compose.load import load

    return load(file, name or None, os.environ, Path.cwd())


def table(
    containers: Sequence[Mapping[str, Any]], style: str | None = None, *, quiet: bool = False
) -> str:
    """What runs where, from inspected containers."""
    rows = [_row(container) for container in containers]
    keys = ("Service", "Isolation", "Machine", "Kernel", "Addresses", "Ports", "ReadyAfter")
    objects = [dict(zip(keys, row, strict=True)) for row in rows]
    return format.listing(style, quiet, HEADINGS, rows, objects, [row[0] for row in rows])


def _row(container: Mapping[str, Any]) -> tuple[str, ...]:
    hybrid = container.get("Hybrid") or {}
    network = container.get("NetworkSettings") or {}
    addresses = [
        str(endpoint["IPAddress"])
        for endpoint in (network.get("Networks") or {}).values()
        if endpoint.get("IPAddress")
    ]
    ports = [
        f"{binding['HostIp']}:{binding['HostPort']}->{port}"
        for port, bindings in (network.get("Ports") or {}).items()
        for binding in bindings or ()
    ]
    return (
        str((container["Config"].get("Labels") or {}).get(SERVICE_LABEL, container["Name"])),
        str(hybrid.get("Isolation", "")),
        str(hybrid.get("Machine", "")),
        str(hybrid.get("Kernel", "")),
        ", ".join(addresses),
        ", ".join(ports),
        format.ready_after(hybrid.get("ReadyAfter")),
    )


def _attach(client: Engine, project: Project, containers: Sequence[Mapping[str, Any]]) -> int:
    """Shows all output with the service's name in front, until all exit or Ctrl-C stops them."""
    names = [str(container["Config"]["Labels"][SERVICE_LABEL]) for container in containers]
    width = max(map(len, names))
    threads = [
        threading.Thread(target=_follow, args=(client, container, name.ljust(width)), daemon=True)
        for container, name in zip(containers, names, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        with progress(f"stopping {project.name}"):
            for container in reversed(containers):
                client.stop(str(container["Id"]))
        return 130
    return 0


def _follow(client: Engine, container: Mapping[str, Any], prefix: str) -> None:
    from hybrid.client.frames import Demultiplexer

    frames, pending = Demultiplexer(), b""
    try:
        response = client.logs(
            str(container["Id"]), {"stdout": True, "stderr": True, "follow": True}
        )
        tty = bool(container["Config"].get("Tty"))
        for block in response.blocks():
            pieces = [block] if tty else [piece for _, piece in frames.receive(block)]
            *lines, pending = (pending + b"".join(pieces)).split(b"\n")
            for line in lines:
                print(f"{prefix} | {line.decode(errors='replace')}", flush=True)
    except HybridError as error:
        print(f"{prefix} | hybrid: {error.message}", file=sys.stderr)
