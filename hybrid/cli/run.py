"""hybrid run, hybrid create."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from hybrid.cli import tty
from hybrid.cli.app import new, verb
from hybrid.cli.connect import engine
from hybrid.cli.flags import Surroundings, create_body
from hybrid.cli.follow import follow, start_failure
from hybrid.cli.main import USAGE, fail
from hybrid.cli.options import Command, ContainerOptions, Image, expand
from hybrid.cli.progress import progress
from hybrid.cli.session import DEFAULT_DETACH_KEYS, DetachKeys
from hybrid.client.engine import Engine
from hybrid.errors import HybridError, InvalidInput

app = new()


@verb(
    app,
    "run",
    "hybrid run --rm busybox uname -a",
    "hybrid run --rm -it --isolation vm:apps busybox sh",
    "hybrid run -d --name db -v data:/var/lib/postgresql -p 127.0.0.1:5432:5432 postgres",
    "hybrid run --rm --isolation container --memory 64m --read-only busybox true",
    passthrough=True,
)
@expand
def run(
    ctx: typer.Context,
    image: Image,
    options: ContainerOptions,
    command: Command = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Leave it running and print its id.")
    ] = False,
    sig_proxy: Annotated[
        bool, typer.Option("--sig-proxy/--no-sig-proxy", help="Hand signals on to it.")
    ] = True,
    detach_keys: Annotated[
        str, typer.Option("--detach-keys", help="Keys that leave it running.")
    ] = DEFAULT_DETACH_KEYS,
) -> int:
    """Create a container and run a command in it.

    Exit codes: the command's own; 125 when hybrid failed, 126 when the command cannot be
    executed, 127 when it is not found, 128+n when signal n ended it.
    """
    if not detach and options.tty and options.interactive and not os.isatty(tty.STDIN):
        return fail("the input device is not a TTY")
    try:
        keys = DetachKeys(detach_keys)
        client = engine(ctx)
        container = _create(client, options, image, command, attached=not detach)
    except ValueError as error:
        return fail(str(error), USAGE)
    except HybridError as error:
        return fail(error.message, USAGE)
    try:
        if detach:
            with progress(f"starting {image}"):
                client.start(container)
            print(container)
            return 0
        return follow(
            client,
            container,
            tty=options.tty,
            stdin=options.interactive,
            condition="removed" if options.remove else "next-exit",
            keys=keys,
            sig_proxy=sig_proxy,
            new=True,
        )
    except HybridError as error:
        return fail(error.message, start_failure(error.message))


@verb(app, "create", "hybrid create --name web -p 8080:80 nginx", passthrough=True)
@expand
def create(
    ctx: typer.Context, image: Image, options: ContainerOptions, command: Command = None
) -> int:
    """Create a container without starting it."""
    try:
        print(_create(engine(ctx), options, image, command, attached=True))
    except HybridError as error:
        return fail(error.message)
    return 0


def _create(
    client: Engine,
    options: ContainerOptions,
    image: str,
    command: list[str] | None,
    *,
    attached: bool,
) -> str:
    if options.name and not options.name.strip("/"):
        raise InvalidInput(f"invalid container name {options.name!r}")
    body = create_body(options, image, command, Surroundings.here(), attached=attached)
    if options.tty and attached:
        body["HostConfig"]["ConsoleSize"] = list(tty.size())
    answer = client.create_container(body, options.name)
    for warning in answer.get("Warnings") or ():
        fail(f"warning: {warning}")
    return str(answer["Id"])
