"""The command line of the agent. Parsed by hand: argparse would be a third of the start-up time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hybrid.errors import InvalidInput

USAGE = "usage: agent (--serial NAME | --vsock PORT [--peer CID] | --unix PATH) [--state DIR]"
USAGE += " [--probe FILE] [--group NAME] [--guest]"
_HOST = 2  # VMADDR_CID_HOST, include/uapi/linux/vm_sockets.h
_VALUES = ("--serial", "--vsock", "--peer", "--unix", "--state", "--probe", "--group")


@dataclass(frozen=True, slots=True)
class Options:
    """``state`` holds everything that the agent keeps; ``peer`` is the only vsock address that may connect.

    ``group`` is the control group that its containers' are below: agents that share a kernel have one each.
    """

    serial: str = ""
    vsock: int = 0
    peer: int = _HOST
    unix: str = ""
    state: Path = Path("/run/hybrid")
    probe: Path = Path("/usr/lib/hybrid/probe")
    group: str = "hybrid"
    guest: bool = False
    features: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, arguments: list[str]) -> Options:
        """The options; InvalidInput with the usage for anything else."""
        given: dict[str, str] = {}
        guest = False
        rest = iter(arguments)
        for word in rest:
            if word == "--guest":
                guest = True
            elif word in _VALUES:
                given[word] = next(rest, "")
            else:
                raise InvalidInput(f"unknown argument {word!r}; {USAGE}")
        if (
            sum(name in given for name in ("--serial", "--vsock", "--unix")) != 1
            or "" in given.values()
        ):
            raise InvalidInput(USAGE)
        group = given.get("--group", "hybrid")
        if not group.replace("-", "").isalnum() or not group.isascii():
            raise InvalidInput(f"--group {group!r}: letters, digits and '-' only; {USAGE}")
        try:
            vsock, peer = int(given.get("--vsock", 0)), int(given.get("--peer", _HOST))
        except ValueError:
            raise InvalidInput(USAGE) from None
        return cls(
            serial=given.get("--serial", ""),
            vsock=vsock,
            peer=peer,
            unix=given.get("--unix", ""),
            state=Path(given.get("--state", "/run/hybrid")).absolute(),
            probe=Path(given.get("--probe", "/usr/lib/hybrid/probe")).absolute(),
            group=group,
            guest=guest,
            features=["guest"] if guest else ["directories", "files"],
        )
