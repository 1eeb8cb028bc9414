"""The mounts of a container: the kernel file systems every container has, then tmpfs, volumes and
bind mounts.

The machine's agent fills in what a share is (``{"type": "hybrid-share", "source": "<index>"}``);
whether its source may be shown at all was decided before (``profile.check_source``), on the
resolved path that is served.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hybrid import units
from hybrid.errors import InvalidInput, Unsupported

_FLAGS = frozenset(
    "ro rw suid nosuid dev nodev exec noexec sync async atime noatime diratime nodiratime "
    "relatime norelatime strictatime nostrictatime".split()
)
_SIZES = frozenset(("size", "nr_blocks", "nr_inodes"))
_NUMBER = re.compile(r"\d{1,10}")
_MODE = re.compile(r"[0-7]{1,5}")
_PROPAGATION = ("", "private", "rprivate")


@dataclass(frozen=True, slots=True)
class MountRequest:
    """``share``: index into the container's shares. ``tmpfs``: in memory, with ``options`` as
    docker's ``--tmpfs``.
    """

    kind: Literal["share", "tmpfs"]
    destination: str
    read_only: bool = False
    share: int = -1
    options: str = ""
    propagation: str = ""


def destination(text: str) -> str:
    """The absolute normalised mount point; one that Docker or the runtime would refuse is
    InvalidInput.
    """
    if not text.startswith("/") or "\0" in text or len(text) > 4096:
        raise InvalidInput(f"invalid mount path: '{text[:200]}' mount path must be absolute")
    path = posixpath.normpath(text).replace("//", "/")
    if path == "/":
        raise InvalidInput("invalid specification: destination can't be '/'")
    if path == "/proc" or path.startswith("/proc/"):
        raise InvalidInput(f"{path} cannot be mounted because it is inside /proc")
    return path


def build(
    requests: Sequence[MountRequest], shm_size: int, *, own_ipc: bool, privileged: bool
) -> list[dict[str, Any]]:
    """All mounts in mounting order; a request for ``/dev/shm`` or the like takes the place of the
    default one.
    """
    wanted: dict[str, dict[str, Any]] = {}
    for request in requests:
        mount = _requested(request)
        if mount["destination"] in wanted:
            raise InvalidInput(f"Duplicate mount point: {mount['destination']}")
        wanted[mount["destination"]] = mount
    defaults = _defaults(shm_size, own_ipc=own_ipc, privileged=privileged)
    kept = [mount for mount in defaults if mount["destination"] not in wanted]
    return kept + sorted(
        wanted.values(), key=lambda mount: (mount["destination"].count("/"), mount["destination"])
    )


def _mount(where: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": where, "type": kind, "source": source, "options": list(options)}


def _defaults(shm_size: int, *, own_ipc: bool, privileged: bool) -> list[dict[str, Any]]:
    access = "rw" if privileged else "ro"
    mounts = [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", access),
        _mount(
            "/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", access
        ),
    ]
    if own_ipc:
        mounts += [
            _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            _mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                "nosuid",
                "noexec",
                "nodev",
                "mode=1777",
                f"size={shm_size}",
            ),
        ]
    return mounts


def _requested(request: MountRequest) -> dict[str, Any]:
    where = destination(request.destination)
    if request.propagation not in _PROPAGATION:
        raise Unsupported(
            f"mount {where}: propagation {request.propagation!r} "
            "can't cross the machine's boundary; leave it out"
        )
    if request.kind == "tmpfs":
        return _mount(
            where, "tmpfs", "tmpfs", *tmpfs_options(request.options, read_only=request.read_only)
        )
    if request.share < 0:
        raise InvalidInput(f"mount {where}: no share is named")
    access = "ro" if request.read_only else "rw"
    return _mount(where, "hybrid-share", str(request.share), "rbind", "rprivate", "nodev", access)


def tmpfs_options(text: str, *, read_only: bool = False) -> list[str]:
    """``size=64m,mode=1777,exec`` over the defaults nosuid, nodev and noexec; unknown options are
    InvalidInput.
    """
    chosen = {"suid": "nosuid", "dev": "nodev", "exec": "noexec"}
    values: dict[str, str] = {}
    for option in filter(None, text.split(",")):
        name, equals, value = option.partition("=")
        if not equals and option in _FLAGS:
            plain = option.removeprefix("no") if option.startswith("no") else option
            chosen["rw" if option in ("ro", "rw") else plain] = option
        elif name in _SIZES and value:
            values[name] = value if value.endswith("%") and name == "size" else _size(option, value)
        elif (name == "mode" and _MODE.fullmatch(value)) or (
            name in ("uid", "gid") and _NUMBER.fullmatch(value)
        ):
            values[name] = value
        else:
            raise InvalidInput(f"invalid tmpfs option {option[:80]!r}")
    if read_only:
        chosen["rw"] = "ro"
    return [*chosen.values(), *(f"{name}={value}" for name, value in values.items())]


def _size(option: str, value: str) -> str:
    try:
        return str(units.parse_size(value))
    except ValueError as error:
        raise InvalidInput(f"invalid tmpfs option {option[:80]!r}: {error}") from error
