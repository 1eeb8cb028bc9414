"""Which daemon a command talks to: pure, from options and environment.

Order: ``--host``, ``--root``, ``HYBRID_HOST``, ``HYBRID_ROOT``, ``DOCKER_HOST``, the default
socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hybrid import instance
from hybrid.errors import InvalidInput
from hybrid.instance import StrPath

DEFAULT_TLS_PORT = 2376


class UnixAddress(NamedTuple):
    """A Unix socket; ``root`` is set when the CLI may start the daemon that belongs there."""

    path: StrPath
    root: StrPath | None = None

    def __str__(self) -> str:
        return f"unix://{self.path}"


class TcpAddress(NamedTuple):
    """A TCP socket; ``certificates`` is the directory with ca.pem, cert.pem and key.pem, ""
    means no TLS."""

    host: str
    port: int
    certificates: str = ""

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def resolve(host: str | None, root: StrPath | None, environment: Mapping[str, str]) -> Address:
    """The address that options and environment name; InvalidInput when they make no sense."""
    if host:
        return parse(host, environment)
    if root:
        return _local(root)
    if named := environment.get("HYBRID_HOST"):
        return parse(named, environment)
    if named := environment.get("HYBRID_ROOT"):
        return _local(named)
    if named := environment.get("DOCKER_HOST"):
        return parse(named, environment)
    return _local(None)


def local_root(root: StrPath | None, environment: Mapping[str, str]) -> StrPath | None:
    """The state directory that option or environment name; None is the default one."""
    return root or environment.get("HYBRID_ROOT")


def _local(root: StrPath | None) -> UnixAddress:
    real = instance.real_root(root)
    return UnixAddress(instance.api_socket(real), real)


def parse(text: str, environment: Mapping[str, str]) -> Address:
    """``unix:///path``, ``/path`` or ``tcp://host[:port]``."""
    if text.startswith("/"):
        return UnixAddress(text)
    if text.startswith("unix:///"):
        return UnixAddress(text.removeprefix("unix://"))
    from urllib.parse import urlsplit  # slow to load, and seldom needed

    parts = urlsplit(text)
    match parts.scheme:
        case "tcp" | "https":
            try:
                port = parts.port
            except ValueError as error:
                raise InvalidInput(f"invalid host {text!r}: {error}") from error
            if not parts.hostname:
                raise InvalidInput(f"invalid host {text!r}: no host name")
            return TcpAddress(parts.hostname, port or DEFAULT_TLS_PORT, _certificates(environment))
    raise InvalidInput(f"invalid host {text!r}: expected unix:///path or tcp://host:port")


def _certificates(environment: Mapping[str, str]) -> str:
    directory = environment.get("HYBRID_CERT_PATH") or environment.get("DOCKER_CERT_PATH")
    if not directory and environment.get("DOCKER_TLS_VERIFY"):
        return f"{environment.get('HOME', '/root')}/.docker"
    return directory or ""
