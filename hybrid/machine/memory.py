"""A guest's memory as a file that has no name: made, sealed, copied, and lent to one QEMU.

A template's memory is mapped by many guests, each as a user of its own, and QEMU opens such a file for writing even
where it maps it privately; a balloon device would punch holes into it. So it is a memfd: once the template is frozen
it is sealed (``F_SEAL_WRITE`` and all others, memfd_create(2)) and no user, root included, can change it any more,
while private mappings of it go on as before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hybrid.errors import Unavailable

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_BLOCK = 8 << 20


@dataclass(frozen=True)
class Backing:
    """What a guest's memory is. ``path`` leads to a file of exactly the guest's size.

    ``shared``: the guest writes to the file itself, as a file server for its shares needs it; else to copies of the
    pages that it changes.
    """

    path: str
    shared: bool


def create(name: str, size: int = 0) -> int:
    """The descriptor of a new, empty file in memory; Unavailable where the kernel has none."""
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
    except OSError as error:
        raise Unavailable(f"no memory for {name}: {error.strerror}") from error
    return descriptor


def seal(descriptor: int) -> None:
    """From here on nobody can change the file; Unavailable while somebody still writes to it."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        raise Unavailable(f"cannot seal a template's memory: {error.strerror}") from error


def is_sealed(descriptor: int) -> bool:
    """Whether nobody can change the file."""
    return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS


def digest(descriptor: int) -> str:
    """SHA-256 of the file's content, in hex."""
    found, offset = hashlib.sha256(), 0
    while data := os.pread(descriptor, _BLOCK, offset):
        found.update(data)
        offset += len(data)
    return found.hexdigest()


def used(descriptor: int) -> int:
    """The bytes of memory that the file takes."""
    return os.fstat(descriptor).st_blocks * 512


def copy(source: int, name: str) -> int:
    """A new file with the same content and the same holes."""
    size = os.fstat(source).st_size
    target = create(name, size)
    try:
        for start, end in _extents(source, size):
            os.lseek(target, start, os.SEEK_SET)
            offset = start
            while offset < end:
                offset += os.sendfile(target, source, offset, min(end - offset, _BLOCK))
    except BaseException as error:
        os.close(target)
        if isinstance(error, OSError):
            raise Unavailable(f"no memory for {name}: {error.strerror}") from error
        raise
    return target


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file has data."""
    # lseek moves the one offset that all users of the descriptor share: a file description of our own has its own.
    own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = 0
        while end < size:
            try:
                start = os.lseek(own, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data behind this
                    return
                raise
            end = os.lseek(own, start, os.SEEK_HOLE)
            yield start, end
    finally:
        os.close(own)


@contextmanager
def lent(descriptor: int, uid: int, gid: int) -> Iterator[str]:
    """A path by which processes of that user, and no others, can open the file while this is held.

    The descriptor of a process can be opened by whoever may look into that process (proc(5), ptrace(2)): so a process
    of that user holds it. It ends with this one, whatever happens: its standard input is a pipe from here.
    """
    holder = subprocess.Popen(
        ["/bin/cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        user=uid,
        group=gid,
        extra_groups=(),
        cwd="/",
        env={},
    )
    try:
        yield f"/proc/{holder.pid}/fd/{descriptor}"
    finally:
        holder.kill()
        with contextlib.suppress(OSError):
            holder.communicate()
