"""The host's own firewall keeps its say over published ports."""

from __future__ import annotations

from typing import Any

import pytest

from hybrid.network.model import PortMapping

pytestmark = pytest.mark.root


async def test_a_published_port_does_not_bypass_the_hosts_firewall(lab: Any) -> None:
    """A drop in a chain of the host's, at the ordinary priority, wins over what hybrid accepts."""
    outsider = lab.outsider()
    one = await lab.attach(lab.front, 2)
    one.serve(80, "one")
    await lab.networks.publish(lab.endpoint(lab.front, 2), [PortMapping("", 8080, "", 80)])
    assert outsider.ask("198.51.100.1", 8080).startswith("one")
    lab.run("nft", "add table inet hosts")
    lab.run(
        "nft",
        "add chain inet hosts forward { type filter hook forward priority 0 ; policy accept ; }",
    )
    lab.run("nft", "add rule inet hosts forward iifname outside0 drop")
    assert outsider.ask("198.51.100.1", 8080) == ""
    lab.run("nft", "flush chain inet hosts forward")
    assert outsider.ask("198.51.100.1", 8080).startswith("one")
    lab.run("nft", "add rule inet hosts forward tcp dport 80 drop")
    assert outsider.ask("198.51.100.1", 8080) == ""
