"""The layers of an example image, as entries and as tar files;

The same bytes from the same packages and files.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.guest import bootstrap, bytecode, command, tree
from hybrid.guest.imagerecipe import ImageRecipe, User

_NEVER = ("dev/**", "proc/**", "sys/**", "run/**", "usr/lib/*/gconv/**") + tuple(
    f"usr/share/{name}/**"
    for name in ("bug", "doc", "doc-base", "info", "lintian", "locale", "man")
)


@dataclass(frozen=True)
class Entry:
    """One file of a layer; ``data`` is a regular file's content."""

    mode: int
    uid: int = 0
    gid: int = 0
    link: str = ""
    data: Callable[[], bytes] = field(default=bytes, compare=False)
    mtime: int = 0

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


Layer = dict[str, Entry]


def from_packages(tar: Path, keep: list[str], exclude: list[str]) -> tuple[Layer, int]:
    """The files of a packages tar that the globs leave, and the newest file's time.

    Directories and links get that time: theirs is the time of unpacking.
    """
    entries: Layer = {}
    with tarfile.open(tar) as archive:
        members = {os.path.normpath(member.name).lstrip("/"): member for member in archive}
    newest = max(int(member.mtime) for member in members.values() if member.isreg())
    rules = [*(keep or ["**"]), *(f"!{glob}" for glob in (*_NEVER, *exclude))]
    for name in tree.select(members, rules):
        member = members[name]
        if name != "." and not member.isdev():
            entries[name] = _entry(tar, member, newest)
    for name in list(entries):
        for parent in _parents(name):
            if parent not in entries:
                entries[parent] = _entry(tar, members[parent], newest)
    return entries, newest


def _entry(tar: Path, member: tarfile.TarInfo, newest: int) -> Entry:
    if member.isdir():
        return Entry(stat.S_IFDIR | member.mode, member.uid, member.gid, mtime=newest)
    if member.issym():
        return Entry(stat.S_IFLNK | 0o777, member.uid, member.gid, member.linkname, mtime=newest)
    return Entry(
        stat.S_IFREG | member.mode,
        member.uid,
        member.gid,
        data=lambda: _content(tar, member),
        mtime=int(member.mtime),
    )


def _content(tar: Path, member: tarfile.TarInfo) -> bytes:
    with tarfile.open(tar) as archive:
        file = archive.extractfile(member)  # follows a hard link
        return file.read() if file else b""


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def own_layer(recipe: ImageRecipe, directory: Path, below: Layer, tar: Path, newest: int) -> Layer:
    """The topmost layer: the recipe's files, users, directories, links and byte code."""
    users = {user.name: user for user in [*_debian_users(below), *recipe.users]}
    entries: Layer = {}
    files = directory / "files"
    for name in tree.files(files) if files.is_dir() else []:
        path = files / name
        executable = path.stat().st_mode & 0o100
        entries[name] = _file(path.read_bytes(), newest, 0o755 if executable else 0o644)
    if recipe.users:
        entries |= _accounts(list(users.values()), newest)
    for name, target in recipe.links.items():
        entries[name] = Entry(stat.S_IFLNK | 0o777, link=target, mtime=newest)
    if recipe.applets or recipe.compile:
        with tempfile.TemporaryDirectory(dir=tar.parent, prefix="unpack-") as scratch:
            bootstrap.unpack(tar, Path(scratch))
            entries |= _applets(recipe, Path(scratch), newest)
            entries |= _bytecode(recipe, Path(scratch), below, newest)
    for name in list(entries):
        for parent in _parents(name):
            entries.setdefault(
                parent, below.get(parent) or Entry(stat.S_IFDIR | 0o755, mtime=newest)
            )
    for item in recipe.directories:
        for parent in _parents(item.path):
            entries.setdefault(
                parent, below.get(parent) or Entry(stat.S_IFDIR | 0o755, mtime=newest)
            )
        owner = users[item.owner].id if item.owner != "root" else 0
        entries[item.path] = Entry(stat.S_IFDIR | int(item.mode, 8), owner, owner, mtime=newest)
    return entries


def _file(data: bytes, mtime: int, mode: int = 0o644) -> Entry:
    return Entry(stat.S_IFREG | mode, data=lambda: data, mtime=mtime)


def _debian_users(below: Layer) -> list[User]:
    """Debian's fixed accounts, where its base-passwd package is in the image."""
    master = below.get("usr/share/base-passwd/passwd.master")
    lines = master.data().decode().splitlines() if master else []
    fields = [line.split(":") for line in lines]
    return [
        User(name=one[0], id=int(one[2]), home=one[5], shell=one[6])
        for one in fields
        if len(one) == 7
    ]


def _accounts(users: list[User], newest: int) -> Layer:
    passwd = "".join(
        f"{user.name}:x:{user.id}:{user.id}::{user.home}:{user.shell}\n" for user in users
    )
    group = "".join(f"{user.name}:x:{user.id}:\n" for user in users)
    return {
        "etc/passwd": _file(passwd.encode(), newest),
        "etc/group": _file(group.encode(), newest),
    }


def _applets(recipe: ImageRecipe, unpacked: Path, newest: int) -> Layer:
    if not recipe.applets:
        return {}
    program = Path(recipe.applets)
    names = command.run([unpacked / program, "--list"]).split()
    link = Entry(stat.S_IFLNK | 0o777, link=program.name, mtime=newest)
    return {str(program.parent / name): link for name in names if name != program.name}


def _bytecode(recipe: ImageRecipe, unpacked: Path, below: Layer, newest: int) -> Layer:
    entries: Layer = {}
    for glob in recipe.compile:
        for directory in sorted(unpacked.glob(glob)):
            bytecode.compile_modules(unpacked, directory, unpacked, "/", beside=False)
            for path in sorted(directory.rglob("*.pyc")):
                source = path.parent.parent / (path.name.split(".")[0] + ".py")
                if str(source.relative_to(unpacked)) in below:
                    entries[str(path.relative_to(unpacked))] = _file(path.read_bytes(), newest)
    return entries


def write(layer: Layer, target: Path) -> None:
    """The layer as an uncompressed tar, in name order (so a directory comes before what is in it)."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, entry in sorted(layer.items()):
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid, info.mtime = (
                stat.S_IMODE(entry.mode),
                entry.uid,
                entry.gid,
                entry.mtime,
            )
            if entry.is_directory:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif entry.link:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
                archive.addfile(info)
            else:
                data = entry.data()
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def without(layer: Layer, names: Iterable[str]) -> Layer:
    """What of the layer is new, with the directories it is in."""
    known = set(names)
    new = {name: entry for name, entry in layer.items() if name not in known}
    for name in list(new):
        for parent in _parents(name):
            new[parent] = layer[parent]
    return new
