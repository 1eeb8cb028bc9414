"""The one door to libvirt: asyncio methods outside, blocking calls in threads inside, errors
translated.

Every method may be called at any time from the event loop that ``open`` ran in. Domains are
addressed by name. Callbacks come in that loop, in the order libvirt reported the events.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from hybrid.errors import Conflict, Internal, NotFound, Unavailable
from hybrid.machine.orphans import OrphanReaper

T = TypeVar("T")
# libvirt reads this when it is first loaded. Its errors come as exceptions; what it would also
# print is noise.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")

import libvirt  # noqa: E402
import libvirt_qemu  # noqa: E402

_THREADS = 8
_loop_started = threading.Lock()


class Ended(enum.Enum):
    """Why a domain stopped."""

    SHUTDOWN = "switched off"
    CRASHED = "crashed"
    DESTROYED = "destroyed"
    FAILED = "its QEMU process died"


_ENDINGS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: Ended.SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: Ended.CRASHED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: Ended.DESTROYED,
}

StoppedHandler = Callable[[str, Ended], None]
PortHandler = Callable[[str, bool], None]
_PORT_CHANGE, _MIGRATION = "VSERPORT_CHANGE", "MIGRATION"
_MIGRATION_ENDS = frozenset(("completed", "failed", "cancelled"))


def _start_event_loop() -> None:
    """libvirt's event loop is one per process, for ever; connections come and go."""
    if not _loop_started.acquire(blocking=False):
        return
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        code, message = error.get_error_code(), (error.get_error_message() or str(error)).strip()
        line = " ".join(message.split())
        match code:
            case libvirt.VIR_ERR_NO_DOMAIN:
                raise NotFound(f"{what}: there is no such guest") from error
            case libvirt.VIR_ERR_DEVICE_MISSING:
                raise NotFound(f"{what}: the guest has no such device") from error
            case libvirt.VIR_ERR_OPERATION_INVALID:
                raise Conflict(f"{what}: {line}") from error
            case libvirt.VIR_ERR_NO_CONNECT | libvirt.VIR_ERR_RPC | libvirt.VIR_ERR_SYSTEM_ERROR:
                raise Unavailable(f"{what}: {line}") from error
            case _:
                raise Internal(f"{what}: {line}") from error


class Hypervisor:
    """One libvirt connection."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._connection: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._reaper = OrphanReaper()
        self._stopped: StoppedHandler = lambda _name, _ended: None
        self._port: PortHandler = lambda _name, _open: None
        self._events: asyncio.AbstractEventLoop | None = None
        self._connecting = threading.Lock()
        """Many calls may find at once that libvirtd was restarted: one of them connects again."""
        self._migrations: dict[str, asyncio.Future[str]] = {}

    def __repr__(self) -> str:
        return f"<Hypervisor {self.uri} {'open' if self._connection else 'closed'}>"

    def on_stopped(self, handler: StoppedHandler) -> None:
        """Call ``handler(domain name, why)`` when a domain has stopped, whoever stopped it."""
        self._stopped = handler

    def on_port(self, handler: PortHandler) -> None:
        """Call ``handler(domain name, open)`` when a guest opens or closes its agent port."""
        self._port = handler

    async def open(self) -> None:
        """Connects; Unavailable if that fails. Handlers must have been set."""
        self._events = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(_THREADS, "libvirt")
        await self._call(self._connect)

    async def close(self) -> None:
        """Lets go of the connection; domains run on."""
        connection, self._connection = self._connection, None
        self._events = None
        if connection is not None:
            await self._call(lambda: connection.close())
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)

    async def names(self) -> list[str]:
        """The names of all running domains, ours or not."""

        def work() -> list[str]:
            with _translated("list guests"):
                return [domain.name() for domain in self._live().listAllDomains()]

        return await self._call(work)

    async def xml(self, name: str) -> str:
        """The running domain's XML, with all that libvirt filled in."""
        return await self._on_domain(name, f"look at {name}", lambda domain: domain.XMLDesc(0))

    async def is_frozen(self, name: str) -> bool:
        """Whether the domain is there but does not execute."""
        state = await self._on_domain(name, f"look at {name}", lambda domain: domain.state()[0])
        return bool(state == libvirt.VIR_DOMAIN_PAUSED)

    async def create(self, name: str, xml: str) -> None:
        """Starts the domain of ``xml``, frozen before its first instruction."""

        def work() -> None:
            with self._reaper.active(), _translated(f"start {name}"):
                self._live().createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)

        starting = asyncio.ensure_future(self._call(work))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread cannot be stopped: wait, so that the caller finds the domain to destroy.
            await asyncio.wait({starting})
            raise

    async def resume(self, name: str) -> None:
        """Lets a frozen domain run."""
        await self._on_domain(name, f"start {name}", lambda domain: domain.resume())

    async def freeze(self, name: str) -> None:
        """Stops a domain from executing; it stays as it is."""
        await self._on_domain(name, f"freeze {name}", lambda domain: domain.suspend())

    async def save_state(self, name: str, state: int, *, timeout: float) -> None:
        """Writes a frozen domain's device state, without its memory file, to the descriptor ``state``."""
        await self._migrate(name, "migrate", state, timeout)

    async def load_state(self, name: str, state: int, *, timeout: float) -> None:
        """Reads the device state of a domain that was started with ``-incoming defer``."""
        await self._migrate(name, "migrate-incoming", state, timeout)

    async def _migrate(self, name: str, command: str, state: int, timeout: float) -> None:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._migrations[name] = ended
        capability = {"capability": "x-ignore-shared", "state": True}
        try:
            await self._monitor(
                name, "migrate-set-capabilities", {"capabilities": [capability]}, ()
            )
            await self._monitor(name, "getfd", {"fdname": "state"}, (state,))
            await self._monitor(name, command, {"uri": "fd:state"}, ())
            async with asyncio.timeout(timeout):
                how = await ended
        except TimeoutError as error:
            raise Unavailable(f"{name}: no end of {command} within {timeout:g} s") from error
        finally:
            del self._migrations[name]
        if how != "completed":
            raise Unavailable(f"{name}: {command} {how}")

    async def _monitor(
        self, name: str, command: str, arguments: dict[str, Any], files: tuple[int, ...]
    ) -> None:
        """One command to the domain's QEMU itself; Unavailable if it refuses."""
        text = json.dumps({"execute": command, "arguments": arguments})

        def act(domain: Any) -> Any:
            if files:
                return libvirt_qemu.qemuMonitorCommandWithFiles(domain, text, list(files), 0)[0]
            return libvirt_qemu.qemuMonitorCommand(domain, text, 0)

        answer = json.loads(await self._on_domain(name, f"{command} of {name}", act))
        if "error" in answer:
            raise Unavailable(f"{command} of {name}: {answer['error'].get('desc', '')}")

    async def emulator(self) -> tuple[str, ...]:
        """Words that change with libvirt and with QEMU."""

        def work() -> tuple[str, ...]:
            # It may ask QEMU, through a process that is to be reaped.
            with self._reaper.active(), _translated("ask libvirt for its versions"):
                live = self._live()
                return str(live.getLibVersion()), str(live.getVersion())

        return await self._call(work)

    async def attach(self, name: str, device_xml: str) -> None:
        """Plugs a device into a running domain."""
        await self._on_domain(
            name,
            f"attach a device to {name}",
            lambda domain: domain.attachDeviceFlags(device_xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
        )

    async def detach(self, name: str, device_xml: str) -> None:
        """Asks the guest to let a device go; it may not be gone yet when this returns."""
        await self._on_domain(
            name,
            f"detach a device from {name}",
            lambda domain: domain.detachDeviceFlags(device_xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
        )

    async def destroy(self, name: str) -> None:
        """Kills the domain by libvirt's own means; slower than killing its process."""
        with self._reaper.active():
            await self._on_domain(name, f"destroy {name}", lambda domain: domain.destroy())

    async def settled(self) -> None:
        """Returns when all domains that outlived an earlier owner can be used or have turned out
        dead.
        """

        def work() -> None:
            with self._reaper.active():
                for domain in self._live().listAllDomains():
                    # The monitor is connected by a thread of libvirt's that holds the domain's job
                    # until it is done; this call waits for the job.
                    with contextlib.suppress(libvirt.libvirtError):
                        libvirt_qemu.qemuMonitorCommand(domain, '{"execute":"query-status"}', 0)

        await self._call(work)

    def _connect(self) -> Any:
        _start_event_loop()
        with self._reaper.active(), _translated(f"connect to libvirt ({self.uri})"):
            connection = libvirt.open(self.uri)
            connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle_event, None
            )
            for event in (_PORT_CHANGE, _MIGRATION):
                libvirt_qemu.qemuMonitorEventRegister(
                    connection, None, event, self._qemu_event, None
                )
        self._connection = connection
        return connection

    def _live(self) -> Any:
        with self._connecting:
            if self._connection is None:
                raise Unavailable(f"not connected to libvirt ({self.uri})")
            if not self._connection.isAlive():
                return self._connect()
            return self._connection

    async def _on_domain(self, name: str, what: str, act: Callable[[Any], T]) -> T:
        def work() -> T:
            with _translated(what):
                return act(self._live().lookupByName(name))

        return await self._call(work)

    async def _call(self, work: Callable[[], T]) -> T:
        if self._pool is None:
            raise Unavailable(f"not connected to libvirt ({self.uri})")
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _lifecycle_event(
        self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any
    ) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._deliver(self._stopped, domain.name(), _ENDINGS.get(detail, Ended.FAILED))

    def _qemu_event(
        self,
        _connection: Any,
        domain: Any,
        event: str,
        _seconds: int,
        _micros: int,
        details: str,
        _opaque: Any,
    ) -> None:
        fields = json.loads(details or "{}")
        if event == _PORT_CHANGE:
            self._deliver(self._port, domain.name(), fields.get("open") is True)
        elif (status := str(fields.get("status"))) in _MIGRATION_ENDS:
            self._deliver(self._migrated, domain.name(), status)

    def _migrated(self, name: str, status: str) -> None:
        ended = self._migrations.get(name)
        if ended is not None and not ended.done():
            ended.set_result(status)

    def _deliver(self, handler: Callable[[str, T], None], name: str, value: T) -> None:
        events = self._events
        if events is not None:
            # The loop may be closed already when the process is on its way out.
            with contextlib.suppress(RuntimeError):
                events.call_soon_threadsafe(handler, name, value)


def passes_files() -> bool:
    """Whether this libvirt can hand an open file to a guest's QEMU (8.2 and later)."""
    return hasattr(libvirt_qemu, "qemuMonitorCommandWithFiles")


def pid_file(uri: str, root: Path, name: str) -> Path:
    """Where libvirt keeps the pid of a domain's QEMU: ``root`` for the embedded driver, else the
    system's.
    """
    directory = root / "run" / "qemu" if "/embed" in uri else Path("/run/libvirt/qemu")
    return directory / f"{name}.pid"
