"""The host's own name servers, which no network may hide."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

from hybrid.network.dns import upstreams
from hybrid.network.ipam import pick_subnet


def test_no_network_is_picked_over_a_name_server(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# nameserver 10.0.0.1\nnameserver 172.24.0.2\nnameserver fe80::1\nnameserver\n"
    )
    assert upstreams(file) == [IPv4Network("172.24.0.2")]
    assert pick_subnet(upstreams(file)) == IPv4Network("172.24.1.0/24")


def test_a_host_without_any(tmp_path: Path) -> None:
    assert upstreams(tmp_path / "none") == []
