"""A host's side of the link for tests of the agent: containers from busybox layers, said shortly."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hybrid.link.client import AgentClient
from hybrid.link.transport import Transport
from hybrid.wire.journal import Parser, Record
from hybrid.wire.messages import (
    CreateContainer,
    Delete,
    Exited,
    IdMap,
    ReadOutput,
    Source,
    StartContainer,
    StartExec,
)

GROUP = "hybrid-test"  # the agent's --group
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_SETGID"]
CAPABILITIES += ["CAP_SETUID", "CAP_SETFCAP", "CAP_NET_BIND_SERVICE", "CAP_KILL", "CAP_NET_RAW"]


def make_layers(directory: Path) -> list[Path]:
    """Two layers: busybox; and a few files on top, one of the lower ones removed."""
    lower, upper = directory / "lower", directory / "upper"
    for name in ("bin", "etc", "tmp", "data", "dev", "proc", "sys", "home/ann"):
        (lower / name).mkdir(parents=True)
    (lower / "tmp").chmod(0o1777)
    shutil.copy("/usr/bin/busybox", lower / "bin/busybox")
    names = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
    for name in names.stdout.split():
        if name != "busybox":
            (lower / "bin" / name).symlink_to("busybox")
    (lower / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n"
    )
    (lower / "etc/group").write_text("root:x:0:\nann:x:1001:\nwheel:x:10:ann\nstaff:x:50:\n")
    (lower / "etc/removed").write_text("gone")
    (lower / "data/file").write_text("from the image\n")
    os.chown(lower / "data/file", 1000, 1001)
    os.chown(lower / "home/ann", 1000, 1001)
    (lower / "bin/notexec").write_text("x")
    upper.mkdir()
    (upper / "etc").mkdir()
    (upper / "etc/added").write_text("added\n")
    os.mknod(upper / "etc/removed", 0o20000, os.makedev(0, 0))
    found = []
    for tree in (lower, upper):
        image = directory / f"{tree.name}.squashfs"
        command = ["mksquashfs", str(tree), str(image), "-quiet", "-no-progress"]
        subprocess.run(command, check=True, capture_output=True)
        found.append(image)
    return found


class Driver:
    """A host's side of the link, and short ways to say common things."""

    def __init__(
        self,
        transport: Callable[[], Awaitable[Transport]],
        layers: list[Source],
        disks: list[Source] | None = None,
    ) -> None:
        self.transport, self.layers = transport, layers
        self.disks = disks or []
        self.oom: list[str] = []
        self.client: AgentClient
        self.exits: dict[tuple[str, str], asyncio.Future[Exited]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._number = 0

    async def connect(self) -> AgentClient:
        self.client = await AgentClient.connect(await self.transport(), timeout=60)
        self._listener = asyncio.create_task(self._listen(self.client))
        return self.client

    async def disconnect(self) -> None:
        await self.client.close()
        if self._listener is not None:
            await self._listener

    async def _listen(self, client: AgentClient) -> None:
        async for event in client.events():
            if isinstance(event, Exited):
                key = (event.state.container, event.state.exec)
                future = self.exits.setdefault(key, asyncio.get_running_loop().create_future())
                if not future.done():
                    future.set_result(event)
            else:
                self.oom.append(event.container)

    async def exited(self, container: str, exec_id: str = "") -> int:
        """The exit code, when the event has come."""
        key = (container, exec_id)
        future = self.exits.setdefault(key, asyncio.get_running_loop().create_future())
        return (await asyncio.wait_for(asyncio.shield(future), 90)).state.exit_code

    def request(self, *args: str, name: str = "", **changes: Any) -> CreateContainer:
        """A container in a user namespace that runs ``args``; ``process`` and ``linux`` update the config."""
        if not name:
            self._number += 1
            name = f"c{self._number}-{os.getpid()}"
        config = config_of(list(args), changes.pop("process", {}), changes.pop("linux", {}))
        config["mounts"] += changes.pop("mounts", [])
        fields: dict[str, Any] = {
            "layers": self.layers,
            "writable": None,
            "id_map": IdMap(100000),
            "network": "own",
        }
        return CreateContainer(name, config, **(fields | changes))

    async def start(self, request: CreateContainer) -> str:
        await self.client.call(request)
        await self.client.call(StartContainer(request.container))
        return request.container

    async def records(self, container: str, exec_id: str = "", offset: int = 0) -> list[Record]:
        """The whole output."""
        stream = self.client.open()
        await self.client.call(ReadOutput(container, stream.id, offset, exec_id))
        parser, found = Parser(), []
        while data := await stream.read():
            found += parser.feed(data)
        return found

    async def text(self, container: str, exec_id: str = "", stream: int = 1) -> str:
        records = await self.records(container, exec_id)
        return b"".join(r.data for r in records if r.stream == stream).decode()

    async def run(self, *args: str, **changes: Any) -> tuple[int, str, str]:
        """Runs a container to its end: exit code, stdout, stderr."""
        name = await self.start(self.request(*args, **changes))
        records = await self.records(name)
        code = await self.exited(name)
        await self.client.call(Delete(name))
        texts = (b"".join(r.data for r in records if r.stream == n).decode() for n in (1, 2))
        return code, *texts

    async def execute(self, container: str, *args: str, **process: Any) -> tuple[int, str, str]:
        """Runs one more process to its end."""
        self._number += 1
        name = f"e{self._number}"
        spec = {"args": list(args), "env": ["PATH=/bin:/usr/bin"], **process}
        await self.client.call(StartExec(container, name, spec))
        records = await self.records(container, name)
        code = await self.exited(container, name)
        await self.client.call(Delete(container, name))
        texts = (b"".join(r.data for r in records if r.stream == n).decode() for n in (1, 2))
        return code, *texts


async def address_spaces(driver: Driver) -> list[tuple[str, str]]:
    """Personality and place of the stack: of two containers' own processes, and of two that joined one."""
    script = "cat /proc/self/personality; grep stack /proc/self/maps"
    shown = [(await driver.run("sh", "-c", script))[1] for _ in range(2)]
    name = await driver.start(driver.request("sleep", "100"))
    shown += [(await driver.execute(name, "sh", "-c", script))[1] for _ in range(2)]
    await driver.client.call(Delete(name))
    return [(text.split()[0], text.split()[1]) for text in shown]


def config_of(args: list[str], process: dict[str, Any], linux: dict[str, Any]) -> dict[str, Any]:
    """An OCI config like the host's, short."""
    sets = {name: CAPABILITIES for name in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "user": {"username": ""},
            "capabilities": sets,
            "noNewPrivileges": True,
        }
        | process,
        "root": {},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["ro", "nosuid", "noexec", "nodev"],
            },
        ],
        "linux": {
            "namespaces": [
                {"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network", "cgroup")
            ],
            "personality": {"domain": "LINUX"},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    {"names": ["keyctl", "bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
                ],
            },
        }
        | linux,
    }
