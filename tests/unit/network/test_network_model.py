from __future__ import annotations

from pathlib import Path

import pytest

from hybrid.errors import HybridError, InvalidInput, Unsupported
from hybrid.network import dns
from hybrid.network.model import Endpoint, NetworkConfig, PortMapping, device_name

FRONT = NetworkConfig("f" * 64, "front", "10.9.1.0/24", "10.9.1.1")
CLOSED = NetworkConfig("c" * 64, "closed", "10.9.3.0/24", "10.9.3.1", internal=True)


def test_device_names_fit_and_differ() -> None:
    kinds = ("bridge", "tap", "veth", "peer")
    names = {device_name("0123abcd", kind, owner) for kind in kinds for owner in ("a" * 64, "b")}
    assert len(names) == 8
    assert all(len(name) == 15 and name.startswith("hy0123") for name in names)


@pytest.mark.parametrize(
    ("subnet", "gateway", "mtu"),
    [
        ("10.9.1.0/33", "10.9.1.1", 1500),
        ("10.9.1.0/24", "10.9.2.1", 1500),
        ("10.9.1.0/24", "x", 1500),
        ("10.9.1.0/24", "10.9.1.1", 60),
    ],
)
def test_networks_that_can_not_be(subnet: str, gateway: str, mtu: int) -> None:
    with pytest.raises(InvalidInput):
        NetworkConfig("n", "n", subnet, gateway, mtu=mtu)


@pytest.mark.parametrize(
    ("mapping", "kind"),
    [
        (("", 70000, "", 80, "tcp"), InvalidInput),
        (("", 80, "", 0, "tcp"), InvalidInput),
        (("localhost", 80, "", 80, "tcp"), InvalidInput),
        (("", 80, "1.2.3.4; drop", 80, "tcp"), InvalidInput),
        (("::1", 80, "", 80, "tcp"), Unsupported),
        (("", 80, "", 80, "sctp"), Unsupported),
    ],
)
def test_mappings_that_can_not_be(
    mapping: tuple[str, int, str, int, str], kind: type[HybridError]
) -> None:
    with pytest.raises(kind):
        PortMapping(*mapping)


@pytest.mark.parametrize("mac", ["", "02:42", "01:00:5e:00:00:01", "0g:00:00:00:00:00", '"; drop'])
def test_macs_that_can_not_be(mac: str) -> None:
    with pytest.raises(InvalidInput):
        Endpoint("e", "n", mac, "10.9.1.2")


def test_name_server_files() -> None:
    names = {"10.9.1.10": ["web", "w"], "10.9.1.9": ["db"], "10.9.1.8": []}
    assert dns.hosts_file(names) == "10.9.1.9 db\n10.9.1.10 web w\n"
    assert dns.servers_file(FRONT, names, others=True) == (
        "server=/db/\nserver=/w/\nserver=/web/\nrev-server=10.9.1.0/24\nserver=//255.255.255.255\n"
    )
    assert dns.servers_file(FRONT, {}, others=False) == "rev-server=10.9.1.0/24\nserver=//\n"
    outside = dns.configuration(FRONT, Path("/d"), Path("/etc/resolv.conf"))
    inside = dns.configuration(CLOSED, Path("/d"), Path("/etc/resolv.conf"))
    assert "resolv-file=/etc/resolv.conf\n" in outside
    assert "no-resolv\n" in inside and "resolv-file" not in inside


def test_names_that_nobody_can_ask_for_are_left_out() -> None:
    names = {"10.9.1.9": ["a..b", "c.", "d-", "x" * 64, "e_f"], "10.9.1.10": ["g..h"]}
    dns.check_names(names)
    assert dns.hosts_file(names) == "10.9.1.9 c d- e_f\n"
    assert ".." not in dns.servers_file(FRONT, names, others=True)


@pytest.mark.parametrize("name", ["a b", "a\nb", "", "-a", "a/b", "x" * 300, "é", "a#b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        dns.check_names({"10.9.1.2": [name]})
