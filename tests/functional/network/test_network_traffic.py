"""What reaches what, with real packets: isolation, published ports, spoofing."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path

import pytest

from hybrid.errors import Conflict, InvalidInput
from hybrid.network.model import PortMapping

pytestmark = pytest.mark.root


async def test_endpoints_of_one_network_reach_each_other(lab) -> None:
    one, two = await lab.attach(lab.front, 2), await lab.attach(lab.front, 3)
    two.serve(80, "two")
    assert one.ask("10.9.1.3", 80) == "two 10.9.1.2"


async def test_networks_are_isolated_from_each_other(lab) -> None:
    one, two = await lab.attach(lab.front, 2), await lab.attach(lab.back, 2)
    two.serve(80, "two")
    assert one.ask("10.9.2.2", 80) == ""
    assert one.ask("10.9.2.1", 53) == ""


async def test_a_guest_reaches_no_service_of_the_host(lab) -> None:
    one = await lab.attach(lab.front, 2)
    listener = socket.create_server(("0.0.0.0", 7777))
    for address in ("10.9.1.1", "198.51.100.1", "127.0.0.1"):
        assert one.ask(address, 7777) == ""
    # the listener works: the host itself gets through
    socket.create_connection(("10.9.1.1", 7777), 1).close()
    listener.close()


async def test_the_outside_is_reached_under_the_hosts_address(lab) -> None:
    outsider = lab.outsider()
    one = await lab.attach(lab.front, 2)
    outsider.serve(80, "out")
    assert one.ask("198.51.100.2", 80) == "out 198.51.100.1"


async def test_link_local_metadata_is_out_of_reach(lab) -> None:
    outsider = lab.outsider()
    one = await lab.attach(lab.front, 2)
    outsider.run("ip", "address", "add", "169.254.169.254/32", "dev", "lo")
    lab.run("ip", "route", "add", "169.254.169.254/32", "via", "198.51.100.2")
    outsider.serve(80, "metadata")
    assert one.ask("198.51.100.2", 80)
    assert one.ask("169.254.169.254", 80) == ""


async def test_an_internal_network_has_no_outside(lab) -> None:
    outsider = lab.outsider()
    one, two = await lab.attach(lab.closed, 2), await lab.attach(lab.closed, 3)
    one.run("ip", "route", "add", "default", "via", lab.closed.gateway)
    outsider.serve(80, "out")
    two.serve(80, "two")
    assert one.ask("198.51.100.2", 80) == ""
    assert one.ask("10.9.3.3", 80) == "two 10.9.3.2"


async def test_nobody_outside_reaches_an_unpublished_port(lab) -> None:
    outsider = lab.outsider()
    one = await lab.attach(lab.front, 2)
    one.serve(80, "one")
    outsider.run("ip", "route", "add", "10.9.1.0/24", "via", "198.51.100.1")
    assert outsider.ask("10.9.1.2", 80) == ""


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_published_port(lab, protocol: str) -> None:
    outsider = lab.outsider()
    one, same, other = (
        await lab.attach(lab.front, 2),
        await lab.attach(lab.front, 3),
        await lab.attach(lab.back, 2),
    )
    one.serve(80, "one", protocol)
    await lab.networks.publish(
        lab.endpoint(lab.front, 2), [PortMapping("", 8080, "", 80, protocol)]
    )
    assert outsider.ask("198.51.100.1", 8080, protocol) == "one 198.51.100.2", (
        "from outside, as itself"
    )
    for address in ("127.0.0.1", "198.51.100.1", "10.9.1.1"):
        assert lab.ask(address, 8080, protocol).startswith("one"), f"from the host at {address}"
        if not address.startswith("127."):
            assert same.ask(address, 8080, protocol).startswith("one"), "from a neighbour"
            assert one.ask(address, 8080, protocol).startswith("one"), "from itself"
    assert other.ask("198.51.100.1", 8080, protocol).startswith("one"), "from another network"
    await lab.networks.unpublish(lab.endpoint(lab.front, 2))
    assert outsider.ask("198.51.100.1", 8080, protocol) == ""
    assert lab.ask("127.0.0.1", 8080, protocol) == ""


async def test_a_udp_flow_follows_the_port_to_its_new_owner(lab) -> None:
    one, two = await lab.attach(lab.front, 2), await lab.attach(lab.front, 3)
    one.serve(53, "one", "udp")
    two.serve(53, "two", "udp")
    wanted = [PortMapping("127.0.0.1", 5353, "", 53, "udp")]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.connect(("127.0.0.1", 5353))
        for owner, name in ((2, b"one"), (3, b"two")):
            await lab.networks.publish(lab.endpoint(lab.front, owner), wanted)
            client.send(b"?")
            assert client.recv(99).startswith(name)
            await lab.networks.unpublish(lab.endpoint(lab.front, owner))


@pytest.mark.parametrize("bridge_netfilter", ["0", "1"])
async def test_hairpin_with_and_without_bridge_netfilter(lab, bridge_netfilter: str) -> None:
    setting = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not setting.exists():
        pytest.skip("no br_netfilter")
    setting.write_text(bridge_netfilter)
    one, two = await lab.attach(lab.front, 2), await lab.attach(lab.front, 3)
    one.serve(80, "one")
    await lab.networks.publish(lab.endpoint(lab.front, 2), [PortMapping("", 8080, "", 80)])
    assert one.ask("10.9.1.1", 8080).startswith("one")
    assert two.ask("10.9.1.1", 8080).startswith("one")
    assert two.ask("10.9.1.2", 80) == "one 10.9.1.3"


async def test_published_on_loopback_means_this_host_only(lab) -> None:
    outsider = lab.outsider()
    one, other = await lab.attach(lab.front, 2), await lab.attach(lab.back, 2)
    one.serve(80, "one")
    await lab.networks.publish(lab.endpoint(lab.front, 2), [PortMapping("127.0.0.1", 8080, "", 80)])
    assert lab.ask("127.0.0.1", 8080).startswith("one")
    assert outsider.ask("198.51.100.1", 8080) == ""
    assert other.ask("198.51.100.1", 8080) == ""
    assert other.ask("10.9.2.1", 8080) == ""
    # An outsider that puts 127.0.0.1 on the wire, even if the host's interface took it.
    lab.run("sysctl", "-qw", "net.ipv4.conf.outside0.route_localnet=1")
    outsider.run("ip", "address", "del", "127.0.0.1/8", "dev", "lo")
    outsider.run("ip", "route", "add", "127.0.0.1/32", "via", "198.51.100.1", "src", "198.51.100.2")
    outsider.run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
    assert outsider.ask("127.0.0.1", 8080) == ""
    other.run("ip", "address", "del", "127.0.0.1/8", "dev", "lo")
    other.run("ip", "route", "add", "127.0.0.1/32", "via", "10.9.2.1", "src", "10.9.2.2")
    other.run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
    assert other.ask("127.0.0.1", 8080) == ""


async def test_a_taken_port_is_refused_in_dockers_words(lab) -> None:
    await lab.attach(lab.front, 2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        wanted = [PortMapping("127.0.0.1", 0, "", 80), PortMapping("127.0.0.1", port, "", 81)]
        with pytest.raises(
            Conflict, match=rf"Bind for 127.0.0.1:{port} failed: port is already allocated"
        ):
            await lab.networks.publish(lab.endpoint(lab.front, 2), wanted)
    assert "dnat ip to" in lab.run("nft", "list", "ruleset")
    assert "elements" not in lab.run("nft", "list", "map", "inet", lab.table, "published_at")


async def test_port_zero_is_any_free_port(lab) -> None:
    one = await lab.attach(lab.front, 2)
    one.serve(80, "one")
    (real,) = await lab.networks.publish(
        lab.endpoint(lab.front, 2), [PortMapping("127.0.0.1", 0, "", 80)]
    )
    assert real.host_port > 1023
    assert lab.ask("127.0.0.1", real.host_port).startswith("one")


async def test_nothing_is_published_on_an_internal_network(lab) -> None:
    await lab.attach(lab.closed, 2)
    with pytest.raises(InvalidInput, match="internal"):
        await lab.networks.publish(lab.endpoint(lab.closed, 2), [PortMapping("", 8080, "", 80)])


async def test_a_tap_sends_only_under_its_own_addresses(lab) -> None:
    victim = await lab.attach(lab.front, 2)
    mac = "02:42:00:00:00:07"
    name = await lab.networks.attach_tap(lab.front.id, "tap-7", mac, "10.9.1.7")
    guest = open_tap(name)
    target = "02:42:00:00:02:01"
    own = [
        ip_frame(target, mac, "10.9.1.7", "10.9.1.2"),
        arp_frame(mac, mac, "10.9.1.7", "10.9.1.2"),
    ]
    forged = [
        ip_frame(target, "02:42:00:00:00:08", "10.9.1.7", "10.9.1.2"),
        ip_frame(target, mac, "10.9.1.8", "10.9.1.2"),
        ip_frame(target, mac, "127.0.0.1", "10.9.1.2"),
        ip_frame(target, mac, "10.9.1.7", "10.9.1.2", b"\x81\x00\x00\x05"),
        ip_frame(target, mac, "10.9.1.7", "10.9.1.2", b"\x88\xa8\x00\x05"),
        arp_frame(mac, mac, "10.9.1.1", "10.9.1.2"),
        arp_frame(mac, "02:42:00:00:00:08", "10.9.1.7", "10.9.1.2"),
        arp_frame("02:42:00:00:00:08", mac, "10.9.1.7", "10.9.1.2"),
        hexmac(target) + hexmac(mac) + b"\x86\xdd\x60" + bytes(60),
        hexmac(target) + hexmac(mac) + b"\x88\xb5" + bytes(60),
    ]
    with victim.capture() as capture:
        for frame in [own[0], *forged, own[1]]:
            os.write(guest, VNET + frame)
        seen = capture(until=own[1])
    os.close(guest)
    assert [frame for frame in seen if frame[6:12] in (hexmac(mac), b"\x02\x42\0\0\0\x08")] == own


async def test_only_its_owner_opens_a_tap(lab) -> None:
    await lab.networks.ensure_network(lab.front)
    name = await lab.networks.attach_tap(
        lab.front.id, "tap-1", "02:42:00:00:00:07", "10.9.1.7", owner=(64055, 64055)
    )
    assert name == await lab.networks.attach_tap(
        lab.front.id, "tap-1", "02:42:00:00:00:07", "10.9.1.7", owner=(64055, 64055)
    )
    details = lab.run("ip", "-d", "link", "show", name)
    assert "vnet_hdr on" in details and "multi_queue" not in details and "pi off" in details
    opener = f"""
import fcntl, os, struct, sys
f = os.open("/dev/net/tun", os.O_RDWR)
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
fcntl.ioctl(f, 0x400454CA, struct.pack("16sH22x", b"{name}", 0x5002))
"""
    lab.run("python3", "-Ic", opener, "64055")
    with pytest.raises(AssertionError, match="Operation not permitted"):
        lab.run("python3", "-Ic", opener, "65534")


VNET = bytes(10)


def open_tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))
    return descriptor


def hexmac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ip_frame(target: str, source: str, source_ip: str, target_ip: str, tag: bytes = b"") -> bytes:
    payload = struct.pack(">HHHH", 1234, 9, 8, 0)
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        28,
        1,
        0,
        64,
        17,
        0,
        socket.inet_aton(source_ip),
        socket.inet_aton(target_ip),
    )
    total = sum(struct.unpack(">10H", header))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    header = header[:10] + struct.pack(">H", checksum) + header[12:]
    return hexmac(target) + hexmac(source) + tag + b"\x08\x00" + header + payload


def arp_frame(source: str, hardware: str, address: str, target_ip: str) -> bytes:
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + hexmac(hardware) + socket.inet_aton(address)
    body += bytes(6) + socket.inet_aton(target_ip)
    return (b"\xff" * 6 + hexmac(source) + b"\x08\x06" + body).ljust(60, b"\0")
