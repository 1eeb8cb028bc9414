"""A container that is started and stayed with: ``hybrid run`` and ``hybrid start -a``."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from hybrid.cli.main import USAGE, fail
from hybrid.cli.progress import progress
from hybrid.cli.session import DetachKeys, Ended, Session
from hybrid.client.engine import Engine, exit_code

if TYPE_CHECKING:
    from hybrid.client.http import Response


def follow(
    client: Engine,
    container: str,
    *,
    tty: bool,
    stdin: bool,
    condition: str,
    keys: DetachKeys,
    sig_proxy: bool = True,
    new: bool = False,
) -> int:
    """Starts the container and stays with it; its exit code.

    Attach and wait come before start, so that no output and no fast exit is lost. A user who
    interrupts the start of a ``new`` container leaves nothing behind.
    """
    with (
        closing(client.attach(container, stdin=stdin)) as stream,
        closing(client.wait(container, condition)) as waited,
    ):
        _start(client, container, new=new)
        session = Session(
            stream,
            tty=tty,
            stdin=stdin,
            resize=lambda rows, columns: client.resize(container, rows, columns),
            forward=(lambda name: client.kill(container, name)) if sig_proxy else None,
            keys=keys,
        )
        return finished(session.run(), waited)


def _start(client: Engine, container: str, *, new: bool) -> None:
    try:
        with progress(f"starting {container[:12]}"):
            client.start(container)
    except KeyboardInterrupt:
        if new:
            client.remove(container, force=True, volumes=True)
        raise


def start_attached(client: Engine, name: str, *, stdin: bool) -> int:
    """``hybrid start -a``."""
    found = client.container(name)
    config = found["Config"]
    if found["State"].get("Running"):
        return fail(f"container {name} is running already: use 'hybrid attach'")
    return follow(
        client,
        str(found["Id"]),
        tty=bool(config.get("Tty")),
        stdin=stdin and bool(config.get("OpenStdin")),
        condition="removed" if found["HostConfig"].get("AutoRemove") else "next-exit",
        keys=DetachKeys(),
    )


def finished(ended: Ended, waited: Response) -> int:
    """The exit code once the session is over: the container's, 128+n for a signal, 0 detached."""
    if ended.detached:
        print()
        return 0
    if ended.signal:
        return 128 + ended.signal
    code, message = exit_code(waited)
    if message:
        fail(message)
    return code


def start_failure(message: str) -> int:
    """docker's exit code for a container that did not start, from the daemon's words."""
    lowered = message.lower()
    if "executable file not found" in lowered or "no such file or directory" in lowered:
        return 127
    if "permission denied" in lowered or "is a directory" in lowered:
        return 126
    return USAGE
