"""Which daemon a command talks to: pure, from options and environment.

Order: ``--host``, ``--root``, ``HYBRID_HOST``, ``HYBRID_ROOT``, ``DOCKER_HOST``, the default
socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hybrid.errors import InvalidInput
from hybrid.paths import Paths

DEFAULT_TLS_PORT = 2376


@dataclass(frozen=True)
class UnixAddress:
    """A Unix socket; ``root`` is set when the CLI may start the daemon that belongs there."""

    path: Path
    root: Path | None = None

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True)
class TcpAddress:
    """A TCP socket; ``certificates`` is the directory with ca.pem, cert.pem and key.pem, None
    means no TLS."""

    host: str
    port: int
    certificates: Path | None = None

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def resolve(host: str | None, root: Path | None, environment: Mapping[str, str]) -> Address:
    """The address that options and environment name; InvalidInput when they make no sense."""
    if host:
        return parse(host, environment)
    if root:
        return _local(root)
    if named := environment.get("HYBRID_HOST"):
        return parse(named, environment)
    if named := environment.get("HYBRID_ROOT"):
        return _local(Path(named))
    if named := environment.get("DOCKER_HOST"):
        return parse(named, environment)
    return _local(None)


def local_root(root: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The state directory that option or environment name; None is the default one."""
    return root or (Path(named) if (named := environment.get("HYBRID_ROOT")) else None)


def _local(root: Path | None) -> UnixAddress:
    paths = Paths.of(root)
    return UnixAddress(paths.socket, paths.root)


def parse(text: str, environment: Mapping[str, str]) -> Address:
    """``unix:///path``, ``/path`` or ``tcp://host[:port]``."""
    if text.startswith("/"):
        return UnixAddress(Path(text))
    parts = urlsplit(text)
    match parts.scheme:
        case "unix" if parts.netloc == "" and parts.path.startswith("/"):
            return UnixAddress(Path(parts.path))
        case "tcp" | "https":
            try:
                port = parts.port
            except ValueError as error:
                raise InvalidInput(f"invalid host {text!r}: {error}") from error
            if not parts.hostname:
                raise InvalidInput(f"invalid host {text!r}: no host name")
            return TcpAddress(parts.hostname, port or DEFAULT_TLS_PORT, _certificates(environment))
    raise InvalidInput(f"invalid host {text!r}: expected unix:///path or tcp://host:port")


def _certificates(environment: Mapping[str, str]) -> Path | None:
    directory = environment.get("HYBRID_CERT_PATH") or environment.get("DOCKER_CERT_PATH")
    if directory:
        return Path(directory)
    if environment.get("DOCKER_TLS_VERIFY"):
        return Path(environment.get("HOME", "/root")) / ".docker"
    return None
