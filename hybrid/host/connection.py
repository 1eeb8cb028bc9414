"""One SSH connection to a box: the only user of paramiko.

paramiko works with threads: each call that may block runs in a thread of this connection's own, and
each channel that stays open has two more. Host keys are checked as ``ssh`` with
StrictHostKeyChecking=yes does: unknown ones are refused unless the caller accepts, changed and
revoked ones always.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import getpass
import hashlib
import logging
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import paramiko
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

from hybrid.errors import Forbidden, HybridError, InvalidInput, Unavailable
from hybrid.host import address as addresses
from hybrid.host.address import Address, Target

T = TypeVar("T")
CONNECT_TIMEOUT = 15.0
KEEPALIVE = 15
# After that long without an acknowledgement the kernel gives the connection up (tcp(7),
# milliseconds).
USER_TIMEOUT = 60_000
MAX_OUTPUT = 1 << 20
CHUNK = 32 << 10
# paramiko writes tracebacks of failed handshakes to stderr; here they become errors of ours.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class HostKeyTrust:
    """Which host keys are good besides those in the user's known_hosts.

    ``own_file`` holds those that hybrid was told to accept; ``accept`` adds an unknown key there,
    ``fingerprint`` (SHA256:…) only that one.
    """

    own_file: Path
    accept: bool = False
    fingerprint: str = ""


@dataclass(frozen=True)
class Completed:
    code: int
    output: bytes
    errors: str


def target_of(address: Address, config: Path | None = None, home: Path | None = None) -> Target:
    """The address completed by the user's ssh_config."""
    home = home or Path.home()
    config = config or home / ".ssh" / "config"
    settings: dict[str, str | list[str]] = {}
    if config.is_file():
        try:
            settings = dict(paramiko.SSHConfig.from_path(str(config)).lookup(address.host))
        except (OSError, paramiko.SSHException, paramiko.ConfigParseError) as error:
            raise InvalidInput(f"{config}: {error}") from error
    return addresses.resolve(address, settings, local_user=getpass.getuser(), home=home)


def fingerprint(key: paramiko.PKey) -> str:
    """As ssh-keygen -l prints it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


class Connection:
    """An authenticated connection. Made by ``open``; once lost it stays so."""

    def __init__(self, client: paramiko.SSHClient, threads: ThreadPoolExecutor, name: str) -> None:
        self.name = name
        self._client = client
        self._threads = threads

    def __repr__(self) -> str:
        return f"<Connection {self.name}{'' if self.alive else ' lost'}>"

    @classmethod
    async def open(cls, target: Target, trust: HostKeyTrust) -> Connection:
        """Forbidden: the key of the box or of the user is not accepted. Unavailable.

        Not reached.
        """
        threads = ThreadPoolExecutor(2, "ssh")
        connecting = threads.submit(_connect, target, trust)
        try:
            client = await asyncio.shield(asyncio.wrap_future(connecting))
        except BaseException:
            connecting.add_done_callback(_close_late)
            threads.shutdown(wait=False)
            raise
        return cls(client, threads, str(target.address))

    @property
    def alive(self) -> bool:
        transport = self._client.get_transport()
        return transport is not None and transport.is_active()

    async def run(self, command: str, *, data: bytes = b"", timeout: float = 60) -> Completed:
        """Runs a command line of the login shell to its end, ``data`` on its stdin."""
        return await self._call(lambda: _run(self._session(), command, data, timeout))

    async def stream(self, command: str) -> ChannelStream:
        """Starts a command line; the stream is its stdin and stdout."""

        def start() -> paramiko.Channel:
            channel = self._session()
            channel.exec_command(command)
            return channel

        return ChannelStream(await self._call(start), f"SSH channel to {self.name}")

    async def close(self) -> None:
        """Ends it with all of its channels; what was detached on the box runs on. Idempotent."""
        await asyncio.to_thread(self._client.close)
        self._threads.shutdown(wait=False)

    def _session(self) -> paramiko.Channel:
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise Unavailable(f"{self.name}: the SSH connection is lost")
        return transport.open_session(timeout=CONNECT_TIMEOUT)

    async def _call(self, action: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, action)
        except TimeoutError as error:
            raise Unavailable(f"{self.name}: no answer in time") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            reason = f": {error}" if str(error) else ""
            raise Unavailable(f"{self.name}: the SSH connection is lost{reason}") from error


class ChannelStream:
    """A channel as a byte stream (the link's transport).

    Backpressure is SSH's own: paramiko opens the window again only for what was read, and a write
    waits for the other side's window. A read that was cancelled goes on in its thread; what it
    brings is kept for the next.
    """

    resync = False

    def __init__(self, channel: paramiko.Channel, name: str) -> None:
        self._channel = channel
        self._name = name
        self._reader = ThreadPoolExecutor(1, "ssh-read")
        self._writer = ThreadPoolExecutor(1, "ssh-write")
        self._pending: asyncio.Future[bytes] | None = None
        self._left = b""

    def __repr__(self) -> str:
        return f"<ChannelStream {self._name}{' closed' if self._channel.closed else ''}>"

    def describe(self) -> str:
        return self._name

    async def read(self, max: int, /) -> bytes:
        data = self._left or await self._receive()
        self._left = data[max:]
        return data[:max]

    async def _receive(self) -> bytes:
        if self._pending is None:
            loop = asyncio.get_running_loop()
            self._pending = loop.run_in_executor(self._reader, self._channel.recv, CHUNK)
        try:
            data = await asyncio.shield(self._pending)
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._pending = None
            raise Unavailable(f"{self._name}: {error}") from error
        self._pending = None
        return data

    async def write(self, data: bytes, /) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._writer, self._channel.sendall, data
            )
        except (paramiko.SSHException, OSError, EOFError, RuntimeError) as error:
            raise Unavailable(f"{self._name}: {error or 'closed'}") from error

    async def expect(self, marker: bytes, *, within: int, timeout: float) -> bool:
        """Drops everything up to ``marker``; False when the command ends without it."""
        seen = b""
        async with asyncio.timeout(timeout):
            while marker not in seen:
                data = await self.read(CHUNK)
                if not data or len(seen) > within:
                    return False
                seen += data
        self._left = seen.partition(marker)[2] + self._left
        return True

    async def exit_code(self, timeout: float) -> int:
        """Of a command that has ended; -1 when the box does not tell in time."""
        loop = asyncio.get_running_loop()
        ended = await loop.run_in_executor(self._reader, self._channel.status_event.wait, timeout)
        return self._channel.exit_status if ended else -1

    async def close(self) -> None:
        """Idempotent; a read under way returns b""."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            await asyncio.to_thread(self._channel.close)
        if self._pending is not None:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                await self._pending
            self._pending = None
        self._reader.shutdown(wait=False)
        self._writer.shutdown(wait=False)


class _Known:
    """The host keys in known_hosts files. A line that can't be read is passed over, as ssh does."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.entries: list[HostKeyEntry] = []
        self.revoked: set[str] = set()
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                for line in file.read_text(errors="replace").splitlines():
                    self._read(line.split())

    def _read(self, fields: list[str]) -> None:
        if fields[:1] == ["@revoked"]:
            self.revoked.update(fields[2:])
        elif len(fields) >= 3 and fields[0][0] not in "@#":
            with contextlib.suppress(paramiko.SSHException, InvalidHostKey):
                entry = HostKeyEntry.from_line(" ".join(fields[:3]))
                if entry is not None:
                    self.entries.append(entry)

    def teach(self, keys: paramiko.HostKeys) -> None:
        for entry in self.entries:
            for name in entry.hostnames:
                keys.add(name, entry.key.get_name(), entry.key)


class _KnownOnly(paramiko.MissingHostKeyPolicy):
    """Decides about a box whose key is in no known_hosts file."""

    def __init__(self, target: Target, trust: HostKeyTrust, known: _Known) -> None:
        self._target = target
        self._trust = trust
        self._known = known

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        where, shown = self._target.address, f"{key.get_name()} {fingerprint(key)}"
        if key.get_base64() in self._known.revoked:
            raise Forbidden(_revoked(self._target, key))
        other = client.get_host_keys().lookup(hostname)
        if other:
            raise Forbidden(_changed(self._target, shown, ", ".join(sorted(other.keys()))))
        if self._trust.fingerprint and self._trust.fingerprint != fingerprint(key):
            raise Forbidden(
                f"{where}: its host key is {shown}, not the accepted {self._trust.fingerprint}"
            )
        if not (self._trust.accept or self._trust.fingerprint):
            raise Forbidden(
                f"{where}: unknown host key {shown}; compare it with what 'ssh-keygen -lf"
                f" /etc/ssh/ssh_host_*_key.pub' prints there, then add the box with"
                f" --accept-host-key"
            )
        self._trust.own_file.parent.mkdir(parents=True, exist_ok=True)
        keys = paramiko.HostKeys()
        keys.add(hostname, key.get_name(), key)
        keys.save(str(self._trust.own_file))


def _changed(target: Target, presented: str, known: str) -> str:
    return (
        f"{target.address}: its host key CHANGED: known is {known}, presented {presented};"
        " somebody may be listening in between. If the box was set up anew, remove the old key:"
        f" ssh-keygen -R '{target.key_name}' (or 'hybrid machine rm' and add it again)"
    )


def _revoked(target: Target, key: paramiko.PKey) -> str:
    return f"{target.address}: its host key {fingerprint(key)} is revoked in known_hosts"


def _connect(target: Target, trust: HostKeyTrust) -> paramiko.SSHClient:
    where = target.address
    client = paramiko.SSHClient()
    identities = [str(path) for path in target.identities if path.is_file()]
    try:
        known = _Known([*target.known_hosts, trust.own_file])
        known.teach(client.get_host_keys())
        client.set_missing_host_key_policy(_KnownOnly(target, trust, known))
        client.connect(
            target.host,
            target.port,
            target.user,
            key_filename=identities,  # type: ignore[arg-type]  # the stubs know only one file
            allow_agent=not target.only_identities,
            look_for_keys=not target.only_identities,
            timeout=CONNECT_TIMEOUT,
            banner_timeout=CONNECT_TIMEOUT,
            auth_timeout=CONNECT_TIMEOUT,
        )
        transport = client.get_transport()
        if transport is None:
            raise Unavailable(f"{where}: the SSH connection ended at once")
        if transport.get_remote_server_key().get_base64() in known.revoked:
            raise Forbidden(_revoked(target, transport.get_remote_server_key()))
        transport.set_keepalive(KEEPALIVE)
        if isinstance(transport.sock, socket.socket):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
        return client
    except Exception as error:
        client.close()
        raise _translated(error, target) from error


def _close_late(connecting: Future[paramiko.SSHClient]) -> None:
    """Nobody waits for it any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


def _translated(error: Exception, target: Target) -> HybridError:
    where = target.address
    match error:
        case HybridError():
            return error
        case paramiko.BadHostKeyException():
            presented = f"{error.key.get_name()} {fingerprint(error.key)}"
            return Forbidden(_changed(target, presented, fingerprint(error.expected_key)))
        case paramiko.PasswordRequiredException():
            return Forbidden(f"{where}: the key is encrypted: load it into an ssh-agent (ssh-add)")
        case paramiko.SSHException() if _not_let_in(error):
            return Forbidden(
                f"{where}: user {target.user!r} was not let in: no key of the ssh-agent,"
                " of ~/.ssh or of ssh_config is accepted there"
            )
        case socket.gaierror():
            return Unavailable(f"{where}: {target.host}: {error}")
        case paramiko.ssh_exception.NoValidConnectionsError():
            reasons = {str(inner) for inner in error.errors.values()}
            return Unavailable(f"{where}: {', '.join(sorted(reasons))}")
        case TimeoutError():
            return Unavailable(f"{where}: no answer within {CONNECT_TIMEOUT:g} s")
        case OSError():
            return Unavailable(f"{where}: {error.strerror or error}")
        case paramiko.SSHException() | EOFError():
            return Unavailable(f"{where}: {error or 'the connection ended'}")
    raise error


def _not_let_in(error: Exception) -> bool:
    """paramiko has no type of its own for a user who has no key at all."""
    return isinstance(error, paramiko.AuthenticationException) or "No authentication" in str(error)


def _run(channel: paramiko.Channel, command: str, data: bytes, timeout: float) -> Completed:
    with channel:
        channel.settimeout(timeout)
        channel.exec_command(command)
        if data:
            # A command that ends early takes no more input: its exit code tells why.
            with contextlib.suppress(OSError):
                channel.sendall(data)
        channel.shutdown_write()
        output = _drain(channel.recv)
        errors = _drain(channel.recv_stderr)
        if not channel.status_event.wait(timeout):
            raise TimeoutError
        return Completed(channel.exit_status, output, errors.decode(errors="replace").strip())


def _drain(receive: Callable[[int], bytes]) -> bytes:
    """All of it; what is beyond MAX_OUTPUT is read and dropped."""
    kept = bytearray()
    while data := receive(CHUNK):
        kept += data[: max(0, MAX_OUTPUT - len(kept))]
    return bytes(kept)
