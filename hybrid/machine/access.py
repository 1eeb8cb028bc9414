"""Giving a guest's QEMU, which runs as a uid of its own, what it needs of the host's files, and no
more.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hybrid.errors import Internal, NotFound, Unavailable
from hybrid.machine.provider import Disk, ShareDevice

_SEARCH = stat.S_IXGRP | stat.S_IXOTH


def let_through(path: Path, ours: tuple[Path, ...]) -> None:
    """Makes ``path``'s directories searchable for any uid: those below ``ours``; others must be so
    already.
    """
    for directory in path.parents:
        mode = directory.stat().st_mode
        if mode & stat.S_IXOTH:
            continue
        if not any(directory == top or top in directory.parents for top in ours):
            raise Unavailable(
                f"guests cannot reach {path}: {directory} is closed to other users"
                f" (chmod o+x {directory}, or choose another --root)"
            )
        directory.chmod(stat.S_IMODE(mode) | _SEARCH)


def grant_disk(disk: Disk, uid: int, gid: int, ours: tuple[Path, ...]) -> None:
    """A writable image becomes the guest's own; a shared one must be readable by all and is left
    alone.
    """
    try:
        mode = disk.path.stat().st_mode
    except FileNotFoundError as error:
        raise NotFound(f"disk image {disk.path} does not exist") from error
    if not stat.S_ISREG(mode):
        raise Internal(f"disk image {disk.path} is not a regular file")
    if not disk.read_only:
        os.chown(disk.path, uid, gid)
        disk.path.chmod(0o600)
    elif not mode & stat.S_IROTH:
        raise Internal(f"disk image {disk.path} is shared by guests but not readable by all users")
    let_through(disk.path, ours)


def grant_share(share: ShareDevice, uid: int, gid: int, ours: tuple[Path, ...]) -> None:
    """The file server's socket becomes the guest's own: nobody else can talk to it."""
    try:
        os.chown(share.socket, uid, gid)
        share.socket.chmod(0o600)
    except FileNotFoundError as error:
        raise Unavailable(f"nothing serves the share {share.tag}: no {share.socket}") from error
    let_through(share.socket, ours)
