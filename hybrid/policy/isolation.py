"""Where a container goes: the words of ``--isolation``, of compose's ``isolation:`` and of
``--runtime``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hybrid.errors import InvalidInput

Kind = Literal["vm", "shared", "container", "machine"]
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_WORDS = "use vm, vm:NAME, container or machine:NAME"
RUNTIMES = {"hybrid-vm": "vm", "hybrid-container": "container"}


@dataclass(frozen=True, slots=True)
class Isolation:
    """``vm``: a guest of its own. ``shared``: the guest of trust group ``name``. ``container``:
    this host's kernel, one boundary only. ``machine``: the machine that a user made or added under
    ``name``.
    """

    kind: Kind
    name: str = ""

    def __str__(self) -> str:
        return {"shared": f"vm:{self.name}", "machine": f"machine:{self.name}"}.get(
            self.kind, self.kind
        )


def parse(text: str) -> Isolation:
    """The isolation that ``text`` names; empty and Docker's ``default`` mean ``vm``. InvalidInput
    otherwise.
    """
    word = text.strip()
    if word in ("", "default", "vm"):
        return Isolation("vm")
    if word == "container":
        return Isolation("container")
    kind, colon, name = word.partition(":")
    if not colon or kind not in ("vm", "machine"):
        raise InvalidInput(f"invalid isolation {text!r}: {_WORDS}")
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"invalid isolation {text!r}: NAME is 1 to 63 letters, digits, '_', '.' and '-'"
        )
    return Isolation("shared" if kind == "vm" else "machine", name)


def choose(isolation: str, runtime: str) -> Isolation:
    """What ``HostConfig.Isolation`` and ``HostConfig.Runtime`` ask for together; a contradiction is
    InvalidInput.
    """
    if not runtime:
        return parse(isolation)
    if runtime not in RUNTIMES:
        raise InvalidInput(
            f"unknown or invalid runtime name: {runtime}: "
            f"use {' or '.join(RUNTIMES)}, or --isolation"
        )
    wanted = parse(RUNTIMES[runtime])
    if isolation not in ("", "default") and parse(isolation).kind != wanted.kind:
        raise InvalidInput(
            f"runtime {runtime} contradicts isolation {isolation!r}; give only one of them"
        )
    return parse(isolation) if isolation not in ("", "default") else wanted
