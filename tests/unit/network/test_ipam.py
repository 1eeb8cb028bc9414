from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import Conflict, InvalidInput, Unavailable
from hybrid.network import ipam

SMALL = IPv4Network("10.0.0.0/29")
GATEWAY = IPv4Address("10.0.0.1")


def test_the_first_free_subnet_is_picked() -> None:
    pool = [IPv4Network("10.1.0.0/22")]
    assert ipam.pick_subnet([], pool) == IPv4Network("10.1.0.0/24")
    assert ipam.pick_subnet([IPv4Network("10.1.0.128/25")], pool) == IPv4Network("10.1.1.0/24")
    assert ipam.pick_subnet([IPv4Network("10.1.0.0/23")], pool) == IPv4Network("10.1.2.0/24")


def test_no_subnet_is_left() -> None:
    with pytest.raises(Unavailable, match="fully subnetted"):
        ipam.pick_subnet([IPv4Network("10.0.0.0/8")], [IPv4Network("10.1.0.0/22")])


@given(
    st.lists(
        st.builds(
            lambda address, prefix: IPv4Network((address, prefix), strict=False),
            st.integers(0, 2**32 - 1),
            st.integers(8, 32),
        ),
        max_size=20,
    )
)
def test_what_is_picked_overlaps_nothing(used: list[IPv4Network]) -> None:
    picked = ipam.pick_subnet(used)
    assert not any(picked.overlaps(other) for other in used)


def test_addresses_are_given_lowest_first_until_none_is_left() -> None:
    taken: set[IPv4Address] = set()
    for number in range(2, 7):
        address = ipam.allocate(SMALL, GATEWAY, taken)
        assert address == IPv4Address(f"10.0.0.{number}")
        taken.add(address)
    with pytest.raises(Unavailable):
        ipam.allocate(SMALL, GATEWAY, taken)


def test_a_wanted_address() -> None:
    wanted = IPv4Address("10.0.0.5")
    assert ipam.allocate(SMALL, GATEWAY, set(), wanted) == wanted
    with pytest.raises(Conflict, match="already in use"):
        ipam.allocate(SMALL, GATEWAY, {wanted}, wanted)
    with pytest.raises(Conflict):
        ipam.allocate(SMALL, GATEWAY, set(), GATEWAY)
    for outside in ("10.0.0.0", "10.0.0.7", "10.0.0.9"):
        with pytest.raises(InvalidInput):
            ipam.allocate(SMALL, GATEWAY, set(), IPv4Address(outside))


@pytest.mark.parametrize(
    "text", ["10.0.0.0/31", "10.0.0.1/24", "x", "127.0.0.0/8", "224.0.0.0/8", "0.0.0.0/0", "::/64"]
)
def test_subnets_that_can_not_be(text: str) -> None:
    with pytest.raises(InvalidInput):
        ipam.check_subnet(text)


def test_the_gateway_and_the_mac() -> None:
    assert ipam.first_gateway(ipam.check_subnet("10.0.0.0/24")) == GATEWAY
    assert ipam.mac_address(GATEWAY) == "02:42:0a:00:00:01"
