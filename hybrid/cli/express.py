"""A plain ``hybrid exec`` without the command table, for loading that takes longer than all the rest of an exec.

What is not plain (any option but -i and -t, a mistake, no daemon) is left to the table, which can do all of it.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

_GLOBAL = {"--root": "root", "--host": "host", "-H": "host"}
_FLAGS = {"-i": "i", "--interactive": "i", "-t": "t", "--tty": "t", "-it": "it", "-ti": "it"}


class Plain(NamedTuple):
    """``hybrid [--root DIR] [--host ADDRESS] exec [-i] [-t] NAME COMMAND…``"""

    settings: dict[str, str]
    flags: str
    name: str
    command: list[str]


def parse(arguments: list[str]) -> Plain | None:
    """The command line if it is a plain one."""
    left, settings, flags = list(arguments), {}, ""
    while left and (name := _GLOBAL.get(left[0])) and len(left) > 1:
        settings[name] = left[1]
        del left[:2]
    if not left or left.pop(0) != "exec":
        return None
    while left and left[0] in _FLAGS:
        flags += _FLAGS[left.pop(0)]
    if len(left) < 2 or not left[0] or left[0].startswith("-") or left[1].startswith("-"):
        return None
    return Plain(settings, flags, left[0], left[1:])


def execute(arguments: list[str]) -> int | None:
    """Runs it and returns its exit code; None if it is not plain or no daemon listens."""
    plain = parse(arguments)
    if plain is None:
        return None
    from hybrid.cli import conversation
    from hybrid.cli.main import fail
    from hybrid.cli.session import DEFAULT_DETACH_KEYS, DetachKeys
    from hybrid.client.address import resolve
    from hybrid.client.engine import Engine
    from hybrid.client.http import NotListening
    from hybrid.errors import HybridError

    tty, stdin = "t" in plain.flags, "i" in plain.flags
    body = conversation.exec_body(
        plain.command, interactive=stdin, tty=tty, detach_keys=DEFAULT_DETACH_KEYS
    )
    try:
        settings = plain.settings
        client = Engine(resolve(settings.get("host"), settings.get("root"), os.environ))
        if not conversation.usable_terminal(stdin, tty):
            return None
        one = client.create_exec(plain.name, body)
        return conversation.converse(client, one, body, DetachKeys(DEFAULT_DETACH_KEYS))
    except NotListening:
        return None
    except HybridError as error:
        return fail(error.message)
    except KeyboardInterrupt:
        return 130


def leave(code: int) -> int:
    """Ends the process at once: to take the interpreter down takes as long as half of all that was loaded here."""
    sys.stdout.flush()
    os._exit(code)
