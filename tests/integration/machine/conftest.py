"""A root directory with a real provider, and guests of the built image."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from hybrid.guest.build import build_guest
from hybrid.guest.image import GuestImage
from hybrid.guest.tools import build_tools, tool
from hybrid.link.client import AgentClient
from hybrid.machine import profile
from hybrid.machine.provider import Boot, MachineRequest
from hybrid.machine.providers.libvirt import LibvirtProvider
from hybrid.machine.shares import ShareServer
from hybrid.paths import Paths
from tests.built import BUILT


@dataclass
class Setting:
    """A daemon's root and run directories, without a daemon."""

    paths: Paths
    image: GuestImage

    def request(self, **changes: object) -> MachineRequest:
        """A machine of the small shape."""
        boot = Boot(self.image.kernel, self.image.initrd, self.image.root, self.image.command_line)
        shape = profile.load("small")
        fields = {
            "id": secrets.token_hex(16),
            "name": "tested",
            "profile": shape,
            "memory": shape.memory,
            "cpus": shape.cpus,
            "boot": boot,
        }
        return MachineRequest(**(fields | changes))  # type: ignore[arg-type]

    def image_file(self, name: str, content: bytes, *, mode: int = 0o644) -> Path:
        """A disk image that begins with ``content``."""
        path = self.paths.root / "disks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.ljust(1 << 20, b"\0"))
        path.chmod(mode)
        return path

    def leftovers(self) -> list[str]:
        """What is left of machines: sockets, logs, processes, control groups."""
        files = [
            str(path)
            for top in (self.paths.run / "m", self.paths.root / "machines")
            for path in top.rglob("*")
            if top.is_dir()
        ]
        logs = [str(path) for path in (self.paths.libvirt / "log" / "qemu").glob("hybrid-*")]
        processes = subprocess.run(
            ["pgrep", "-af", self.paths.instance], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        groups = [str(path) for path in Path("/sys/fs/cgroup").rglob(f"*{self.paths.instance}*")]
        return files + logs + processes + groups


@pytest.fixture(scope="session")
def setting() -> Iterator[Setting]:
    # For the session: the embedded driver can be opened at one root only in the life of a process.
    image = build_guest(BUILT, print)
    BUILT.root.chmod(0o755)
    # Guests run as other users: everything on the way to their files must let them through.
    root = Path("/var/tmp") / f"hybrid-machine-{secrets.token_hex(4)}"
    root.mkdir(mode=0o711)
    paths = Paths.of(root)
    yield Setting(paths, image)
    shutil.rmtree(root)
    shutil.rmtree(paths.run, ignore_errors=True)


@pytest_asyncio.fixture
async def provider(setting: Setting) -> AsyncIterator[LibvirtProvider]:
    """An open provider; whatever a failed test leaves running is ended."""
    made = LibvirtProvider(setting.paths)
    await made.open()
    yield made
    for status in await made.list():
        await made.destroy(status.id)
    await made.close()


@pytest_asyncio.fixture
async def shares(setting: Setting) -> AsyncIterator[ShareServer]:
    build_tools(BUILT, print)
    made = ShareServer(setting.paths, lambda: tool(BUILT, "virtiofsd"))
    await made.open()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def agent(provider: LibvirtProvider, machine_id: str) -> AsyncIterator[AgentClient]:
    """The machine's agent."""
    client = await AgentClient.connect(
        await provider.connect(machine_id), timeout=60, name=f"machine {machine_id[:12]}"
    )
    try:
        yield client
    finally:
        await client.close()
