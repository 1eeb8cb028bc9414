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
from hybrid.guest.imagerecipe import ImageRecipe

# left out: what a container gets fresh, what unpacking leaves behind, and what nobody reads there
_NEVER = (
    *("dev/**", "proc/**", "sys/**", "run/**", "etc/resolv.conf", "etc/hostname", "etc/fstab"),
    *(
        "etc/apt/**",
        "etc/dpkg/**",
        "var/lib/apt/**",
        "var/lib/dpkg/**",
        "var/cache/**",
        "var/log/**",
    ),
    "usr/lib/*/gconv/**",
    *(f"usr/share/{name}/**" for name in ("bug", "doc", "doc-base", "info", "lintian", "man")),
    "usr/share/locale/**",
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
    rules = [*(keep or ["**"]), *(f"!{glob}" for glob in (*_NEVER, *exclude))]
    chosen = tree.select(members, rules)
    newest = max(int(members[name].mtime) for name in chosen if members[name].isreg())
    for name in chosen:
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
    passwd, group = _accounts(recipe, below)
    entries: Layer = {}
    if passwd and (recipe.users or "etc/passwd" not in below):
        entries["etc/passwd"] = _file(passwd.encode(), newest)
        entries["etc/group"] = _file(group.encode(), newest)
    files = directory / "files"
    for name in tree.files(files) if files.is_dir() else []:
        path = files / name
        executable = path.stat().st_mode & 0o100
        entries[name] = _file(path.read_bytes(), newest, 0o755 if executable else 0o644)
    for name, target in recipe.links.items():
        entries[name] = Entry(stat.S_IFLNK | 0o777, link=target, mtime=newest)
    if recipe.applets or recipe.compile:
        with tempfile.TemporaryDirectory(dir=tar.parent, prefix="unpack-") as scratch:
            bootstrap.unpack(tar, Path(scratch))
            entries |= _applets(recipe, Path(scratch), newest)
            entries |= _bytecode(recipe, Path(scratch), below, newest)
    ids = {line.split(":")[0]: int(line.split(":")[2]) for line in passwd.splitlines()}
    for item in recipe.directories:
        owner = ids[item.owner] if item.owner != "root" else 0
        entries[item.path] = Entry(stat.S_IFDIR | int(item.mode, 8), owner, owner, mtime=newest)
    # an upper layer's directory hides the attributes of the lower one's: say them again
    plain = Entry(stat.S_IFDIR | 0o755, mtime=newest)
    for name in list(entries):
        for parent in _parents(name):
            entries.setdefault(parent, below.get(parent, plain))
    return entries


def _file(data: bytes, mtime: int, mode: int = 0o644) -> Entry:
    return Entry(stat.S_IFREG | mode, data=lambda: data, mtime=mtime)


def _accounts(recipe: ImageRecipe, below: Layer) -> tuple[str, str]:
    """/etc/passwd and /etc/group:

    Debian's fixed accounts, where base-passwd is there, and the recipe's.
    """
    passwd, group = (
        below[name].data().decode().replace(":*:", ":x:") if name in below else ""
        for name in (f"usr/share/base-passwd/{kind}.master" for kind in ("passwd", "group"))
    )
    for user in recipe.users:
        passwd += f"{user.name}:x:{user.id}:{user.id}::{user.home}:{user.shell}\n"
        group += f"{user.name}:x:{user.id}:\n"
    return passwd, group


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
    """The layer as an uncompressed tar, in name order: a directory comes before what is in it."""
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
