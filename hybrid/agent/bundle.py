"""The OCI config that crun gets: the host's, checked, with what only this machine knows filled in. Pure.

Denied by default: hooks, crun's own annotations, paths of namespaces and bind mounts named by the host. What the
container shares with the machine comes through ``Share`` and ``files`` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybrid.agent.users import User
from hybrid.errors import InvalidInput, Unsupported
from hybrid.wire.messages import IdMap

SHARE = "hybrid-share"
_MOUNT_TYPES = {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", SHARE}
_TOP = {"ociVersion", "process", "root", "hostname", "domainname", "mounts", "linux", "annotations"}
_NAMESPACES = {"pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"}


@dataclass(frozen=True, slots=True)
class Filling:
    """What the machine adds. Namespaces map a kind to the path of the one to join, or "" for a new one."""

    root: str
    cgroup: str
    user: User
    id_map: IdMap | None
    namespaces: Mapping[str, str | None]  # None: without one, the machine's is used
    shares: list[str] = field(default_factory=list)  # their paths here
    files: Mapping[str, str] = field(default_factory=dict)  # destination to the path here
    terminal: bool = False
    size: tuple[int, int] = (0, 0)  # rows, columns


def fill(config: Mapping[str, Any], filling: Filling) -> dict[str, Any]:
    """The config for crun, which shares what is unchanged with ``config``; InvalidInput for what the agent does
    not accept."""
    result = dict(config)
    unknown = result.keys() - _TOP
    if unknown:
        raise InvalidInput(f"config: {sorted(unknown)[0]!r} is not accepted here")
    for key in result.get("annotations") or {}:
        if key.startswith("run.oci."):
            raise InvalidInput(f"config: annotation {key!r} is not accepted here")
    read_only = bool((result.get("root") or {}).get("readonly"))
    result["root"] = {"path": filling.root, "readonly": read_only}
    result["process"] = process(
        result.get("process") or {}, filling.user, filling.terminal, filling.size
    )
    result["mounts"] = _mounts(result.get("mounts") or [], filling)
    result["linux"] = _linux(result.get("linux") or {}, filling)
    return result


def process(
    given: Mapping[str, Any], user: User, terminal: bool, size: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """An OCI process object with its user as numbers, HOME set, and the terminal as asked."""
    result = dict(given)
    arguments = result.get("args")
    if not (
        isinstance(arguments, list) and arguments and all(isinstance(a, str) for a in arguments)
    ):
        raise InvalidInput("process: args must be a list of at least one string")
    environment = result["env"] = list(result.get("env") or [])
    if not any(str(entry).startswith("HOME=") for entry in environment):
        environment.append(f"HOME={user.home}")
    umask = (result.get("user") or {}).get("umask")
    result["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional)}
    if umask is not None:
        result["user"]["umask"] = umask
    result["terminal"] = terminal
    if terminal and size != (0, 0):
        result["consoleSize"] = {"height": size[0], "width": size[1]}
    result.setdefault("cwd", "/")
    if not str(result["cwd"]).startswith("/"):
        raise InvalidInput(f"process: working directory {result['cwd']!r} is not absolute")
    # the agent itself is spared by the kernel's out-of-memory killer; what it starts must not inherit that
    result.setdefault("oomScoreAdj", 0)
    return result


def _mounts(given: list[Any], filling: Filling) -> list[dict[str, Any]]:
    result = []
    for mount in given:
        kind = mount.get("type")
        destination = mount.get("destination")
        if kind not in _MOUNT_TYPES:
            raise InvalidInput(f"mount at {destination}: type {kind!r} is not accepted here")
        if not isinstance(destination, str) or not destination.startswith("/"):
            raise InvalidInput(f"mount at {destination!r}: the destination is not an absolute path")
        if ".." in destination.split("/"):
            raise InvalidInput(f"mount at {destination}: the destination holds '..'")
        if kind == SHARE:
            mount = _bind(
                destination, _share_path(mount, filling.shares), mount.get("options") or []
            )
        result.append(mount)
    for destination, path in filling.files.items():
        result.append(_bind(destination, path, ["rw", "rprivate"]))
    return result


def _share_path(mount: Mapping[str, Any], shares: list[str]) -> str:
    source = str(mount.get("source"))
    if not (source.isascii() and source.isdecimal() and int(source) < len(shares)):
        raise InvalidInput(f"mount at {mount['destination']}: there is no share {source!r}")
    return shares[int(source)]


def _bind(destination: str, path: str, options: list[str]) -> dict[str, Any]:
    options = list(options) if {"bind", "rbind"} & set(options) else ["rbind", *options]
    return {"destination": destination, "type": "bind", "source": path, "options": options}


def _linux(given: Mapping[str, Any], filling: Filling) -> dict[str, Any]:
    result = dict(given)
    kinds = []
    for namespace in result.get("namespaces") or []:
        kind = namespace.get("type")
        if kind not in _NAMESPACES:
            raise InvalidInput(f"config: unknown namespace {kind!r}")
        if namespace.get("path"):
            raise InvalidInput(
                f"config: the path of the {kind} namespace is the agent's to fill in"
            )
        kinds.append(kind)
    if "mount" not in kinds:
        raise Unsupported("config: a container without a mount namespace of its own")
    wanted: dict[str, str | None] = dict.fromkeys(kinds, "")
    wanted |= filling.namespaces
    result["namespaces"] = [
        {"type": kind, "path": path} if path else {"type": kind}
        for kind, path in wanted.items()
        if path is not None
    ]
    for name in ("uidMappings", "gidMappings"):
        result.pop(name, None)
        if filling.id_map is not None and wanted.get("user") == "":
            size = filling.id_map.size
            result[name] = [{"containerID": 0, "hostID": filling.id_map.base, "size": size}]
    result["cgroupsPath"] = filling.cgroup
    return result
