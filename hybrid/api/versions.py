"""The versions of the Docker Engine API that are spoken here. Pure."""

from __future__ import annotations

from hybrid.errors import InvalidInput

NEWEST = (1, 51)
OLDEST = (1, 24)
PREFIX = r"/{version:v\d+\.\d+}"
# Docker's own version that speaks the newest of these; some clients look at it.
ENGINE = "28.5.2"
Version = tuple[int, int]


def text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def parse(word: str) -> Version:
    """``v1.43`` as a version that is spoken here; InvalidInput in Docker's words otherwise."""
    major, _, minor = word.removeprefix("v").partition(".")
    if len(major) > 4 or len(minor) > 6:
        raise InvalidInput(f"client version {word[:20]} is invalid")
    version = (int(major), int(minor))
    if version < OLDEST:
        raise InvalidInput(
            f"client version {text(version)} is too old. Minimum supported API version is {text(OLDEST)}, please"
            " upgrade your client to a newer version"
        )
    if version > NEWEST:
        raise InvalidInput(
            f"client version {text(version)} is too new. Maximum supported API version is {text(NEWEST)}"
        )
    return version
