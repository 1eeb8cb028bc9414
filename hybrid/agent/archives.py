"""Files of a container as tar streams, in Docker's shape. The functions run in a ``worker``, inside its root."""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from hybrid.errors import Conflict, Forbidden, InvalidInput

with contextlib.suppress(ImportError):  # tarfile loads these when it meets a compressed stream
    import bz2  # noqa: F401
    import gzip  # noqa: F401
    import lzma  # noqa: F401

# names of users would be looked up by the C library, with what it finds in the container
tarfile.pwd = tarfile.grp = None  # type: ignore[attr-defined]

_XATTR = "SCHILY.xattr."
_BUFFER = 1 << 16
_DEEPEST = 8192  # frames: more than directories that a path of 4095 bytes can name


def stat_path(path: str) -> dict[str, Any]:
    """``PathStat`` fields of ``path``; a symlink is not followed unless the path ends with a slash."""
    path = _absolute(path)
    found = os.stat(path) if path.endswith(("/", "/.")) else os.lstat(path)
    return {
        "name": posixpath.basename(posixpath.normpath(path)) or "/",
        "size": found.st_size,
        "mode": found.st_mode,
        "mtime_ns": found.st_mtime_ns,
        "link_target": os.readlink(path) if stat.S_ISLNK(found.st_mode) else "",
    }


def get(path: str) -> Callable[[int, Callable[[Any], None]], None]:
    """Reports the path's stat, then writes the tar of it to the pipe."""

    def work(data: int, report: Callable[[Any], None]) -> None:
        report(stat_path(path))
        sys.setrecursionlimit(_DEEPEST)
        name = _absolute(path)
        top = "." if name.endswith("/.") else posixpath.basename(posixpath.normpath(name)) or "/"
        with (
            open(data, "wb", closefd=False, buffering=_BUFFER) as pipe,
            tarfile.open(
                fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT, errorlevel=2
            ) as archive,
        ):
            _add(archive, name if name.endswith("/") else name.rstrip("/") or "/", top)

    return work


def _add(archive: tarfile.TarFile, path: str, name: str) -> None:
    if stat.S_ISSOCK(os.lstat(path).st_mode):
        return
    member = archive.gettarinfo(path, name)
    member.pax_headers = _extended_attributes(path)
    if member.isreg():
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            # a file that shrinks or grows meanwhile still gives a well-formed archive
            archive.addfile(member, _Exactly(file, member.size))
    else:
        archive.addfile(member)
    if member.isdir():
        for child in sorted(os.listdir(path)):
            with contextlib.suppress(FileNotFoundError):
                _add(archive, posixpath.join(path, child), posixpath.join(name, child))


class _Exactly(io.RawIOBase):
    """Exactly ``size`` bytes of a file, filled up with zeros."""

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= wanted
        return data + bytes(wanted - len(data))


def _extended_attributes(path: str) -> dict[str, str]:
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(path, follow_symlinks=False):
            if name.startswith(("security.capability", "user.")):
                value = os.getxattr(path, name, follow_symlinks=False)
                found[_XATTR + name] = value.decode("utf-8", "surrogateescape")
    return found


def put(
    path: str, *, keep_kind: bool = False, owner: tuple[int, int] | None = None, top: bool = False
) -> Callable[[int, Callable[[Any], None]], None]:
    """Unpacks the tar from the pipe into the directory ``path``.

    ``keep_kind``: a directory and a file do not replace each other. ``owner``: whose everything becomes, else the
    archive's ids. ``top``: ``path`` itself gets what the archive says of ".".
    """

    def work(data: int, report: Callable[[Any], None]) -> None:
        target = _absolute(path)
        if not stat.S_ISDIR(os.stat(target).st_mode):
            raise InvalidInput(f"{path} is not a directory")
        times: list[tuple[str, float]] = []
        with open(data, "rb", closefd=False, buffering=_BUFFER) as pipe:
            try:
                with tarfile.open(fileobj=pipe, mode="r|*") as archive:
                    for member in archive:
                        if _inside(member.name) == ".":
                            if top:
                                _dress(member, target, owner)
                            continue
                        _extract(archive, member, target, keep_kind, owner)
                        if member.isdir():
                            times.append(
                                (posixpath.join(target, _inside(member.name)), member.mtime)
                            )
            except tarfile.TarError as error:
                raise InvalidInput(f"the archive cannot be read: {error}") from error
            while pipe.read(_BUFFER):  # what follows the end of the archive
                pass
        for name, mtime in reversed(times):
            with contextlib.suppress(OSError):
                os.utime(name, (mtime, mtime), follow_symlinks=False)

    return work


def _extract(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    target: str,
    keep_kind: bool,
    owner: tuple[int, int] | None,
) -> None:
    path = posixpath.join(target, _inside(member.name))
    _clear(path, member, keep_kind)
    parent = posixpath.dirname(path)
    if not os.path.isdir(parent):
        os.makedirs(parent, 0o755)
    _make(archive, member, path, target)
    _dress(member, path, owner)


def _dress(member: tarfile.TarInfo, path: str, owner: tuple[int, int] | None) -> None:
    uid, gid = owner or (member.uid, member.gid)
    os.lchown(path, uid, gid)
    if not member.issym():
        os.chmod(
            path, member.mode & 0o7777
        )  # after the owner: a change of owner clears set-id bits
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR):
            raw = value.encode("utf-8", "surrogateescape")
            os.setxattr(path, key[len(_XATTR) :], raw, follow_symlinks=False)
    os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _make(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, target: str) -> None:
    if member.isdir():
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    elif member.isreg():
        source = archive.extractfile(member)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            for block in _blocks(source):
                file.write(block)
    elif member.issym():
        os.symlink(member.linkname, path)
    elif member.islnk():
        os.link(posixpath.join(target, _inside(member.linkname)), path, follow_symlinks=False)
    elif member.isfifo():
        os.mkfifo(path, 0o600)
    elif member.ischr() or member.isblk():
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        try:
            os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
        except PermissionError:
            raise Forbidden(
                f"{member.name}: device nodes cannot be made in this container"
            ) from None
    else:
        raise InvalidInput(f"{member.name}: unknown kind of archive member")


def _blocks(source: Any) -> Iterator[bytes]:
    while source is not None and (block := source.read(_BUFFER)):
        yield block


def _clear(path: str, member: tarfile.TarInfo, keep_kind: bool) -> None:
    """Three cases of what is there already: a directory that stays, something that is replaced, a clash."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    is_directory = stat.S_ISDIR(there.st_mode)
    if is_directory and member.isdir():
        return
    if keep_kind and is_directory != member.isdir():
        verb = "directory" if is_directory else "non-directory"
        raise Conflict(f"cannot overwrite {verb} {member.name!r}")
    if is_directory:
        _remove_tree(path)
    else:
        os.unlink(path)


def _remove_tree(path: str) -> None:
    for directory, names, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(posixpath.join(directory, name))
        for name in names:
            child = posixpath.join(directory, name)
            if os.path.islink(child):
                os.unlink(child)
            else:
                os.rmdir(child)
    os.rmdir(path)


def _inside(name: str) -> str:
    clean = posixpath.normpath(name.lstrip("/") or ".")
    if clean == ".." or clean.startswith("../"):
        raise InvalidInput(f"archive member {name!r} points out of the target")
    return clean


def _absolute(path: str) -> str:
    if "\0" in path:
        raise InvalidInput("a path cannot hold a NUL")
    return path if path.startswith("/") else f"/{path}"
