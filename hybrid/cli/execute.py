"""hybrid exec, hybrid attach."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from hybrid.cli import tty as terminal
from hybrid.cli.app import new, verb
from hybrid.cli.connect import complete_running, engine
from hybrid.cli.conversation import converse, exec_body, parse_keys, usable_terminal
from hybrid.cli.flags import Surroundings, environment
from hybrid.cli.follow import finished
from hybrid.cli.main import fail
from hybrid.cli.session import DEFAULT_DETACH_KEYS, Session
from hybrid.errors import Conflict

app = new()

Container = Annotated[
    str, typer.Argument(metavar="CONTAINER", help="Container.", autocompletion=complete_running)
]
Keys = Annotated[str, typer.Option("--detach-keys", help="Keys that leave it running.")]


@verb(
    app,
    "exec",
    "hybrid exec -it db psql -U postgres",
    "hybrid exec -e LANG=C -w /srv web ls",
    passthrough=True,
)
def execute(
    ctx: typer.Context,
    name: Container,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND")],
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Keep stdin open.")
    ] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for it.")] = False,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE, or NAME to pass it on.")
    ] = None,
    env_file: Annotated[
        list[str] | None, typer.Option("--env-file", help="File of NAME=VALUE lines.")
    ] = None,
    user: Annotated[str, typer.Option("--user", "-u", help="name|uid[:group|gid].")] = "",
    workdir: Annotated[str, typer.Option("--workdir", "-w", help="Working directory.")] = "",
    privileged: Annotated[
        bool, typer.Option("--privileged", help="All capabilities, where policy allows.")
    ] = False,
    detach_keys: Keys = DEFAULT_DETACH_KEYS,
) -> int:
    """Run a command in a running container."""
    body = exec_body(
        command, interactive=interactive and not detach, tty=tty, detach_keys=detach_keys
    )
    body |= {
        "Env": environment(env or (), env_file or (), Surroundings.here()),
        "User": user,
        "WorkingDir": workdir,
        "Privileged": privileged,
    }
    client = engine(ctx)
    if detach:
        client.start_exec_detached(client.create_exec(name, body), tty=tty)
        return 0
    if not usable_terminal(interactive, tty):
        return fail("the input device is not a TTY")
    return converse(client, client.create_exec(name, body), body, parse_keys(detach_keys))


@verb(app, "attach", "hybrid attach web", "hybrid attach --no-stdin web")
def attach(
    ctx: typer.Context,
    name: Container,
    stdin: Annotated[
        bool, typer.Option("--stdin/--no-stdin", help="Send what is typed.", show_default=False)
    ] = True,
    sig_proxy: Annotated[
        bool, typer.Option("--sig-proxy/--no-sig-proxy", help="Hand signals on to it.")
    ] = True,
    detach_keys: Keys = DEFAULT_DETACH_KEYS,
) -> int:
    """Connect this terminal to a running container."""
    client = engine(ctx)
    found = client.container(name)
    config, state = found["Config"], found["State"]
    if not state.get("Running"):
        raise Conflict(f"container {name} is not running: start it first")
    if state.get("Paused"):
        raise Conflict(f"container {name} is paused: unpause it first")
    tty, stdin = bool(config.get("Tty")), stdin and bool(config.get("OpenStdin"))
    if not usable_terminal(stdin, tty):
        return fail("the input device is not a TTY")
    keys = parse_keys(detach_keys)
    identity = str(found["Id"])
    with (
        closing(client.wait(identity)) as waited,
        closing(client.attach(identity, stdin=stdin)) as stream,
    ):
        if tty and all(terminal.size()):
            # Not its size: the real one, which follows, then makes a shell draw its prompt again.
            rows, columns = terminal.size()
            client.resize(identity, rows + 1, columns + 1)
        session = Session(
            stream,
            tty=tty,
            stdin=stdin,
            resize=lambda rows, columns: client.resize(identity, rows, columns),
            forward=(lambda signal: client.kill(identity, signal)) if sig_proxy else None,
            keys=keys,
        )
        return finished(session.run(), waited)
