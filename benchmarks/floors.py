"""The least that can be done: our guest image on bare QEMU, booted or cloned, without libvirt and without a daemon.

QEMU's command line is made from one of our own guests': the same machine type, accelerator, CPU and memory.
The clock runs from QEMU's start to the agent's hello.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paired import Failed, Side
from hybrid.guest.image import GuestImage
from hybrid.link.client import AgentClient
from hybrid.link.transport import SocketTransport

TIMEOUT = 120.0
SAME = ("-accel", "-cpu", "-m", "-smp")
MEMORY = Path("/dev/shm")  # a tmpfs


class Bare:
    """A running QEMU: its monitor and its agent's port, both connected before it ran."""

    def __init__(self, monitor: socket.socket, port: socket.socket) -> None:
        monitor.settimeout(TIMEOUT)
        self._monitor = monitor.makefile("rw", encoding="utf-8")
        self._port = port

    def ask(self, execute: str, **arguments: Any) -> Any:
        """One call of the monitor and its answer; events are passed over."""
        request: dict[str, Any] = {"execute": execute, "arguments": arguments}
        self._monitor.write(json.dumps(request) + "\n")
        self._monitor.flush()
        for line in self._monitor:
            answer = json.loads(line)
            if "error" in answer:
                raise Failed(f"QEMU: {execute}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise Failed(f"QEMU ended at {execute}")

    def migrate(self, command: str, uri: str) -> None:
        """Saves or loads the devices' state; the memory stays in its file."""
        ignored = [{"capability": "x-ignore-shared", "state": True}]
        self.ask("migrate-set-capabilities", capabilities=ignored)
        self.ask(command, uri=uri)
        while (status := self.ask("query-migrate").get("status")) != "completed":
            if status == "failed":
                raise Failed(f"QEMU: {command} failed")
            time.sleep(0.001)

    def hello(self) -> None:
        """The agent has answered."""

        async def greet() -> None:
            transport = SocketTransport(self._port, "bare guest", resync=True)
            await (await AgentClient.connect(transport, timeout=TIMEOUT)).close()

        asyncio.run(greet())


class Floors:
    """``ours`` is the command line of one of our guests' QEMU."""

    def __init__(self, ours: Sequence[str], image: GuestImage) -> None:
        self._image = image
        options = dict(itertools.pairwise(ours))
        machine = re.sub(r"memory-backend=[^,]*", "memory-backend=ram", options["-machine"])
        size = options["-m"].removeprefix("size=").split(",")[0]
        size += "M" if size.isdigit() else ""
        self._backend = (
            f"memory-backend-file,id=ram,size={size},x-use-canonical-path-for-ramblock-id=off"
        )
        self._command = [ours[0], "-machine", machine]
        self._command += [
            word for name in SAME if name in options for word in (name, options[name])
        ]
        self._command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        self._command += ["-serial", "null", "-device", "virtio-serial-pci,max_ports=2"]
        self._command += ["-drive", f"if=none,id=root,format=raw,readonly=on,file={image.root}"]
        self._command += ["-device", "virtio-blk-pci,drive=root,serial=hybrid-root"]
        self._boots = ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        self._boots += ["-append", image.command_line]

    @contextlib.contextmanager
    def _qemu(self, ram: str, *more: str, inherit: Sequence[int] = ()) -> Iterator[Bare]:
        monitor, theirs = socket.socketpair()
        port, other = socket.socketpair()
        ends = [theirs.fileno(), other.fileno()]
        command = [*self._command, "-object", f"{self._backend},{ram}", *more]
        command += ["-chardev", f"socket,id=monitor,fd={ends[0]}"]
        command += ["-mon", "chardev=monitor,mode=control"]
        command += ["-chardev", f"socket,id=agent,fd={ends[1]}"]
        command += ["-device", "virtserialport,chardev=agent,name=hybrid.agent"]
        with contextlib.ExitStack() as stack:
            stack.enter_context(monitor)
            stack.enter_context(port)
            process = subprocess.Popen(command, pass_fds=[*ends, *inherit])
            stack.callback(process.wait)
            stack.callback(process.kill)
            theirs.close()
            other.close()
            bare = Bare(monitor, port)
            yield bare

    def boot(self) -> float:
        """A boot from nothing."""
        with tempfile.NamedTemporaryFile(dir=MEMORY) as ram:
            start = time.perf_counter()
            with self._qemu(f"share=on,mem-path={ram.name}", *self._boots) as bare:
                bare.hello()
                return time.perf_counter() - start

    @contextlib.contextmanager
    def cloning(self) -> Iterator[Side]:
        """A template is made; each turn makes one clone of it."""
        with (
            tempfile.NamedTemporaryFile(dir=MEMORY) as ram,
            tempfile.NamedTemporaryFile(dir=MEMORY) as state,
        ):
            shared = f"share=on,mem-path={ram.name}"
            with self._qemu(shared, *self._boots) as template:
                template.hello()
                time.sleep(1)  # until the agent has seen that nobody is there any more
                template.ask("qmp_capabilities")
                template.ask("stop")
                template.migrate("migrate", f"exec:cat >{state.name}")

            def clone() -> float:
                state.seek(0)
                private = f"share=off,mem-path={ram.name}"
                start = time.perf_counter()
                with self._qemu(private, "-incoming", "defer", inherit=[state.fileno()]) as bare:
                    bare.ask("qmp_capabilities")
                    bare.migrate("migrate-incoming", f"fd:{state.fileno()}")
                    bare.ask("cont")
                    bare.hello()
                    return time.perf_counter() - start

            yield clone
