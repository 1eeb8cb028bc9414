"""A container's private writable disk: a sparse, already formatted ext4 file that its guest only
has to mount.

Formatting takes a few milliseconds, for inode tables and journal are left to the guest's kernel to
zero when it has time. The host never mounts it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from hybrid.errors import Internal, InvalidInput, Unavailable
from hybrid.image.blobs import disk_errors, room
from hybrid.units import GIB, MIB

DEFAULT_SIZE = 10 * GIB
MINIMUM_SIZE = 64 * MIB
_MAXIMUM_SIZE = 16 << 40
_MKE2FS = "/usr/sbin/mke2fs"
_OPTIONS = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"


def create(path: Path, size: int = DEFAULT_SIZE) -> None:
    """A fresh disk of ``size`` bytes at ``path``, which must not exist: it is there formatted or not
    at all, whenever this process dies. Blocks.
    """
    if not MINIMUM_SIZE <= size <= _MAXIMUM_SIZE:
        raise InvalidInput(f"a writable disk has 64 MiB to 16 TiB, not {size} bytes")
    with disk_errors(path):
        room(path.parent, 16 * MIB)
        descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
        try:
            os.ftruncate(descriptor, size - size % 4096)
            _format(Path(name))
            os.link(name, path)  # unlike a rename it never replaces another one's disk
        finally:
            os.unlink(name)
            os.close(descriptor)


def _format(path: Path) -> None:
    # no reserved blocks (-m 0): root in a container is nobody special
    command = [_MKE2FS, "-q", "-F", "-t", "ext4", "-m", "0", "-E", _OPTIONS, str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    except FileNotFoundError as error:
        raise Unavailable(f"{_MKE2FS} is missing: install the Debian package e2fsprogs") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"formatting {path} took more than two minutes") from error
    if done.returncode:
        room(path.parent, 16 * MIB)
        raise Internal(f"{_MKE2FS}: {done.stderr.decode(errors='replace').strip()[-300:]}")
