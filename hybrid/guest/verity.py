"""The dm-verity hash tree of a file (type 1, sha256, 4096-byte blocks, no salt, no superblock).

The layout is the kernel's (``Documentation/admin-guide/device-mapper/verity.rst``): the levels are
stored from the top (one block) down; the root hash is that of the top block.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

BLOCK = 4096


@dataclass(frozen=True)
class Verity:
    """What the kernel must be told: the trusted root, and where the tree starts."""

    root_hash: str
    hash_offset: int


def _level(data: bytes) -> bytes:
    digests = b"".join(sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK))
    return digests + bytes(-len(digests) % BLOCK)


def append(path: Path) -> Verity:
    """Pads the file to whole blocks and appends its hash tree."""
    data = path.read_bytes()
    data += bytes(-len(data) % BLOCK)
    levels = [_level(data)]
    while len(levels[-1]) > BLOCK:
        levels.append(_level(levels[-1]))
    path.write_bytes(data + b"".join(reversed(levels)))
    return Verity(sha256(levels[-1]).hexdigest(), len(data))
