"""A guest of the built image as nothing but QEMU starts it, with no libvirt and no daemon; and programs run in it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid.guest.image import GuestImage
from hybrid.link import serial
from hybrid.link.client import AgentClient
from hybrid.wire.journal import Parser
from hybrid.wire.messages import AckOutput, Delete, StartExec, WriteInput


@dataclass
class BareGuest:
    """Its QEMU, its agent's port and its console."""

    qemu: subprocess.Popen[bytes]
    port: Path
    console: Path

    async def connect(self, timeout: float = 60) -> AgentClient:
        return await AgentClient.connect(
            await serial.connect(self.port), timeout=timeout, name="machine m"
        )

    def log(self) -> str:
        return self.console.read_text(errors="replace")


@contextlib.contextmanager
def bare_guest(image: GuestImage, directory: Path, *extra: str) -> Iterator[BareGuest]:
    """Boots ``image``; port and console are in ``directory``, ``extra`` are more arguments of QEMU."""
    port, console = directory / "port", directory / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        # Listening before QEMU runs: whoever connects at once waits, and does not fail.
        listener.bind(str(port))
        listener.listen(1)
        command = [
            "qemu-system-x86_64",
            *("-machine", "q35,accel=tcg,usb=off", "-cpu", "max", "-m", "512", "-smp", "1"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{console}", "-kernel", str(image.kernel)),
            *("-initrd", str(image.initrd), "-append", image.command_line),
            *("-drive", f"if=none,id=r,file={image.root},format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=r,serial=hybrid-root"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=c,fd={listener.fileno()},server=on,wait=off"),
            *("-device", "virtserialport,chardev=c,name=hybrid.agent"),
            *extra,
        ]
        qemu = subprocess.Popen(command, pass_fds=[listener.fileno()])
    try:
        yield BareGuest(qemu, port, console)
    finally:
        qemu.kill()
        qemu.wait()


async def run(client: AgentClient, *arguments: str, stdin: bytes | None = None) -> bytes:
    """The output of a program that runs on the machine itself, outside all containers."""
    name = secrets.token_hex(4)
    process = {"args": list(arguments), "cwd": "/", "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    output = bytearray()
    async with contextlib.AsyncExitStack() as stack:
        reader = await stack.enter_async_context(client.open())
        await client.call(StartExec("", name, process, stdin is not None, reader.id))
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


async def shell(client: AgentClient, script: str) -> str:
    """The output of a script that runs there."""
    return (await run(client, "sh", "-c", script)).decode(errors="replace")
