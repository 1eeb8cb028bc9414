"""A guest that is started by hand, so that its port can be treated as badly as a dying daemon would."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hybrid.guest.build import build_guest
from hybrid.guest.image import GuestImage
from hybrid.link import serial
from hybrid.link.client import AgentClient
from hybrid.paths import Paths
from hybrid.wire.journal import Parser
from hybrid.wire.messages import AckOutput, CreateExec, Delete, ReadOutput, StartExec, WriteInput

# Kept between runs: an unchanged guest is not built again.
ROOT = Path("/var/tmp/hybrid-tests")


@dataclass
class Guest:
    """A booted guest, its port and its console."""

    socket: Path
    console: Path

    async def connect(self) -> AgentClient:
        return await AgentClient.connect(
            await serial.connect(self.socket), timeout=60, name="machine m"
        )


async def run(
    client: AgentClient, name: str, arguments: list[str], *, stdin: bytes | None = None
) -> bytes:
    """The output of a program that runs on the machine itself."""
    process = {"args": arguments, "cwd": "/", "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    await client.call(CreateExec("", name, process, stdin is not None))
    output = bytearray()
    async with contextlib.AsyncExitStack() as stack:
        reader = await stack.enter_async_context(client.open())
        await client.call(ReadOutput("", reader.id, exec=name))
        await client.call(StartExec("", name))
        if stdin is not None:
            writer = await stack.enter_async_context(client.open())
            await client.call(WriteInput("", writer.id, name))
            feeding = asyncio.create_task(writer.write(stdin))
            feeding.add_done_callback(lambda _: asyncio.ensure_future(writer.close_write()))
        parser, offset = Parser(), 0
        while data := await reader.read():
            for record in parser.feed(data):
                output += record.data
            offset += len(data)
            await client.call(AckOutput("", offset, name))
    await client.call(Delete("", name))
    return bytes(output)


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    return build_guest(Paths.of(ROOT), print)


@pytest.fixture(scope="module")
def guest(guest_image: GuestImage) -> Iterator[Guest]:
    """One guest for a whole module."""
    with tempfile.TemporaryDirectory(prefix="hybrid-") as directory:
        booted = Guest(Path(directory) / "port", Path(directory) / "console")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(booted.socket))
        listener.listen(1)
        qemu = subprocess.Popen(
            [
                "qemu-system-x86_64",
                *("-machine", "q35,accel=tcg,usb=off", "-cpu", "max", "-m", "512", "-smp", "1"),
                *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-serial", f"file:{booted.console}", "-kernel", str(guest_image.kernel)),
                *("-initrd", str(guest_image.initrd), "-append", guest_image.command_line),
                *("-drive", f"if=none,id=r,file={guest_image.root},format=raw,readonly=on"),
                *("-device", "virtio-blk-pci,drive=r,serial=hybrid-root"),
                *("-device", "virtio-serial-pci"),
                *("-chardev", f"socket,id=c,fd={listener.fileno()},server=on,wait=off"),
                *("-device", "virtserialport,chardev=c,name=hybrid.agent"),
            ],
            pass_fds=[listener.fileno()],
        )
        listener.close()
        try:
            yield booted
        finally:
            qemu.kill()
            qemu.wait()


@pytest.fixture
async def client(guest: Guest) -> AsyncIterator[AgentClient]:
    connected = await guest.connect()
    yield connected
    await connected.close()
