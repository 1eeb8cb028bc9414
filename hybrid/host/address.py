"""``ssh://user@host:port`` and what an OpenSSH client configuration adds to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hybrid.errors import InvalidInput, Unsupported

DEFAULT_PORT = 22
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|[0-9a-fA-F:.]{2,45}(?:%[A-Za-z0-9]+)?")


@dataclass(frozen=True)
class Address:
    """What the user wrote; None and "" are what they left to the configuration."""

    host: str
    user: str = ""
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port is not None else ""
        return f"ssh://{user}{host}{port}"


@dataclass(frozen=True)
class Target:
    """Where to connect and with what, complete."""

    address: Address
    host: str
    port: int
    user: str
    identities: tuple[Path, ...] = ()
    only_identities: bool = False
    known_hosts: tuple[Path, ...] = field(default=())

    @property
    def key_name(self) -> str:
        """Its name in known_hosts files (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT")."""
        return self.host if self.port == DEFAULT_PORT else f"[{self.host}]:{self.port}"


def parse(text: str) -> Address:
    """InvalidInput unless it is ssh://[user@]host[:port]."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidInput(f"not an SSH address: {text!r}: {error}") from error
    user = parts.username or ""
    if parts.scheme != "ssh" or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidInput(f"not an SSH address: {text!r} (ssh://[user@]host[:port])")
    if parts.password is not None:
        raise InvalidInput(f"no password in an SSH address: use a key or an agent ({host})")
    if not _HOST.fullmatch(host) or (user and not _USER.fullmatch(user)) or port == 0:
        raise InvalidInput(f"not an SSH address: {text!r} (ssh://[user@]host[:port])")
    return Address(host, user, port)


def resolve(
    address: Address,
    settings: dict[str, str | list[str]],
    *,
    local_user: str,
    home: Path,
    system_known_hosts: Path = Path("/etc/ssh/ssh_known_hosts"),
) -> Target:
    """The address with ``settings``, what ssh_config says for its host (keys in lower case).

    Unsupported for settings that would change the way there and that hybrid can't follow.
    """
    for name in ("proxycommand", "proxyjump"):
        if _text(settings, name, "none").lower() != "none":
            raise Unsupported(
                f"{address}: ssh_config sets {name} for this host, which hybrid does not support;"
                " forward a port yourself and add ssh://user@127.0.0.1:PORT"
            )
    port_text = _text(settings, "port", str(DEFAULT_PORT))
    if not port_text.isdigit() or not 0 < int(port_text) < 65536:
        raise InvalidInput(f"{address}: ssh_config has an invalid Port: {port_text!r}")
    identities = settings.get("identityfile", [])
    paths = [identities] if isinstance(identities, str) else identities
    own_files = _text(settings, "userknownhostsfile", str(home / ".ssh" / "known_hosts")).split()
    return Target(
        address=address,
        host=_text(settings, "hostname", address.host),
        port=address.port if address.port is not None else int(port_text),
        user=address.user or _text(settings, "user", local_user),
        identities=tuple(_expand(path, home) for path in paths),
        only_identities=_text(settings, "identitiesonly", "no").lower() == "yes",
        known_hosts=(*(_expand(path, home) for path in own_files), system_known_hosts),
    )


def _text(settings: dict[str, str | list[str]], name: str, default: str) -> str:
    value = settings.get(name, default)
    return value if isinstance(value, str) else default


def _expand(path: str, home: Path) -> Path:
    return home / path[2:] if path.startswith("~/") else Path(path)
