"""Who a process runs as: ``name:group`` resolved in the container's own /etc/passwd and /etc/group, as Docker does."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hybrid.agent import syscalls
from hybrid.errors import InvalidInput

_LARGEST_FILE = 4 << 20
_BLOCK = 64 << 10
_LARGEST_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class User:
    uid: int
    gid: int
    additional: list[int] = field(default_factory=list)
    home: str = "/"


def resolve(root: int, text: str, additional: Sequence[object] = ()) -> User:
    """``text`` is ``[user][:group]``, names or numbers; ``root`` a descriptor of the container's root directory."""
    return parse(
        text, additional, read_text(root, "/etc/passwd"), lambda: read_text(root, "/etc/group")
    )


def parse(text: str, additional: Sequence[object], passwd: str, group: Callable[[], str]) -> User:
    """As ``resolve``, from the files' contents; ``group`` is asked for them only if it matters."""
    name, _, group_name = text.partition(":")
    entries = list(_records(passwd, 7))
    user = next((e for e in entries if e[0] == name), None) if name else None
    number = 0 if not name else _number(name)
    if user is None:
        if number is None:
            raise InvalidInput(f"unable to find user {name}: no matching entries in passwd file")
        user = next((e for e in entries if _digits(e[2]) == number), None)
    uid = _number(user[2]) if user else number
    gid = _number(user[3]) if user else 0
    groups = list(_records(group(), 4)) if group_name or additional or user else []
    supplementary: list[int] = []
    if group_name:
        gid = _group(group_name, groups)
    elif user:
        members = ((g, g[3].split(",")) for g in groups)
        supplementary = [
            n for g, names in members if user[0] in names and (n := _number(g[2])) is not None
        ]
    for item in additional:
        supplementary.append(_group(str(item), groups))
    if uid is None or gid is None:
        raise InvalidInput(f"user {text}: the passwd file's entry has no valid ids")
    return User(
        uid, gid, list(dict.fromkeys([gid, *supplementary])), (user[5] if user else "") or "/"
    )


def read_text(root: int, path: str) -> str:
    """A small regular file in the container's root; "" if there is none."""
    try:
        descriptor = syscalls.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    data = b""
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            while len(data) <= _LARGEST_FILE and (more := os.read(descriptor, _BLOCK)):
                data += more
    finally:
        os.close(descriptor)
    if len(data) > _LARGEST_FILE:
        raise InvalidInput(f"{path} of the container is larger than {_LARGEST_FILE >> 20} MiB")
    return data.decode("utf-8", "surrogateescape")


def _records(text: str, size: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = line.strip().split(":")
        if fields[0] and not line.startswith("#"):
            yield (fields + [""] * size)[:size]


def _digits(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else None


def _number(text: str) -> int | None:
    number = _digits(text)
    if number is not None and number > _LARGEST_ID:
        raise InvalidInput(f"id {number} is out of range (0 … {_LARGEST_ID})")
    return number


def _group(name: str, groups: list[list[str]]) -> int:
    number = next((_number(g[2]) for g in groups if g[0] == name), None)
    if number is None:
        number = _number(name)
    if number is None:
        raise InvalidInput(f"unable to find group {name}: no matching entries in group file")
    return number
