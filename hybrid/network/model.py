"""Networks, endpoints and published ports as plain data, and their device names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from hybrid.errors import InvalidInput, Unsupported

Kind = Literal["bridge", "tap", "veth", "peer"]
_LETTER: dict[Kind, str] = {"bridge": "b", "tap": "t", "veth": "v", "peer": "p"}
PROTOCOLS = ("tcp", "udp")


def device_prefix(instance: str) -> str:
    """What every device name of this instance begins with."""
    return f"hy{instance[:4]}"


def device_name(instance: str, kind: Kind, owner_id: str) -> str:
    """The one device of that kind for that network or endpoint; IFNAMSIZ leaves 15 characters."""
    digest = hashlib.sha256(owner_id.encode()).hexdigest()[:8]
    return f"{device_prefix(instance)}{_LETTER[kind]}{digest}"


def device_alias(instance: str, owner_id: str) -> str:
    """Written into the device's alias: the whole instance, of which the name holds only half."""
    return f"hybrid {instance} {owner_id}"


@dataclass(frozen=True)
class NetworkConfig:
    """One network: a bridge whose address is the gateway. ``internal`` networks have no way out."""

    id: str
    name: str
    subnet: str
    gateway: str
    internal: bool = False
    mtu: int = 1500

    def __post_init__(self) -> None:
        try:
            subnet, gateway = IPv4Network(self.subnet), IPv4Address(self.gateway)
        except ValueError as error:
            raise InvalidInput(f"network {self.name}: {error}") from error
        if gateway not in subnet:
            raise InvalidInput(f"network {self.name}: gateway {gateway} is outside {subnet}")
        if not 576 <= self.mtu <= 65521:
            raise InvalidInput(f"network {self.name}: mtu must be 576 to 65521, not {self.mtu}")

    @property
    def prefix_length(self) -> int:
        return IPv4Network(self.subnet).prefixlen


@dataclass(frozen=True)
class PortMapping:
    """``host_ip:host_port`` leads to ``container_ip:container_port``.

    ``host_ip`` "" or 0.0.0.0 is every address of the host; ``host_port`` 0 lets the host pick;
    ``container_ip`` "" is the endpoint's address.
    """

    host_ip: str
    host_port: int
    container_ip: str
    container_port: int
    protocol: str = "tcp"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise Unsupported(
                f"publishing {self.protocol} ports is not supported: only tcp and udp are"
            )
        if not 0 <= self.host_port <= 65535 or not 1 <= self.container_port <= 65535:
            raise InvalidInput(f"invalid port mapping {self.host_port}:{self.container_port}")
        if ":" in self.host_ip:
            raise Unsupported(
                f"publishing on an IPv6 address ({self.host_ip}) is not supported: use an IPv4 one"
            )
        for address in (self.host_ip, self.container_ip):
            if address:
                _address(address)

    @property
    def everywhere(self) -> bool:
        """Published on all addresses of the host."""
        return self.host_ip in ("", "0.0.0.0")


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise InvalidInput(f"not an IPv4 address: {text!r}") from error


@dataclass(frozen=True)
class Endpoint:
    """One network interface of one container, and what is published on it."""

    id: str
    network_id: str
    mac: str
    ip: str
    kind: Literal["tap", "veth"] = "tap"
    ports: tuple[PortMapping, ...] = ()

    def __post_init__(self) -> None:
        _address(self.ip)
        octets = self.mac.split(":")
        if len(octets) != 6 or not all(len(octet) == 2 for octet in octets):
            raise InvalidInput(f"not a MAC address: {self.mac!r}")
        try:
            first, *_ = (int(octet, 16) for octet in octets)
        except ValueError as error:
            raise InvalidInput(f"not a MAC address: {self.mac!r}") from error
        if first & 1:
            raise InvalidInput(f"MAC address {self.mac} is a group address")
