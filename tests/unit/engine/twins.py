"""In-memory twins of what the engine stands on: a host that runs machines, agents in them, networks and images.

They outlive an engine, as the real ones do, so a test can let a second engine adopt what the first one left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hybrid.engine.backends import Backends
from hybrid.engine.container import Spec
from hybrid.engine.engine import Engine
from hybrid.engine.launch import Settings
from hybrid.errors import Conflict, HybridError, InvalidInput, NotFound, Unavailable
from hybrid.link.memory import pair
from hybrid.link.transport import Transport
from hybrid.machine.provider import (
    Boot,
    Disk,
    Feature,
    MachineRequest,
    MachineStatus,
    Nic,
    ShareDevice,
    StoppedCallback,
)
from hybrid.network.model import Endpoint, NetworkConfig, PortMapping
from hybrid.paths import Paths
from hybrid.wire import journal
from hybrid.wire import messages as m
from hybrid.wire.server import Connection, serve
from hybrid.wire.value import Request


@dataclass
class FakeProcess:
    request: m.CreateContainer | m.StartExec
    status: str = "created"
    exit_code: int = 0
    journal: bytearray = field(default_factory=bytearray)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()


class FakeAgent:
    """Runs "processes" that write and end when a test says so. ``fail`` maps a request's name to an error."""

    def __init__(self) -> None:
        self.boot = str(time.monotonic_ns())
        self.processes: dict[tuple[str, str], FakeProcess] = {}
        self.fail: dict[str, HybridError] = {}
        self.seen: list[str] = []
        self.inputs: dict[tuple[str, str], bytearray] = {}
        self._connections: set[Connection] = set()
        self._ends: list[Transport] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def connect(self) -> Transport:
        ours, theirs = pair()
        self._ends.append(theirs)
        self.spawn(
            serve(
                theirs,
                lambda: m.Hello(m.VERSION, self.boot),
                self.handle,
                connected=self._connected,
            )
        )
        return ours

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _connected(self, connection: Connection) -> None:
        self._connections.add(connection)
        for key, process in self.processes.items():
            if process.status == "stopped":
                self.spawn(connection.emit(m.Exited(self._state(key, process))))

    async def cut(self) -> None:
        """The link breaks; the agent runs on."""
        ends, self._ends = self._ends, []
        for end in ends:
            await end.close()
        self._connections.clear()

    async def close(self) -> None:
        await self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def write(self, container: str, text: str, exec_id: str = "") -> None:
        process = self.processes[container, exec_id]
        process.journal += journal.pack(time.time_ns(), journal.STDOUT, text.encode())
        process.wake()

    def exit(self, container: str, code: int, exec_id: str = "") -> None:
        process = self.processes[container, exec_id]
        process.status, process.exit_code = "stopped", code
        process.wake()
        for connection in self._connections:
            self.spawn(connection.emit(m.Exited(self._state((container, exec_id), process))))

    def _state(self, key: tuple[str, str], process: FakeProcess) -> m.ProcessState:
        return m.ProcessState(
            *key,
            process.status,  # type: ignore[arg-type]
            pid=7 if process.status == "running" else 0,
            exit_code=process.exit_code,
            finished_ns=time.time_ns() if process.status == "stopped" else 0,
            journal_end=len(process.journal),
        )

    async def handle(self, request: Request[Any], connection: Connection) -> object:
        name = type(request).__name__
        self.seen.append(name)
        if name in self.fail:
            raise self.fail[name]
        match request:
            case m.Configure() | m.Facts():
                return m.MachineFacts(
                    "6.1-twin", "x86_64", "boot", 1, 1 << 30, 1 << 29, "v2", "crun", 0
                )
            case m.List():
                return m.ProcessList([self._state(*item) for item in self.processes.items()])
            case m.CreateContainer():
                self.processes[request.container, ""] = FakeProcess(request)
            case m.StartContainer():
                return self._start((request.container, ""))
            case m.StartExec():
                key = (request.container, request.exec)
                self.processes[key] = FakeProcess(request)
                if request.stream:
                    self.spawn(
                        self._send(self.processes[key], connection.stream(request.stream), 0)
                    )
                return self._start(key)
            case m.Signal():
                if (request.container, request.exec) not in self.processes:
                    raise NotFound("no such process")
                if request.signal in (9, 15):
                    self.exit(request.container, 128 + request.signal, request.exec)
            case m.Delete():
                self.processes.pop((request.container, request.exec), None)
            case m.ReadOutput():
                process = self.processes.get((request.container, request.exec))
                if process is None:
                    raise NotFound("no such process")
                self.spawn(self._send(process, connection.stream(request.stream), request.offset))
            case m.WriteInput():
                self.spawn(self._receive(request, connection.stream(request.stream)))
            case m.AckOutput() | m.Pause() | m.Resize() | m.Update() | m.Shutdown() | m.SetTime():
                pass
            case _:
                raise InvalidInput(f"the twin does not know {name}")
        return m.Empty()

    def _start(self, key: tuple[str, str]) -> m.Started:
        self.processes[key].status = "running"
        return m.Started(7, time.time_ns())

    async def _send(self, process: FakeProcess, stream: Any, offset: int) -> None:
        try:
            while True:
                news = process.news
                if offset < len(process.journal):
                    data = bytes(process.journal[offset:])
                    offset += len(data)
                    await stream.write(data)
                elif process.status == "stopped":
                    await stream.close_write()
                    return
                else:
                    await news.wait()
        except Unavailable:
            return

    async def _receive(self, request: m.WriteInput, stream: Any) -> None:
        into = self.inputs.setdefault((request.container, request.exec), bytearray())
        try:
            while data := await stream.read():
                into += data
            into += b"<EOF>"
        except Unavailable:
            return


class FakeProvider:
    """Machines that are nothing but an agent. ``fail`` maps a method's name to an error."""

    def __init__(self, name: str, features: set[Feature]) -> None:
        self.name = name
        self.features = frozenset(features)
        self.agents: dict[str, FakeAgent] = {}
        self.requests: dict[str, MachineRequest] = {}
        self.attached: dict[str, set[str]] = {}
        self.fail: dict[str, HybridError] = {}
        self._callbacks: list[StoppedCallback] = []

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None: ...

    def _may(self, what: str) -> None:
        if what in self.fail:
            raise self.fail[what]

    async def create(self, request: MachineRequest) -> None:
        self._may("create")
        self.requests[request.id] = request
        self.agents.setdefault(request.id, FakeAgent())
        self.attached.setdefault(request.id, set()).update(disk.serial for disk in request.disks)

    async def connect(self, machine_id: str) -> Transport:
        self._may("connect")
        if machine_id not in self.agents:
            raise NotFound("no such machine")
        return await self.agents[machine_id].connect()

    async def attach_disk(self, machine_id: str, disk: Disk) -> None:
        self._may("attach_disk")
        if disk.serial in self.attached[machine_id]:
            raise Conflict("it has that disk")
        self.attached[machine_id].add(disk.serial)

    async def detach_disk(self, machine_id: str, serial: str) -> None:
        self.attached[machine_id].discard(serial)

    async def attach_nic(self, machine_id: str, nic: Nic) -> None:
        self._may("attach_nic")

    async def detach_nic(self, machine_id: str, mac: str) -> None: ...

    async def attach_share(self, machine_id: str, share: ShareDevice) -> None:
        self._may("attach_share")

    async def detach_share(self, machine_id: str, tag: str) -> None: ...

    async def destroy(self, machine_id: str) -> None:
        agent = self.agents.pop(machine_id, None)
        if agent is not None:
            await agent.close()

    async def list(self) -> list[MachineStatus]:
        return [MachineStatus(machine_id, True) for machine_id in self.agents]

    async def console(self, machine_id: str) -> bytes:
        return b"line one\nlast words\n"

    async def emulated(self, machine_id: str) -> bool:
        return True

    async def evidence(self, machine_id: str) -> dict[str, object]:
        return {}

    def on_stopped(self, callback: StoppedCallback) -> None:
        self._callbacks.append(callback)

    async def crash(self, machine_id: str) -> None:
        """The machine goes away by itself."""
        await self.agents.pop(machine_id).close()
        for callback in self._callbacks:
            callback(machine_id, "killed: its QEMU process got signal 9")

    @property
    def agent(self) -> FakeAgent:
        """The only machine's."""
        (agent,) = self.agents.values()
        return agent


class FakeFabric:
    """Networks that are nothing but a list."""

    def __init__(self) -> None:
        self.endpoints: dict[str, str] = {}
        self.names: dict[str, Any] = {}
        self.networks: set[str] = set()
        self.fail: dict[str, HybridError] = {}

    async def ensure_network(self, network: NetworkConfig) -> None:
        self.networks.add(network.id)

    async def remove_network(self, network_id: str) -> None:
        self.networks.discard(network_id)

    async def attach_tap(
        self, network_id: str, endpoint_id: str, mac: str, ip: str, mtu: int
    ) -> str:
        self.endpoints[endpoint_id] = ip
        return "tap0"

    attach_veth = attach_tap

    async def detach(self, endpoint_id: str) -> None:
        self.endpoints.pop(endpoint_id, None)

    async def publish(self, endpoint_id: str, ports: list[PortMapping]) -> list[PortMapping]:
        if "publish" in self.fail:
            raise self.fail["publish"]
        return ports

    async def set_names(self, network_id: str, names: Any) -> None:
        self.names[network_id] = names

    async def reconcile(self, networks: Any, endpoints: list[Endpoint]) -> list[str]:
        known = {endpoint.id for endpoint in endpoints}
        for endpoint_id in set(self.endpoints) - known:
            del self.endpoints[endpoint_id]
        return []

    async def used_subnets(self) -> list[Any]:
        return []

    async def check(self) -> list[str]:
        return []

    async def close(self) -> None: ...


class FakeImages:
    """One image, ``busybox``."""

    pinned: Callable[[], Any]
    removed = False

    def __init__(self) -> None:
        self.kept: list[list[str]] = []  # what was pinned at each collection

    async def collect(self) -> None:
        self.kept.append(list(self.pinned()))

    def list(self) -> list[Any]:
        return [self.resolve("busybox")]

    def resolve(self, reference: str) -> Any:
        if self.removed or reference not in ("busybox", "sha256:1"):
            raise NotFound(f"No such image: {reference}:latest")
        return SimpleNamespace(
            id="sha256:1", names=["busybox:latest"], references=("busybox",), size=1
        )

    def config(self, image: Any) -> Any:
        return SimpleNamespace(
            env=["PATH=/bin"],
            entrypoint=None,
            command=["sh"],
            user="",
            working_dir="",
            stop_signal="",
            labels={},
            exposed_ports=[],
            volumes=[],
            healthcheck=None,
            diff_ids=["sha256:a"],
        )

    async def layers(self, image: Any) -> list[Path]:
        return [Path("/layers/a.squashfs")]


class FakeShares:
    def __init__(self) -> None:
        self.served: set[tuple[str, str]] = set()

    def serving(self) -> list[tuple[str, str]]:
        return sorted(self.served)

    def on_lost(self, callback: Any) -> None: ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def serve(self, machine_id: str, tag: str, *rest: Any, **more: Any) -> None:
        self.served.add((machine_id, tag))

    async def stop(self, machine_id: str, tag: str) -> None:
        self.served.discard((machine_id, tag))


class World:
    """The host: what outlives an engine."""

    def __init__(self, directory: Path) -> None:
        self.paths = Paths(directory / "root", directory / "run")
        self.guests = FakeProvider(
            "libvirt", {Feature.OWN_KERNEL, Feature.DISKS, Feature.NICS, Feature.SHARES}
        )
        self.host = FakeProvider("host", {Feature.DIRECTORIES, Feature.NICS})
        self.fabric = FakeFabric()
        self.shares = FakeShares()
        self.images = FakeImages()

    async def engine(self) -> Engine:
        """A new engine that has opened itself."""
        boot = Boot(Path("/k"), Path("/i"), Path("/r"), "quiet")
        backends = Backends(
            guest=self.guests,
            host=self.host,
            remote=None,
            shares=self.shares,  # type: ignore[arg-type]
            boot=lambda: boot,
            probe=Path("/probe"),
        )
        settings = Settings(writable_size=64 << 20)
        made = Engine(self.paths, settings, self.images, self.fabric, backends)  # type: ignore[arg-type]
        await made.open()
        return made

    async def close(self) -> None:
        for provider in (self.guests, self.host):
            for agent in provider.agents.values():
                await agent.close()


def spec(**fields: Any) -> Spec:
    return Spec(**{"image": "busybox", "command": ["true"], "network_mode": "bridge", **fields})


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Waits for what other tasks bring about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
