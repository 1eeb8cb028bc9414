"""Daemons come and go; what they made on the host does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.errors import Conflict, Internal
from hybrid.network import nft
from hybrid.network.model import Endpoint, NetworkConfig, PortMapping, device_name
from hybrid.network.network import Networks
from hybrid.paths import Paths

pytestmark = pytest.mark.root
OWNER = """
import asyncio, json, sys, time
from pathlib import Path
from hybrid.network.model import NetworkConfig, PortMapping
from hybrid.network.network import Networks
from hybrid.paths import Paths

async def main():
    networks = Networks(Paths(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]))
    await networks.reconcile([], [])
    front = NetworkConfig(**json.loads(sys.argv[4]))
    await networks.ensure_network(front)
    peer = await networks.attach_veth(front.id, "one", "02:42:0a:09:01:02", "10.9.1.2")
    stray = NetworkConfig("5" * 64, "stray", "10.9.9.0/24", "10.9.9.1")
    await networks.ensure_network(stray)
    await networks.attach_tap(stray.id, "stray", "02:42:0a:09:09:02", "10.9.9.2")
    await networks.set_names(front.id, {"10.9.1.2": ["web"]})
    (port,) = await networks.publish("one", [PortMapping("127.0.0.1", 0, "", 80)])
    print(json.dumps([peer, port.host_port]), flush=True)
    time.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_daemons_networks_work_on_and_are_adopted(lab) -> None:
    front = lab.front
    settings = json.dumps(
        {"id": front.id, "name": front.name, "subnet": front.subnet, "gateway": front.gateway}
    )
    daemon = subprocess.Popen(
        [
            sys.executable,
            "-c",
            OWNER,
            str(lab.paths.root),
            str(lab.paths.run),
            str(lab.resolv_conf),
            settings,
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert daemon.stdout is not None
    peer, port = json.loads(daemon.stdout.readline())
    box = lab.box()
    box.take(peer, "eth0", "10.9.1.2/24", front.gateway)
    box.name_servers(front.gateway)
    box.serve(80, "one")
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    daemon.stdout.close()
    assert lab.ask("127.0.0.1", port).startswith("one"), "published without a daemon"
    assert box.run("getent", "hosts", "web").startswith("10.9.1.2"), "names without a daemon"
    pid = (lab.paths.network_run / front.id / "run" / "pid").read_text()
    assert "10.9.9.1" in lab.run("ip", "address")

    mapping = PortMapping("127.0.0.1", port, "10.9.1.2", 80)
    known = Endpoint("one", front.id, "02:42:0a:09:01:02", "10.9.1.2", "veth", (mapping,))
    gone = replace(known, id="gone", ip="10.9.1.3", ports=())
    assert await lab.networks.reconcile([front], [known, gone]) == ["gone"]
    assert lab.ask("127.0.0.1", port).startswith("one")
    assert (lab.paths.network_run / front.id / "run" / "pid").read_text() == pid
    assert "10.9.9.1" not in lab.run("ip", "address"), "what nobody knows is removed"
    await lab.networks.attach_veth(front.id, "two", "02:42:0a:09:01:04", "10.9.1.4")
    with pytest.raises(Conflict, match="already allocated"):
        await lab.networks.publish("two", [PortMapping("", port, "", 80)])
    await lab.networks.detach("one")
    assert lab.ask("127.0.0.1", port) == ""


async def test_nothing_is_left_when_nothing_is_known(lab) -> None:
    await lab.attach(lab.front, 2)
    await lab.networks.attach_tap(lab.front.id, "tap", "02:42:0a:09:01:07", "10.9.1.7")
    fresh = Networks(lab.paths, lab.resolv_conf)
    await fresh.reconcile([], [])
    await fresh.close()
    assert lab.run("ip", "-br", "link").split()[0] == "lo"
    assert len(lab.run("ip", "-br", "link").splitlines()) == 1
    assert lab.run("nft", "list", "tables") == ""
    assert not list(lab.paths.network_run.iterdir())


async def test_two_instances_do_not_disturb_each_other(lab, tmp_path: Path) -> None:
    one = await lab.attach(lab.front, 2)
    one.serve(80, "one")
    (port,) = await lab.networks.publish(
        lab.endpoint(lab.front, 2), [PortMapping("", 8080, "", 80)]
    )
    other_paths = Paths(lab.paths.root.parent / "other", lab.paths.run.parent / "other-run")
    other = Networks(other_paths, lab.resolv_conf)
    await other.reconcile([], [])
    with pytest.raises(Conflict, match=r"overlaps 10\.9\.1\.0/24"):
        await other.ensure_network(lab.front)
    theirs = NetworkConfig("f" * 64, "front", "10.9.8.0/24", "10.9.8.1")
    await other.ensure_network(theirs)
    peer = await other.attach_veth(theirs.id, "two", "02:42:0a:09:08:02", "10.9.8.2")
    two = lab.box()
    two.take(peer, "eth0", "10.9.8.2/24", theirs.gateway)
    two.serve(80, "two")
    assert one.ask("10.9.8.2", 80) == two.ask("10.9.1.2", 80) == "", "isolated"
    with pytest.raises(Conflict, match="already allocated"):
        await other.publish("two", [PortMapping("", port.host_port, "", 80)])
    # Its rules live on without its daemon, and count just as much.
    lab.networks._claims.close()
    with pytest.raises(Conflict, match="already allocated"):
        await other.publish("two", [PortMapping("127.0.0.1", port.host_port, "", 80)])
    await other.publish("two", [PortMapping("", 8081, "", 80)])
    assert lab.ask("127.0.0.1", 8080).startswith("one")
    assert lab.ask("127.0.0.1", 8081).startswith("two")
    await lab.networks.reconcile([], [])
    assert lab.ask("127.0.0.1", 8081).startswith("two")
    await other.reconcile([], [])
    await other.close()


async def test_everything_is_idempotent(lab) -> None:
    for _ in range(2):
        await lab.networks.ensure_network(lab.front)
        tap = await lab.networks.attach_tap(lab.front.id, "tap", "02:42:0a:09:01:07", "10.9.1.7")
        veth = await lab.networks.attach_veth(lab.front.id, "veth", "02:42:0a:09:01:08", "10.9.1.8")
    assert tap == device_name(lab.paths.instance, "tap", "tap") and len(tap) <= 15
    assert veth == device_name(lab.paths.instance, "peer", "veth")
    with pytest.raises(Conflict):
        await lab.networks.attach_tap(lab.front.id, "tap", "02:42:0a:09:01:07", "10.9.1.9")
    with pytest.raises(Conflict, match="active endpoints"):
        await lab.networks.remove_network(lab.front.id)
    for _ in range(2):
        await lab.networks.detach("tap")
        await lab.networks.detach("veth")
        await lab.networks.unpublish("veth")
    for _ in range(2):
        await lab.networks.remove_network(lab.front.id)
    assert lab.run("nft", "list", "tables") == ""


async def test_used_before_reconciled_is_refused(lab) -> None:
    fresh = Networks(lab.paths, lab.resolv_conf)
    with pytest.raises(Internal, match="reconciled"):
        await fresh.ensure_network(lab.front)
    await fresh.close()


async def test_a_firewall_in_the_way_is_named(lab) -> None:
    await lab.networks.ensure_network(lab.front)
    assert await lab.networks.check() == []
    lab.run("nft", "add table ip filter")
    lab.run(
        "nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
    )
    (warning,) = await lab.networks.check()
    assert "ip filter FORWARD" in warning


async def test_the_hosts_subnets_are_seen(lab) -> None:
    lab.outsider()
    assert "198.51.100.0/24" in map(str, await lab.networks.used_subnets())


async def test_rules_that_somebody_flushed_are_written_again_with_the_next_endpoint(lab) -> None:
    await lab.attach(lab.front, 2)
    lab.run("nft", "flush", "ruleset")
    await lab.attach(lab.front, 3)
    sources = lab.run("nft", "list", "set", "bridge", nft.table_name(lab.paths.instance), "sources")
    assert "10.9.1.2" in sources and "10.9.1.3" in sources
