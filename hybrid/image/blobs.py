"""Content-addressed files: ``blobs/sha256/<hex>`` of an OCI image layout. What is there is complete
and verified.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from hybrid.errors import Internal, InvalidInput, Unavailable
from hybrid.image import digest as digests

CHUNK = 1 << 20
_RESERVE = 64 << 20  # free space that is left to everybody else


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Translates what a file system says: full is Unavailable, anything else Internal."""
    try:
        yield
    except ConnectionError:  # the source's, not the disk's
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                f"no space left on the file system of {where}; free some and try again"
            ) from error
        raise Internal(f"{error.filename or where}: {error.strerror}") from error


def room(where: Path, needed: int) -> None:
    """Unavailable if ``needed`` more bytes would fill the file system of ``where``."""
    free = shutil.disk_usage(where).free
    if needed + _RESERVE > free:
        raise Unavailable(
            f"no space left: {needed >> 20} MiB are needed on the file system of {where}, "
            f"{free >> 20} MiB are free"
        )


def replace_file(path: Path, data: bytes) -> None:
    """Writes ``path`` so that a crash leaves the old content or the new."""
    with (
        disk_errors(path),
        tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file,
    ):
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes renames in ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Blobs:
    """The blobs below one directory."""

    def __init__(self, layout: Path) -> None:
        self.directory = layout / "blobs" / "sha256"

    def path(self, digest: str) -> Path:
        return self.directory / digests.hexadecimal(digest)

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def read(self, digest: str, limit: int) -> bytes:
        """The content of a small blob, verified again; Internal if it is missing or damaged."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise Internal(
                f"the image store lacks {digest}: {error.strerror}; load the image again"
            ) from error
        if len(data) > limit or digests.of(data) != digest:
            raise Internal(f"the image store's {digest} is damaged; load the image again")
        return data

    def write(self, data: bytes) -> str:
        """Stores ``data``; its digest."""
        digest = digests.of(data)
        if not self.has(digest):
            with disk_errors(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            replace_file(self.path(digest), data)
        return digest

    def copy(self, source: BinaryIO, offset: int, size: int, expected: str = "") -> str:
        """Stores ``size`` bytes from ``offset`` of ``source``; InvalidInput if their digest is not
        ``expected``.
        """
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.directory, prefix=".", delete=False) as file:
                try:
                    digest = _copy(source, offset, size, file)
                    if expected and digest != expected:
                        raise InvalidInput(
                            f"wrong digest: {expected} is announced, the content is {digest}"
                        )
                    file.flush()
                    os.fsync(file.fileno())
                    os.chmod(file.name, 0o644)
                    os.replace(file.name, self.path(digest))
                except BaseException:
                    os.unlink(file.name)
                    raise
            sync_directory(self.directory)
        return digest

    def all(self) -> set[str]:
        """The digests of all blobs."""
        if not self.directory.is_dir():
            return set()
        return {
            digests.PREFIX + path.name for path in self.directory.iterdir() if len(path.name) == 64
        }

    def delete(self, digest: str) -> None:
        """Forgets a blob; idempotent."""
        self.path(digest).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what a crash left half-written."""
        if self.directory.is_dir():
            for path in self.directory.glob(".*"):
                path.unlink()


def _copy(source: BinaryIO, offset: int, size: int, target: IO[bytes]) -> str:
    source.seek(offset)
    digest = hashlib.sha256()
    left = size
    while left:
        chunk = source.read(min(left, CHUNK))
        if not chunk:
            raise InvalidInput("the archive is truncated: it ends inside a member")
        digest.update(chunk)
        target.write(chunk)
        left -= len(chunk)
    return digests.PREFIX + digest.hexdigest()
