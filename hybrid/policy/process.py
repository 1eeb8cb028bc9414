"""The OCI ``process`` object of a container's command and of an exec, by Docker's rules."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.errors import Forbidden, InvalidInput

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_ARGUMENTS = 1 << 13
MAX_STRING = 128 << 10  # the kernel's MAX_ARG_STRLEN (32 pages)
_USER = re.compile(r"[^\0/\s:]{0,64}(:[^\0/\s:]{1,64})?")
_RLIMITS = frozenset(
    "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime "
    "sigpending stack".split()
)


@dataclass(frozen=True, slots=True)
class Rlimit:
    """``name`` as docker's ``--ulimit`` writes it (``nofile``); -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """One more process in a running container. Empty ``user``, ``cwd``: the container's own."""

    args: Sequence[str]
    env: Sequence[str] = ()
    user: str = ""
    cwd: str = ""
    terminal: bool = False
    privileged: bool = False
    rows: int = 0
    columns: int = 0


def merge_command(
    image: tuple[Sequence[str] | None, Sequence[str] | None],
    request: tuple[Sequence[str] | None, Sequence[str] | None],
) -> tuple[list[str], list[str]]:
    """(entrypoint, command) of a container from the image's pair and the request's.

    Three cases, as Docker: an entry point in the request discards the image's command; ``[""]`` as
    the entry point clears it; without one the image's stays and only the command may be replaced.
    """
    entrypoint, command = request
    if entrypoint is not None and list(entrypoint) == [""]:
        return [], list(command or [])
    if entrypoint:
        return list(entrypoint), list(command or [])
    if not command:
        command = image[1]
    if entrypoint is None:
        entrypoint = image[0]
    return list(entrypoint or []), list(command or [])


def merge_env(base: Sequence[str], more: Sequence[str]) -> list[str]:
    """``base`` overridden and extended by ``more``; a name without ``=`` in ``more`` removes the
    variable.
    """
    merged: dict[str, str] = {item.partition("=")[0]: item for item in base if "=" in item}
    for item in more:
        name, equals, _ = item.partition("=")
        if not name or "\0" in item:
            raise InvalidInput(f"invalid environment variable: {item[:80]!r}")
        if equals:
            merged[name] = item
        else:
            merged.pop(name, None)
    return list(merged.values())


def environment(env: Sequence[str], hostname: str, terminal: bool) -> list[str]:
    """The environment of a container's process: a PATH, HOSTNAME and for a terminal TERM, then its
    own variables.
    """
    base = [DEFAULT_PATH, f"HOSTNAME={hostname}"] + (["TERM=xterm"] if terminal else [])
    return merge_env(base, env)


def arguments(args: Sequence[str]) -> list[str]:
    """``args`` if the kernel can take them; InvalidInput otherwise."""
    if not args or not args[0]:
        raise InvalidInput("no command specified")
    if len(args) > MAX_ARGUMENTS or any(
        len(arg.encode(errors="surrogateescape")) >= MAX_STRING for arg in args
    ):
        raise InvalidInput("argument list too long")
    if any("\0" in arg for arg in args):
        raise InvalidInput("invalid command: it contains a NUL character")
    return list(args)


def working_directory(text: str) -> str:
    """The absolute, normalised working directory; empty means ``/``."""
    if not text:
        return "/"
    if not text.startswith("/") or "\0" in text:
        raise InvalidInput(
            f"the working directory '{text}' is invalid, it needs to be an absolute path"
        )
    return posixpath.normpath(text).replace("//", "/")


def user(text: str) -> dict[str, Any]:
    """The OCI user of ``name[:group]`` or ``uid[:gid]``; the agent looks names up in the
    container's root.
    """
    if not _USER.fullmatch(text):
        raise InvalidInput(
            f"invalid user {text!r}: use NAME or UID, optionally followed by :GROUP or :GID"
        )
    return {"uid": 0, "gid": 0, "username": text or "0"}


def groups(items: Sequence[str]) -> list[int | str]:
    """``--group-add``: numbers, and names for the agent to look up in the image's /etc/group."""
    found: list[int | str] = []
    for item in items:
        if item.isdecimal() and int(item) < 1 << 32:
            found.append(int(item))
        elif item and ":" not in item and not item.isdecimal() and _USER.fullmatch(item):
            found.append(item)
        else:
            raise InvalidInput(f"invalid group {item[:80]!r}")
    return found


def rlimits(items: Sequence[Rlimit]) -> list[dict[str, Any]]:
    """OCI rlimits; unknown names and a soft limit above the hard one are InvalidInput."""
    result = []
    for item in items:
        if item.name not in _RLIMITS:
            raise InvalidInput(f"invalid ulimit type: {item.name}")
        soft, hard = (value if value >= 0 else (1 << 64) - 1 for value in (item.soft, item.hard))
        if soft > hard:
            raise InvalidInput(
                f"ulimit {item.name}: soft limit must be less than or equal to hard limit"
            )
        result.append({"type": "RLIMIT_" + item.name.upper(), "soft": soft, "hard": hard})
    return result


def exec_process(container: Mapping[str, Any], request: ExecRequest) -> dict[str, Any]:
    """The process of an exec: as the container's own ``process``, with the request's command, user, directory
    and further environment. What is left out (capabilities, no_new_privs, limits) the agent takes from the
    container, so an exec is confined as it is.
    """
    if request.privileged:
        raise Forbidden(
            "a privileged exec is refused: it would step over the container's inner boundary; "
            "start the container with the capabilities it needs (--cap-add)"
        )
    process: dict[str, Any] = {
        "args": arguments(request.args),
        "env": merge_env(container.get("env", []), request.env),
        "cwd": working_directory(request.cwd) if request.cwd else container["cwd"],
        "user": user(request.user) if request.user else container["user"],
        "terminal": request.terminal,
    }
    if request.terminal and not any(item.startswith("TERM=") for item in process["env"]):
        process["env"].append("TERM=xterm")
    if request.terminal and request.rows and request.columns:
        process["consoleSize"] = {"height": request.rows, "width": request.columns}
    return process
