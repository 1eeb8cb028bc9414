"""A guest of the built image, started by hand, with layers on SCSI disks and a writable disk for every container."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hybrid.guest.build import build_guest
from hybrid.guest.tools import build_tools, tool
from hybrid.link import serial
from hybrid.link.transport import Transport
from hybrid.wire.messages import Configure, Source
from tests.agentdriver import Driver, make_layers
from tests.bareguest import BareGuest, bare_guest
from tests.built import BUILT

DISKS = 4
MAC = "02:00:0a:00:02:0f"


@dataclass
class Guest:
    bare: BareGuest
    layers: list[Source]
    disks: list[Source]
    shared: Path  # served to the guest as the virtiofs tag "shared"


def _disk(number: int, path: Path, serial_number: str, read_only: bool) -> list[str]:
    drive = f"if=none,id=d{number},file={path},format=raw,readonly={'on' if read_only else 'off'}"
    device = f"scsi-hd,drive=d{number},serial={serial_number},bus=s.0,lun={number}"
    return ["-drive", drive, "-device", device]


def _serve(directory: Path, socket: Path) -> subprocess.Popen[bytes]:
    """A virtiofsd as for a named volume."""
    build_tools(BUILT, print)
    command = tool(BUILT, "virtiofsd")
    command += [f"--socket-path={socket}", f"--shared-dir={directory}", "--xattr"]
    process = subprocess.Popen([*command, "--sandbox=chroot"], stderr=subprocess.DEVNULL)
    while not socket.exists():
        assert process.poll() is None, "virtiofsd did not start"
    return process


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One guest for a whole module."""
    image = build_guest(BUILT, print)
    with tempfile.TemporaryDirectory(prefix="hybrid-") as name:
        directory = Path(name)
        arguments: list[str] = []
        layers, disks = [], []
        for number, path in enumerate(make_layers(tmp_path_factory.mktemp("layers"))):
            arguments += _disk(number, path, f"layer{number}", True)
            layers.append(Source("disk", f"layer{number}"))
        for number in range(DISKS):
            path = directory / f"disk{number}"
            subprocess.run(["mke2fs", "-q", "-t", "ext4", str(path), "64M"], check=True)
            arguments += _disk(10 + number, path, f"disk{number}", False)
            disks.append(Source("disk", f"disk{number}"))
        shared = directory / "shared"
        shared.mkdir()
        (shared / "sub").mkdir()
        server = _serve(shared, directory / "fs")
        arguments += [
            *("-netdev", "user,id=n,restrict=on"),
            *("-device", f"virtio-net-pci,netdev=n,mac={MAC},romfile="),
            *("-object", "memory-backend-memfd,id=mem,size=512M,share=on"),
            *("-numa", "node,memdev=mem"),
            *("-chardev", f"socket,id=f,path={directory}/fs"),
            *("-device", "vhost-user-fs-pci,chardev=f,tag=shared"),
        ]
        try:
            with bare_guest(
                image, directory, "-device", "virtio-scsi-pci,id=s", *arguments
            ) as bare:
                yield Guest(bare, layers, disks, shared)
                print(bare.log()[-4000:])
        finally:
            server.kill()
            server.wait()


@pytest.fixture
async def driver(guest: Guest) -> AsyncIterator[Driver]:
    async def transport() -> Transport:
        return await serial.connect(guest.bare.port)

    found = Driver(transport, guest.layers, guest.disks)
    await found.connect()
    await found.client.call(
        Configure(
            "m1", "tested", 1_800_000_000_000_000_000, bytes(64), lock_down=True, emulated=True
        )
    )
    yield found
    await found.disconnect()
