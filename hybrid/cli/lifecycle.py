"""hybrid start, stop, restart, kill, rm, wait: one call a container, one line a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from hybrid.cli.app import new, verb
from hybrid.cli.connect import complete_container, complete_running, engine
from hybrid.cli.main import fail
from hybrid.cli.progress import progress
from hybrid.client.engine import exit_code
from hybrid.errors import HybridError, InvalidInput, NotFound

app = new()

Names = Annotated[
    list[str],
    typer.Argument(metavar="CONTAINER...", help="Names or ids.", autocompletion=complete_container),
]
Running = Annotated[
    list[str],
    typer.Argument(metavar="CONTAINER...", help="Names or ids.", autocompletion=complete_running),
]
Seconds = Annotated[
    int | None,
    typer.Option("--time", "--timeout", "-t", help="Seconds until it is killed; -1 waits."),
]


def each(names: list[str], doing: str, call: Callable[[str], object]) -> int:
    """Calls for every name, says which succeeded, goes on after failures; 1 if any failed."""
    code = 0
    for name in names:
        try:
            with progress(f"{doing} {name}"):
                call(name)
        except HybridError as error:
            code = fail(error.message)
        else:
            print(name)
    return code


@verb(app, "start", "hybrid start db web", "hybrid start -ai shell")
def start(
    ctx: typer.Context,
    names: Names,
    attach: Annotated[bool, typer.Option("--attach", "-a", help="Show its output.")] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Send what is typed.")
    ] = False,
) -> int:
    """Start stopped containers."""
    client = engine(ctx)
    if not (attach or interactive):
        return each(names, "starting", client.start)
    if len(names) != 1:
        raise InvalidInput("cannot start and attach several containers at once")
    from hybrid.cli.follow import start_attached

    return start_attached(client, names[0], stdin=interactive)


@verb(app, "stop", "hybrid stop web", "hybrid stop -t 1 web db")
def stop(
    ctx: typer.Context,
    names: Running,
    time: Seconds = None,
    signal: Annotated[str, typer.Option("--signal", "-s", help="Instead of its own.")] = "",
) -> int:
    """Stop running containers: their stop signal, then SIGKILL."""
    client = engine(ctx)
    return each(
        names, "stopping", lambda name: client.stop(name, timeout=time, signal=signal or None)
    )


@verb(app, "restart", "hybrid restart web")
def restart(ctx: typer.Context, names: Names, time: Seconds = None) -> int:
    """Stop and start containers."""
    client = engine(ctx)
    return each(names, "restarting", lambda name: client.restart(name, timeout=time))


@verb(app, "kill", "hybrid kill web", "hybrid kill -s HUP web")
def kill(
    ctx: typer.Context,
    names: Running,
    signal: Annotated[str, typer.Option("--signal", "-s", help="Signal to send.")] = "KILL",
) -> int:
    """Send a signal to running containers."""
    client = engine(ctx)
    return each(names, "killing", lambda name: client.kill(name, signal))


@verb(app, "rm", "hybrid rm web", "hybrid rm -fv web db")
def rm(
    ctx: typer.Context,
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="Running ones too.")] = False,
    volumes: Annotated[
        bool, typer.Option("--volumes", "-v", help="Their anonymous volumes too.")
    ] = False,
) -> int:
    """Remove containers."""
    client = engine(ctx)

    def remove(name: str) -> None:
        try:
            client.remove(name, force=force, volumes=volumes)
        except NotFound:
            if not force:
                raise

    return each(names, "removing", remove)


@verb(app, "wait", "hybrid wait job; echo done")
def wait(ctx: typer.Context, names: Names) -> int:
    """Wait until containers stop; print their exit codes."""
    client = engine(ctx)
    code = 0
    for name in names:
        try:
            status, message = exit_code(client.wait(name))
        except HybridError as error:
            code = fail(error.message)
            continue
        if message:
            code = fail(message)
        print(status)
    return code
