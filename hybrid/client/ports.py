"""Published ports as people write them: ``[ip:][host port:]container port[/protocol]``, with
ranges."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hybrid.errors import InvalidInput

_SPEC = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|[0-9.]+|\w[\w.-]*):)??"
    r"(?:(?P<host>[\d-]*):)?(?P<container>[\d-]+)(?:/(?P<protocol>\w+))?"
)


@dataclass(frozen=True)
class Published:
    """One container port; ``host_port`` "" means any free one, or none when it is only exposed."""

    container_port: int
    protocol: str
    host_ip: str = ""
    host_port: str = ""

    @property
    def key(self) -> str:
        return f"{self.container_port}/{self.protocol}"


def parse(text: str) -> list[Published]:
    """The ports that one ``-p`` value names; InvalidInput when it is none."""
    match = _SPEC.fullmatch(text)
    if not match:
        raise InvalidInput(
            f"invalid port {text!r}: expected [ip:][host port:]container port[/protocol]"
        )
    protocol = (match["protocol"] or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidInput(f"invalid port {text!r}: unknown protocol {protocol!r}")
    address = _address(match["ip"], text)
    inside = _range(match["container"], text)
    outside = _range(match["host"], text) if match["host"] else None
    if outside is None:
        return [Published(port, protocol, address) for port in inside]
    if len(inside) == 1 and len(outside) > 1:
        # docker: one container port, any free host port of the range
        return [Published(inside[0], protocol, address, f"{outside[0]}-{outside[-1]}")]
    if len(inside) != len(outside):
        raise InvalidInput(f"invalid port {text!r}: the two ranges differ in length")
    pairs = zip(inside, outside, strict=True)
    return [Published(port, protocol, address, str(host)) for port, host in pairs]


def bindings(published: Iterable[Published]) -> dict[str, list[dict[str, Any]]]:
    """``HostConfig.PortBindings`` of the Engine API."""
    result: dict[str, list[dict[str, Any]]] = {}
    for port in published:
        binding = {"HostIp": port.host_ip, "HostPort": port.host_port}
        result.setdefault(port.key, []).append(binding)
    return result


def _address(text: str | None, whole: str) -> str:
    if not text:
        return ""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError as error:
        raise InvalidInput(f"invalid port {whole!r}: {text!r} is not an IP address") from error


def _range(text: str, whole: str) -> list[int]:
    first, dash, last = text.partition("-")
    try:
        low = int(first)
        high = int(last) if dash else low
    except ValueError as error:
        raise InvalidInput(f"invalid port {whole!r}: {text!r} is not a port or range") from error
    if not 1 <= low <= high <= 65535:
        raise InvalidInput(f"invalid port {whole!r}: {text!r} is not within 1-65535")
    return list(range(low, high + 1))
