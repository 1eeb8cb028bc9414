"""Devices that the host plugs in, found by the names it gave them; and loop devices made from files."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hybrid.agent import descriptors
from hybrid.errors import Internal, Unavailable, Unsupported

_SYS = Path("/sys/block")
_SHARES = Path("/sys/fs/virtiofs")
_T = TypeVar("_T")
_serials: dict[str, tuple[bytes, str]] = {}  # of disks that were asked, by name
_WAIT = 30.0  # seconds for a hot-plugged disk to show up

# include/uapi/linux/loop.h
_LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C0A, 0x4C82
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_CONFIG = struct.Struct("=II232s64x")  # fd, block_size, struct loop_info64, reserved
_LOOP_FLAGS_OFFSET = 52  # lo_flags in struct loop_info64
_LOOP_MAJOR = 7


async def by_serial(serial: str) -> str:
    """The path of the disk with that serial number; waits for one that is just being plugged in."""
    return await _appeared(lambda: _find(serial), f"disk with serial {serial}")


async def share_tag(tag: str) -> None:
    """Waits until the kernel knows the virtiofs ``tag``. Before Linux 6.9 it does not tell: no wait then."""
    await _appeared(lambda: _tag_known(tag), f"shared directory with tag {tag}")


async def _appeared(find: Callable[[], _T | None], what: str) -> _T:
    with _uevents() as events:  # opened before looking, so that nothing is missed in between
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _WAIT
        while (found := find()) is None:
            try:
                async with asyncio.timeout_at(deadline):
                    await loop.sock_recv(events, 16384)
            except TimeoutError:
                raise Unavailable(f"no {what} appeared in {_WAIT:.0f} s") from None
            except OSError:  # ENOBUFS: events were lost, so look again
                continue
        return found


def _uevents() -> socket.socket:
    """The kernel's device events (group 1; ``NETLINK_KOBJECT_UEVENT`` is protocol 15)."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 15)
    events.setblocking(False)
    events.bind((0, 1))
    return events


def _find(serial: str) -> str | None:
    for name in os.listdir(_SYS):
        if _serial_of(name) == serial and os.path.exists(f"/dev/{name}"):
            return f"/dev/{name}"
    return None


def _serial_of(name: str) -> str:
    """The disk is asked once: with many, or an emulated processor, asking takes long."""
    sequence = _content(f"{_SYS}/{name}/diskseq")  # no two disks of one boot have the same
    known, serial = _serials.get(name, (b"", ""))
    if not sequence or known != sequence:
        serial = _serial(name)
        if serial:
            _serials[name] = sequence, serial
    return serial


def _tag_known(tag: str) -> bool | None:
    if not _SHARES.is_dir():
        return True
    known = (file.read_text().strip() for file in _SHARES.glob("*/tag"))
    return True if tag in known else None


def _serial(name: str) -> str:
    """virtio-blk tells it in ``serial``, SCSI in page 0x80 of its vital product data (four bytes of header)."""
    found = _content(f"{_SYS}/{name}/serial") or _content(f"{_SYS}/{name}/device/vpd_pg80")[4:]
    return found.decode("ascii", "replace").strip("\0 \n")


def _content(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def attach_loop(path: str) -> tuple[str, int]:
    """A read-only loop device on ``path``, and a descriptor that keeps it: it goes when that and all mounts have."""
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(
            f"no loop devices on this machine: /dev/loop-control: {error.strerror} (modprobe loop)"
        ) from error
    backing = -1
    try:
        backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        for _ in range(64):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = _loop_node(number)
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            info = bytearray(232)
            struct.pack_into(
                "=I", info, _LOOP_FLAGS_OFFSET, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
            )
            try:
                fcntl.ioctl(descriptor, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(backing, 0, bytes(info)))
                return device, descriptor
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:  # that: another process was faster with this number
                    raise
        raise Internal(f"no free loop device for {path}")
    finally:
        descriptors.close(control, backing)


def _loop_node(number: int) -> str:
    device = f"/dev/loop{number}"
    if not Path(device).exists():  # a /dev that is no devtmpfs
        os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, number))
    return device
