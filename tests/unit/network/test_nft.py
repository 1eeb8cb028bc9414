"""The rulesets, as golden files: HYBRID_REGENERATE=1 writes them anew, to be reviewed as a diff."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hybrid.network import nft
from hybrid.network.firewall import obstacles, published
from hybrid.network.model import Endpoint, NetworkConfig, PortMapping, device_name

INSTANCE = "0123abcd"
FRONT = NetworkConfig("f" * 64, "front", "10.9.1.0/24", "10.9.1.1")
CLOSED = NetworkConfig("c" * 64, "closed", "10.9.3.0/24", "10.9.3.1", internal=True)
WEB = Endpoint(
    "web",
    FRONT.id,
    "02:42:0a:09:01:02",
    "10.9.1.2",
    "tap",
    (
        PortMapping("", 8080, "", 80),
        PortMapping("127.0.0.1", 8443, "", 443),
        PortMapping("192.0.2.2", 53, "10.9.1.2", 53, "udp"),
    ),
)
DATABASE = Endpoint("database", CLOSED.id, "02:42:0a:09:03:02", "10.9.3.2", "veth")

CASES = {
    "nothing": nft.render(INSTANCE, [], []),
    "network": nft.render(INSTANCE, [FRONT], []),
    "full": nft.render(INSTANCE, [FRONT, CLOSED], [WEB, DATABASE]),
}


@pytest.mark.parametrize("name", CASES)
def test_ruleset(name: str) -> None:
    golden = Path(__file__).parent / "golden" / f"{name}.nft"
    if os.environ.get("HYBRID_REGENERATE"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(CASES[name])
    assert CASES[name] == golden.read_text()


def test_order_of_the_model_does_not_matter() -> None:
    assert nft.render(INSTANCE, [CLOSED, FRONT], [DATABASE, WEB]) == CASES["full"]


def test_a_foreign_chain_that_drops_is_an_obstacle() -> None:
    def listed(**chain: str) -> dict[str, object]:
        return {"nftables": [{"metainfo": {}}, {"table": {}}, {"chain": chain}]}

    docker = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward"}
    assert obstacles(listed(**docker, policy="accept"), INSTANCE) == []
    (line,) = obstacles(listed(**docker, policy="drop"), INSTANCE)
    assert "'ip filter FORWARD'" in line and "hy0123" in line
    own = {**docker, "table": nft.table_name(INSTANCE), "policy": "drop"}
    assert obstacles(listed(**own), INSTANCE) == []
    assert obstacles(listed(family="ip", table="x", name="regular"), INSTANCE) == []


def test_an_endpoint_more_is_elements_more() -> None:
    lines = nft.grown(INSTANCE, WEB).splitlines()
    table = nft.table_name(INSTANCE)
    device = device_name(INSTANCE, "tap", "web")
    assert lines[:2] == [
        f'add element bridge {table} ports {{ "{device}" }}',
        f'add element bridge {table} sources {{ "{device}" . {WEB.mac} . {WEB.ip} }}',
    ]
    assert f"add element inet {table} published_loopback {{ tcp . 127.0.0.1 . 8443 }}" in lines
    assert len(lines) == 5


def test_what_other_instances_publish() -> None:
    def element(*key: str | int) -> list[object]:
        return [{"concat": list(key)}, {"concat": ["10.9.1.2", 80]}]

    def listed(table: str) -> dict[str, object]:
        everywhere = {"table": table, "name": "published_everywhere", "elem": [element("tcp", 80)]}
        one = {"table": table, "name": "published_at", "elem": [element("udp", "127.0.0.1", 53)]}
        empty = {"table": table, "name": "published_at"}
        return {"nftables": [{"map": everywhere}, {"map": one}, {"map": empty}, {"table": {}}]}

    found = dict.fromkeys([("tcp", "0.0.0.0", 80), ("udp", "127.0.0.1", 53)], "hybrid_other")
    assert published(listed("hybrid_other"), INSTANCE) == found
    assert published(listed(nft.table_name(INSTANCE)), INSTANCE) == {}
    assert published(listed("kube"), INSTANCE) == {}
