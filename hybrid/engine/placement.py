"""Which machine a container goes to. Pure: isolation and what exists in, a decision out.

Containers that share a kernel object (a network, pid or ipc namespace) must share a machine: the one that is joined
decides, and an isolation that contradicts it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hybrid.errors import Conflict, NotFound

HOST = "host"


@dataclass(frozen=True)
class Wanted:
    """A parsed isolation. ``kind`` as ``hybrid.policy.isolation``'s, ``name`` of the group or machine."""

    kind: Literal["vm", "shared", "container", "machine"]
    name: str = ""
    explicit: bool = True  # False: nobody asked, it is the default


@dataclass(frozen=True)
class Choice:
    """``new``: make a guest of that name. ``private``: it ends with the container; ``shared``: with its last one."""

    action: Literal["existing", "new"]
    name: str
    machine: str = ""  # id, for an existing one
    private: bool = False
    sharing: bool = False  # a private one that containers will join which bring volumes or mounts


def place(
    wanted: Wanted,
    container: str,
    joined: dict[str, str],
    machine_named: Callable[[str], str | None],
) -> Choice:
    """Where ``container`` (its name) goes.

    ``joined`` maps the names of containers whose namespaces it joins to their machine ids ("" when not running).
    ``machine_named`` gives the id of the machine of that name, or None.
    """
    if joined:
        return _beside(wanted, joined, machine_named)
    if wanted.kind == "vm":
        return Choice("new", container, private=True)
    name = HOST if wanted.kind == "container" else wanted.name
    found = machine_named(name)
    if found is not None:
        return Choice("existing", name, found)
    if wanted.kind == "machine":
        raise NotFound(
            f"no such machine: {name} (see 'hybrid machine ls'; make one with 'hybrid machine create')"
        )
    return Choice("new", name)


def _beside(
    wanted: Wanted, joined: dict[str, str], machine_named: Callable[[str], str | None]
) -> Choice:
    stopped = [name for name, machine in joined.items() if not machine]
    if stopped:
        raise Conflict(f"cannot join a non running container: {stopped[0]}")
    machines = set(joined.values())
    if len(machines) > 1:
        raise Conflict(
            f"the containers {', '.join(sorted(joined))} run on different machines and cannot share namespaces with"
            " one container: give them the same isolation"
        )
    (machine,) = machines
    if wanted.explicit and (wanted.kind == "vm" or machine_named(_name_of(wanted)) != machine):
        raise Conflict(
            f"isolation {_text(wanted)!r} contradicts joining a namespace of {', '.join(sorted(joined))}, which runs"
            " on another machine: leave the isolation out, or give both the same one"
        )
    return Choice("existing", "", machine)


def _name_of(wanted: Wanted) -> str:
    return HOST if wanted.kind == "container" else wanted.name


def _text(wanted: Wanted) -> str:
    prefix = {"vm": "vm", "shared": "vm:", "container": "container", "machine": "machine:"}
    return prefix[wanted.kind] + wanted.name
