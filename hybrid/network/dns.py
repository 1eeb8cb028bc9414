"""Names on a network: one unprivileged dnsmasq each, listening on the gateway address only.

It answers the network's own names itself, whatever the query type. No other name without a dot is
forwarded. With ``others`` (somebody on this network is on another one too) such a name is REFUSED,
which makes a resolver ask the container's next name server, so that the names of both networks are
found; without, it does not exist (NXDOMAIN), which a resolver believes at once. Names with a dot
are forwarded to the host's resolvers, unless the network is internal.

The process outlives the daemon. Files, one directory a network: ``conf``; ``hosts`` and
``servers``, read again on SIGHUP; ``run/pid``, which dnsmasq writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import select
import shutil
import signal
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from hybrid.errors import Internal, InvalidInput, Unsupported
from hybrid.network.model import NetworkConfig
from hybrid.paths import checked

Names = Mapping[str, Sequence[str]]
# What a container may be called; that is more than DNS can ask for.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_LABEL_MAX = 63
# Sending to it fails at once (EACCES: not allowed to broadcast), which dnsmasq answers with
# REFUSED.
_NOWHERE = "255.255.255.255"
_USERS = ("dnsmasq", "nobody")
_TIMEOUT = 10.0
_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4)
_NOT_FOUND = 127  # setpriv(1): the program does not exist


def configuration(network: NetworkConfig, directory: Path, resolv_conf: Path) -> str:
    """dnsmasq's configuration file for the network."""
    upstream = ["no-resolv"] if network.internal else [f"resolv-file={resolv_conf}"]
    return "\n".join(
        [
            "no-hosts",
            "no-ident",
            *upstream,
            f"listen-address={network.gateway}",
            "bind-interfaces",
            f"addn-hosts={directory / 'hosts'}",
            f"servers-file={directory / 'servers'}",
            f"pid-file={directory / 'run' / 'pid'}",
            "log-facility=/dev/null",
            "cache-size=1000",
            # We are that user from the start: nothing to change to.
            "user=",
            "group=",
            "",
        ]
    )


def hosts_file(names: Names) -> str:
    """Address and names, a line each."""
    lines = []
    for address, labels in sorted(names.items(), key=lambda item: IPv4Address(item[0])):
        if own := _resolvable(labels):
            lines.append(f"{address} {' '.join(own)}\n")
    return "".join(lines)


def servers_file(network: NetworkConfig, names: Names, *, others: bool) -> str:
    """What never leaves this host: the network's own names and addresses, all plain names."""
    own = sorted({label for labels in names.values() for label in _resolvable(labels)})
    lines = [f"server=/{label}/" for label in own]
    plain = _NOWHERE if others else ""
    lines += [f"rev-server={network.subnet}", f"server=//{plain}", ""]
    return "\n".join(lines)


def _resolvable(names: Sequence[str]) -> list[str]:
    """Those that can be asked for: dnsmasq does not start with any other ("a..b") in a file."""
    stripped = [name.rstrip(".") for name in names]
    return [
        name for name in stripped if all(0 < len(part) <= _LABEL_MAX for part in name.split("."))
    ]


def upstreams(resolv_conf: Path) -> list[IPv4Network]:
    """The host's own name servers, as networks of one address."""
    try:
        lines = [line.split() for line in resolv_conf.read_text(errors="replace").splitlines()]
    except OSError:
        return []
    found = []
    for words in lines:
        if len(words) > 1 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):  # an IPv6 one
                found.append(IPv4Network(words[1]))
    return found


def check_names(names: Names) -> None:
    """InvalidInput for what is no IPv4 address, or no name of a container."""
    for address, labels in names.items():
        try:
            IPv4Address(address)
        except ValueError as error:
            raise InvalidInput(f"not an IPv4 address: {address!r}") from error
        for label in labels:
            if not _NAME.fullmatch(label):
                raise InvalidInput(f"not a host name: {label!r}")


class NameServers:
    """The dnsmasq processes below one directory."""

    def __init__(self, directory: Path, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self._directory = directory
        self._resolv_conf = resolv_conf

    def known(self) -> list[str]:
        """Ids of the networks that have a name server, or the files of one."""
        if not self._directory.is_dir():
            return []
        return sorted(entry.name for entry in self._directory.iterdir() if entry.is_dir())

    async def ensure(self, network: NetworkConfig) -> None:
        """It runs, as ``network`` wants it; a running one is left alone.

        The gateway address must be there.
        """
        directory = self._place(network.id)
        wanted = configuration(network, directory, self._resolv_conf)
        config = directory / "conf"
        pid = self._running(network.id)
        if pid is not None and config.is_file() and config.read_text() == wanted:
            return
        await self.stop(network.id, keep_files=True)
        self._make_directory(directory)
        _write(config, wanted)
        if not (directory / "hosts").exists():
            _write(directory / "hosts", "")
        if not (directory / "servers").exists():
            _write(directory / "servers", servers_file(network, {}, others=True))
        for pause in (*_PAUSES, None):
            errors = await _start(config)
            # The last one's socket lives some moments longer than its command line.
            if pause is None or "Address already in use" not in errors:
                break
            await asyncio.sleep(pause)
        if errors:
            raise Internal(f"dnsmasq --conf-file={config}: {errors}")
        if self._running(network.id) is None:
            raise Internal(f"the name server of network {network.name} ended at once")

    async def set_names(self, network: NetworkConfig, names: Names, *, others: bool) -> None:
        """From now on it answers these names, and only these; it is started if it had died."""
        check_names(names)
        await self.ensure(network)
        directory = self._place(network.id)
        changed = _write(directory / "hosts", hosts_file(names))
        changed = (
            _write(directory / "servers", servers_file(network, names, others=others)) or changed
        )
        pid = self._running(network.id)
        if changed and pid is not None:
            os.kill(pid, signal.SIGHUP)

    async def stop(self, network_id: str, *, keep_files: bool = False) -> None:
        """It has ended when this returns."""
        pid = self._running(network_id)
        if pid is not None:
            await _terminate(pid)
        if not keep_files:
            shutil.rmtree(self._place(network_id), ignore_errors=True)

    def _place(self, network_id: str) -> Path:
        return self._directory / checked(network_id)

    def _make_directory(self, directory: Path) -> None:
        user = _user()
        (directory / "run").mkdir(parents=True, exist_ok=True)
        for path in (self._directory, directory):
            path.chmod(0o711)
        os.chown(directory / "run", user.pw_uid, user.pw_gid)
        (directory / "run").chmod(0o755)

    def _running(self, network_id: str) -> int | None:
        """The pid, if that process is this network's dnsmasq.

        Its user could have written another's number there.
        """
        directory = self._place(network_id)
        try:
            text = (directory / "run" / "pid").read_text()[:16]
            pid = int(text)
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            owner = Path(f"/proc/{pid}").stat().st_uid
        except (OSError, ValueError):
            return None
        ours = os.fsencode(f"--conf-file={directory / 'conf'}") in command.split(b"\0")
        return pid if ours and owner == _user().pw_uid else None


def _user() -> pwd.struct_passwd:
    for name in _USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Unsupported("no unprivileged user for the name server: make a system user 'dnsmasq'")


def _write(path: Path, text: str) -> bool:
    """Replaces the file; False when it had that text already."""
    if path.is_file() and path.read_text() == text:
        return False
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.replace(path)
    return True


async def _start(config: Path) -> str:
    """Starts it as its own user with the one capability that port 53 needs.

    It goes to the background when it listens.
    """
    user = _user()
    capability = "-all,+net_bind_service"
    command = [
        "setpriv",
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        "--clear-groups",
        f"--inh-caps={capability}",
        f"--ambient-caps={capability}",
        f"--bounding-set={capability}",
        "--no-new-privs",
        "dnsmasq",
        f"--conf-file={config}",
    ]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
    except FileNotFoundError as error:
        raise Unsupported(
            "no 'setpriv' program on this host: install the package util-linux"
        ) from error
    try:
        _, errors = await asyncio.wait_for(process.communicate(), _TIMEOUT)
    except TimeoutError as error:
        process.kill()
        raise Internal(
            f"dnsmasq --conf-file={config}: did not start in {_TIMEOUT:.0f} s"
        ) from error
    if not process.returncode:
        return ""
    lines = errors.decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"exit code {process.returncode}"
    if process.returncode == _NOT_FOUND:
        raise Unsupported("no 'dnsmasq' program on this host: install the package dnsmasq-base")
    return reason


async def _terminate(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if await asyncio.to_thread(_ended, descriptor, 3000):
                return
    finally:
        os.close(descriptor)
    raise Internal(f"the name server with pid {pid} does not end")


def _ended(descriptor: int, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(milliseconds))
