"""A built guest image: where its files are and how its kernel is started."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.errors import Internal, NotFound
from hybrid.paths import Paths

DESCRIPTION = "guest.json"


@dataclass(frozen=True)
class GuestImage:
    """``hash`` names the content. ``root`` is a squashfs with its dm-verity hash tree behind it.

    The guest finds ``root`` as the block device with the serial number ``hybrid-root``.
    ``command_line`` is complete and the same for every guest.
    """

    hash: str
    directory: Path
    kernel: Path
    initrd: Path
    root: Path
    command_line: str
    release: str  # of the kernel, as uname -r says it
    inputs: str  # digest of everything that the build depends on


def load(directory: Path) -> GuestImage:
    """The image in that directory."""
    try:
        fields: dict[str, Any] = json.loads((directory / DESCRIPTION).read_text())
        return GuestImage(
            hash=str(fields["hash"]),
            directory=directory,
            kernel=directory / "vmlinuz",
            initrd=directory / "initrd",
            root=directory / "root",
            command_line=str(fields["command_line"]),
            release=str(fields["release"]),
            inputs=str(fields["inputs"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Internal(
            f"guest image {directory}: unreadable description; run 'hybrid guest build'"
        ) from error


def current(paths: Paths) -> GuestImage:
    """The newest built image; NotFound if there is none."""
    link = paths.guest / "current"
    if not link.exists():
        raise NotFound("no guest image: run 'hybrid guest build'")
    return load(link.resolve())
