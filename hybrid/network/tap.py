"""Persistent tap devices, made by ioctl: the host end of one guest network interface.

The flags are those with which libvirt opens an existing device for ``<interface type='ethernet'>``
with ``managed='no'`` and one queue: IFF_VNET_HDR, no IFF_MULTI_QUEUE (the kernel refuses to open a
device whose multi-queue flag differs).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from hybrid.errors import Internal, Unsupported

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = (
    0x400454CA,
    0x400454CB,
    0x400454CC,
    0x400454CE,
)
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_ROOT = (0, 0)


def create(name: str, owner: tuple[int, int] | None) -> None:
    """A persistent tap that only ``owner`` (uid, gid) and root can open.

    Without an owner the kernel would let every user open it, so nobody means root.
    """
    uid, gid = owner or _ROOT
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(
            f"no tap devices on this host: /dev/net/tun: {error.strerror} (modprobe tun)"
        ) from error
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        fcntl.ioctl(descriptor, _TUNSETOWNER, uid)
        fcntl.ioctl(descriptor, _TUNSETGROUP, gid)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    except OSError as error:
        # A running guest holds its tap: it is there, and its owner can stay.
        if error.errno != errno.EBUSY:
            raise Internal(f"making tap device {name}: {error.strerror}") from error
    finally:
        os.close(descriptor)
