"""A folder of data files that says how something is built (see ``hybrid.guest.listing``)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hybrid.guest import bootstrap, listing

_BUILDERS = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """The data files of one folder below ``images/``."""

    directory: Path

    def section(self, name: str, section: str = "", **values: str) -> list[str]:
        """The items of one section of one file."""
        path = self.directory / name
        return listing.parse(path.read_text(), str(path), **values).get(section, [])

    def digest(self, more: Iterable[tuple[str, bytes]] = ()) -> str:
        """Of all that a build depends on: these files, the code that reads them, ``more``."""
        digest = hashlib.sha256(bootstrap.architecture().name.encode())
        paths = sorted(path for path in self.directory.rglob("*") if path.is_file())
        items = [(str(path.relative_to(self.directory)), path.read_bytes()) for path in paths]
        items += [(path.name, path.read_bytes()) for path in sorted(_BUILDERS.glob("*.py"))]
        for name, data in (*items, *more):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return digest.hexdigest()


def publish_link(link: Path, target: str) -> None:
    """Makes ``link`` point at ``target``, at once."""
    new = link.with_name(link.name + ".new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    os.replace(new, link)
