"""Content digests: ``sha256:`` and 64 hex digits. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from hybrid.errors import InvalidInput

PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def checked(text: str) -> str:
    """``text`` if it is a digest that hybrid can verify; InvalidInput otherwise."""
    if not _DIGEST.fullmatch(text):
        raise InvalidInput(f"invalid digest {text[:100]!r}: sha256 and 64 hex digits are needed")
    return text


def of(data: bytes) -> str:
    """The digest of ``data``."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def hexadecimal(digest: str) -> str:
    """The hex digits of a digest: a safe file name."""
    return checked(digest).removeprefix(PREFIX)


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each layer: what it is on top of its lower ones (OCI image spec, "Layer
    ChainID").
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
