"""An exec from its request to its exit code. Light to import: it takes no command table."""

from __future__ import annotations

import os
from contextlib import closing

from hybrid.cli import tty as terminal
from hybrid.cli.main import USAGE
from hybrid.cli.session import DetachKeys, Session
from hybrid.client.engine import Engine, Json
from hybrid.errors import InvalidInput


def exec_body(command: list[str], *, interactive: bool, tty: bool, detach_keys: str) -> Json:
    """The part of an exec request that all execs have."""
    return {
        "Cmd": command,
        "AttachStdin": interactive,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": tty,
        "DetachKeys": detach_keys,
    }


def usable_terminal(interactive: bool, tty: bool) -> bool:
    """False when -it is asked for and stdin is no terminal."""
    return not (interactive and tty) or os.isatty(terminal.STDIN)


def parse_keys(text: str) -> DetachKeys:
    try:
        return DetachKeys(text)
    except ValueError as error:
        raise InvalidInput(str(error)) from error


def converse(client: Engine, exec_id: str, body: Json, keys: DetachKeys) -> int:
    """Starts the exec and stays with it to its end; its exit code."""
    start: Json = {"Detach": False, "Tty": body["Tty"]}
    if body["Tty"]:
        start["ConsoleSize"] = list(terminal.size())
    with closing(client.start_exec(exec_id, start)) as stream:
        ended = Session(
            stream,
            tty=body["Tty"],
            stdin=body["AttachStdin"],
            resize=lambda rows, columns: client.resize_exec(exec_id, rows, columns),
            keys=keys,
        ).run()
    if ended.detached:
        print()
        return 0
    if ended.signal:
        return 128 + ended.signal
    code = client.exec(exec_id).get("ExitCode")
    return USAGE if code is None else int(code)
