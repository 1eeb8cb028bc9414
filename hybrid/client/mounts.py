"""Mounts as people write them: ``-v source:/target:ro``, ``--mount type=…``, ``--tmpfs
/run:size=64m``."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hybrid.errors import InvalidInput
from hybrid.units import parse_size

MOUNT_KINDS = ("bind", "volume", "tmpfs")
_TRUE, _FALSE = ("", "1", "true"), ("0", "false")


@dataclass(frozen=True)
class VolumeFlag:
    """A ``-v`` value; ``source`` "" is an anonymous volume, an absolute path a bind mount."""

    source: str
    target: str
    options: str = ""

    @property
    def anonymous(self) -> bool:
        return not self.source

    @property
    def bind(self) -> bool:
        return self.source.startswith("/")

    def text(self) -> str:
        """As ``HostConfig.Binds`` has it."""
        return ":".join(part for part in (self.source, self.target, self.options) if part)


def parse_volume(text: str, directory: str) -> VolumeFlag:
    """One ``-v`` value; a source that starts with ``.`` or ``~`` is a path, relative to
    ``directory``."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidInput(f"invalid volume {text!r}: expected [source:]/target[:options]")
    source, target, options = "", parts[0], ""
    if len(parts) > 1:
        source, target, options = parts[0], parts[1], ":".join(parts[2:])
    if not target.startswith("/"):
        raise InvalidInput(f"invalid volume {text!r}: the target must be an absolute path")
    if source.startswith((".", "~")):
        source = os.path.normpath(os.path.join(directory, os.path.expanduser(source)))
    if "/" in source and not source.startswith("/"):
        raise InvalidInput(f"invalid volume {text!r}: a name or an absolute path before the colon")
    return VolumeFlag(source, target, options)


def parse_tmpfs(text: str) -> tuple[str, str]:
    """One ``--tmpfs`` value as (target, options)."""
    target, _, options = text.partition(":")
    if not target.startswith("/"):
        raise InvalidInput(f"invalid tmpfs {text!r}: the target must be an absolute path")
    return target, options


def parse_mount(text: str, directory: str) -> dict[str, Any]:
    """One ``--mount`` value as an element of ``HostConfig.Mounts``; unknown keys are refused."""
    mount: dict[str, Any] = {"Type": "volume"}
    for field in next(csv.reader([text])):
        key, _, value = field.partition("=")
        try:
            setter = _MOUNT_KEYS[key.strip().lower()]
        except KeyError:
            raise InvalidInput(f"invalid mount {text!r}: unknown key {key!r}") from None
        try:
            setter(mount, value)
        except ValueError as error:
            raise InvalidInput(f"invalid mount {text!r}: {key}: {error}") from error
    if not str(mount.get("Target", "")).startswith("/"):
        raise InvalidInput(f"invalid mount {text!r}: an absolute target is needed")
    if mount["Type"] == "bind":
        if not mount.get("Source"):
            raise InvalidInput(f"invalid mount {text!r}: a bind mount needs a source")
        mount["Source"] = os.path.normpath(
            os.path.join(directory, os.path.expanduser(mount["Source"]))
        )
    elif mount["Type"] == "tmpfs" and mount.get("Source"):
        raise InvalidInput(f"invalid mount {text!r}: a tmpfs has no source")
    for kind in MOUNT_KINDS:
        options = f"{kind.capitalize()}Options"
        if options in mount and kind != mount["Type"]:
            raise InvalidInput(f"invalid mount {text!r}: {kind} options on a {mount['Type']} mount")
    return mount


def _set(name: str) -> Callable[[dict[str, Any], str], None]:
    def setter(mount: dict[str, Any], value: str) -> None:
        if not value:
            raise ValueError("no value")
        mount[name] = value

    return setter


def _kind(mount: dict[str, Any], value: str) -> None:
    if value not in MOUNT_KINDS:
        raise ValueError(f"{value!r} is none of {', '.join(MOUNT_KINDS)}")
    mount["Type"] = value


def _flag(name: str) -> Callable[[dict[str, Any], str], None]:
    def setter(mount: dict[str, Any], value: str) -> None:
        mount[name] = _boolean(value)

    return setter


def _option(
    group: str, name: str, convert: Callable[[str], Any]
) -> Callable[[dict[str, Any], str], None]:
    def setter(mount: dict[str, Any], value: str) -> None:
        mount.setdefault(group, {})[name] = convert(value)

    return setter


def _volume_label(mount: dict[str, Any], value: str) -> None:
    name, _, text = value.partition("=")
    mount.setdefault("VolumeOptions", {}).setdefault("Labels", {})[name] = text


def _boolean(value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def _octal(value: str) -> int:
    return int(value, 8)


_MOUNT_KEYS: dict[str, Callable[[dict[str, Any], str], None]] = {
    "type": _kind,
    "source": _set("Source"),
    "src": _set("Source"),
    "target": _set("Target"),
    "dst": _set("Target"),
    "destination": _set("Target"),
    "readonly": _flag("ReadOnly"),
    "ro": _flag("ReadOnly"),
    "bind-propagation": _option("BindOptions", "Propagation", str),
    "volume-nocopy": _option("VolumeOptions", "NoCopy", _boolean),
    "volume-subpath": _option("VolumeOptions", "Subpath", str),
    "volume-label": _volume_label,
    "tmpfs-size": _option("TmpfsOptions", "SizeBytes", parse_size),
    "tmpfs-mode": _option("TmpfsOptions", "Mode", _octal),
}
