"""Which subnet a network gets, which address an endpoint: pure, the state is the caller's."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from hybrid.errors import Conflict, InvalidInput, Unavailable

# Apart from docker's default pools (172.17.0.0/16 to 172.23.0.0/16 are what it hands out first).
DEFAULT_POOLS = (IPv4Network("172.24.0.0/13"), IPv4Network("10.192.0.0/12"))
SUBNET_PREFIX = 24


def pick_subnet(
    used: Iterable[IPv4Network],
    pools: Iterable[IPv4Network] = DEFAULT_POOLS,
    prefix: int = SUBNET_PREFIX,
) -> IPv4Network:
    """The first subnet of the pools that overlaps nothing in ``used``.

    Unavailable when all are taken.
    """
    taken = sorted(collapse_addresses(used))
    for pool in pools:
        for candidate in pool.subnets(new_prefix=max(prefix, pool.prefixlen)):
            if not any(candidate.overlaps(other) for other in taken):
                return candidate
    raise Unavailable(
        "all predefined address pools have been fully subnetted: name a subnet of your own"
    )


def overlapping(wanted: IPv4Network, used: Iterable[IPv4Network]) -> IPv4Network | None:
    """The first network in ``used`` that overlaps ``wanted``."""
    return next((other for other in used if wanted.overlaps(other)), None)


def check_subnet(text: str) -> IPv4Network:
    """A subnet that can hold a gateway and a container; InvalidInput otherwise."""
    try:
        subnet = IPv4Network(text)
    except ValueError as error:
        raise InvalidInput(f"invalid subnet {text!r}: {error}") from error
    if subnet.prefixlen > 30:
        raise InvalidInput(f"subnet {subnet} is too small: /30 is the smallest")
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or subnet.prefixlen < 8:
        raise InvalidInput(f"subnet {subnet} can't be used for containers")
    return subnet


def hosts(subnet: IPv4Network) -> Iterator[IPv4Address]:
    """Addresses that can be given away, lowest first, without making a list of a /8."""
    first, last = int(subnet.network_address) + 1, int(subnet.broadcast_address)
    return (IPv4Address(number) for number in range(first, last))


def first_gateway(subnet: IPv4Network) -> IPv4Address:
    """The gateway when none is asked for."""
    return next(hosts(subnet))


def allocate(
    subnet: IPv4Network,
    gateway: IPv4Address,
    taken: Container[IPv4Address],
    wanted: IPv4Address | None = None,
) -> IPv4Address:
    """``wanted`` if free, else Conflict; without it the lowest free one, else Unavailable."""
    if wanted is not None:
        if wanted not in subnet or wanted in (subnet.network_address, subnet.broadcast_address):
            raise InvalidInput(f"address {wanted} can't be used in the subnet {subnet}")
        if wanted == gateway or wanted in taken:
            raise Conflict(f"Address already in use: {wanted}")
        return wanted
    for address in hosts(subnet):
        if address != gateway and address not in taken:
            return address
    raise Unavailable(f"no available IPv4 addresses on this network's address pool {subnet}")


def mac_address(address: IPv4Address) -> str:
    """A locally administered MAC that is unique wherever the address is."""
    return ":".join(f"{octet:02x}" for octet in b"\x02\x42" + address.packed)
