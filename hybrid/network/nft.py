"""Networks, endpoints and ports to two nftables tables, replaced as one transaction.

``inet hybrid_<instance>``: what guests may reach, what reaches them, NAT and published ports.
``bridge hybrid_<instance>``: what leaves a guest's own port: nothing but its own MAC and IPv4
address.

Both tables hold base chains of their own with policy accept: they only ever take away from hybrid's
own traffic, and an accept here does not overrule a drop of the host's own firewall
(``firewall.check`` tells about those).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hybrid.network.model import Endpoint, NetworkConfig, PortMapping, device_name

DNS_PORT = 53
_FAMILIES = {"ports": "bridge", "sources": "bridge"}  # of sets that endpoints are in; others: inet


def table_name(instance: str) -> str:
    return f"hybrid_{instance}"


def render(instance: str, networks: Iterable[NetworkConfig], endpoints: Iterable[Endpoint]) -> str:
    """The ``nft -f`` transaction that replaces both tables.

    With no networks it only removes them.
    """
    table = table_name(instance)
    ordered = sorted(networks, key=lambda network: network.id)
    ports = sorted(endpoints, key=lambda endpoint: endpoint.id)
    # Declaring before deleting makes the deletion good whether the table exists or not.
    replaced = "".join(
        f"table {family} {table}\ndelete table {family} {table}\n" for family in ("inet", "bridge")
    )
    if not ordered:
        return replaced
    return replaced + _inet(instance, table, ordered, ports) + _bridge(instance, table, ports)


def _set(name: str, kind: str, elements: Sequence[str], word: str = "set") -> str:
    body = (
        f"\n\t\telements = {{\n\t\t\t{f',{chr(10)}{chr(9) * 3}'.join(elements)}\n\t\t}}"
        if elements
        else ""
    )
    return f"\t{word} {name} {{\n\t\ttype {kind}{body}\n\t}}\n"


def _chain(name: str, rules: Iterable[str], hook: str = "") -> str:
    lines = ([f"type {hook}; policy accept"] if hook else []) + list(rules)
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _published(
    endpoints: Sequence[Endpoint],
) -> Iterable[tuple[PortMapping, str]]:
    for endpoint in endpoints:
        for port in endpoint.ports:
            yield port, f"{port.container_ip or endpoint.ip} . {port.container_port}"


def _elements(instance: str, endpoints: Sequence[Endpoint]) -> dict[str, list[str]]:
    """What endpoints put into which set or map."""
    device = {e.id: device_name(instance, e.kind, e.id) for e in endpoints}
    published = list(_published(endpoints))
    return {
        "ports": [f'"{device[e.id]}"' for e in endpoints],
        "sources": [f'"{device[e.id]}" . {e.mac} . {e.ip}' for e in endpoints],
        "published_everywhere": [
            f"{p.protocol} . {p.host_port} : {target}" for p, target in published if p.everywhere
        ],
        "published_at": [
            f"{p.protocol} . {p.host_ip} . {p.host_port} : {target}"
            for p, target in published
            if not p.everywhere
        ],
        "published_loopback": [
            f"{p.protocol} . {p.host_ip} . {p.host_port}"
            for p, _ in published
            if p.host_ip.startswith("127.")
        ],
    }


def grown(instance: str, endpoint: Endpoint) -> str:
    """The ``nft -f`` transaction that adds one endpoint and its ports to tables that are there."""
    return "".join(
        f"add element {_FAMILIES.get(name, 'inet')} {table_name(instance)} {name} {{ {', '.join(elements)} }}\n"
        for name, elements in _elements(instance, [endpoint]).items()
        if elements
    )


def _sets(instance: str, networks: Sequence[NetworkConfig], endpoints: Sequence[Endpoint]) -> str:
    bridge = {network.id: device_name(instance, "bridge", network.id) for network in networks}
    elements = _elements(instance, endpoints)
    to = "ipv4_addr . inet_service"
    return "".join(
        (
            _set("bridges", "ifname", [f'"{bridge[n.id]}"' for n in networks]),
            _set("internal", "ifname", [f'"{bridge[n.id]}"' for n in networks if n.internal]),
            _set("same_bridge", "ifname . ifname", [f'"{b}" . "{b}"' for b in bridge.values()]),
            _set(
                "gateways",
                "ifname . ipv4_addr",
                [f'"{bridge[n.id]}" . {n.gateway}' for n in networks],
            ),
            _set(
                "published_everywhere",
                f"inet_proto . inet_service : {to}",
                elements["published_everywhere"],
                "map",
            ),
            _set(
                "published_at",
                f"inet_proto . ipv4_addr . inet_service : {to}",
                elements["published_at"],
                "map",
            ),
            _set(
                "published_loopback",
                "inet_proto . ipv4_addr . inet_service",
                elements["published_loopback"],
            ),
        )
    )


def _inet(
    instance: str, table: str, networks: Sequence[NetworkConfig], endpoints: Sequence[Endpoint]
) -> str:
    sets = _sets(instance, networks, endpoints)
    return f"table inet {table} {{\n{sets}{_translation(instance, networks)}{_filter()}}}\n"


def _translation(instance: str, networks: Sequence[NetworkConfig]) -> str:
    chains = (
        # route_localnet on the bridges makes 127/8 routable there: nothing from the wire may use
        # it.
        _chain(
            "martians",
            [
                "iifname @bridges ip daddr 127.0.0.0/8 drop",
                "iifname @bridges ip saddr 127.0.0.0/8 drop",
                'iifname != "lo" meta l4proto . ip daddr . th dport @published_loopback drop',
            ],
            "filter hook prerouting priority raw",
        ),
        _chain(
            "published",
            [
                "dnat ip to meta l4proto . ip daddr . th dport map @published_at",
                "fib daddr type local dnat ip to meta l4proto . th dport map @published_everywhere",
            ],
        ),
        _chain(
            "prerouting",
            ["ip daddr != 127.0.0.0/8 meta l4proto { tcp, udp } jump published"],
            "nat hook prerouting priority dstnat",
        ),
        _chain(
            "output",
            ["meta l4proto { tcp, udp } jump published"],
            "nat hook output priority -100",
        ),
        _chain(
            "postrouting", _masquerade(instance, networks), "nat hook postrouting priority srcnat"
        ),
    )
    return "".join(chains)


def _filter() -> str:
    """What is forwarded from and to guests, and what they reach on the host itself."""
    chains = (
        _chain(
            "forward",
            [
                "iifname . oifname @same_bridge accept",
                "iifname @bridges jump from_guest",
                "oifname @bridges jump to_guest",
            ],
            "filter hook forward priority filter",
        ),
        _chain(
            "from_guest",
            [
                "meta nfproto ipv6 drop",
                "ip daddr 169.254.0.0/16 drop",
                "ct state established,related accept",
                "iifname @internal drop",
                "oifname @internal drop",
                "oifname @bridges ct status dnat accept",
                "oifname @bridges drop",
            ],
        ),
        _chain(
            "to_guest",
            [
                "meta nfproto ipv6 drop",
                "ct state established,related accept",
                "ct status dnat accept",
                "drop",
            ],
        ),
        _chain("input", ["iifname @bridges jump to_host"], "filter hook input priority filter"),
        _chain(
            "to_host",
            [
                "meta nfproto ipv6 drop",
                "ct state established,related accept",
                f"iifname . ip daddr @gateways udp dport {DNS_PORT} accept",
                f"iifname . ip daddr @gateways tcp dport {DNS_PORT} accept",
                "iifname . ip daddr @gateways icmp type echo-request accept",
                "drop",
            ],
        ),
    )
    return "".join(chains)


def _masquerade(instance: str, networks: Sequence[NetworkConfig]) -> list[str]:
    """Three cases: the host's loopback, a guest back to its own network, and outwards."""
    rules = ["oifname @bridges ip saddr 127.0.0.0/8 masquerade"]
    for network in networks:
        rules.append(
            f"ct status dnat ip saddr {network.subnet} ip daddr {network.subnet} masquerade"
        )
        if not network.internal:
            bridge = device_name(instance, "bridge", network.id)
            rules.append(f'ip saddr {network.subnet} oifname != "{bridge}" masquerade')
    return rules


def _bridge(instance: str, table: str, endpoints: Sequence[Endpoint]) -> str:
    elements = _elements(instance, endpoints)
    sets = _set("ports", "ifname", elements["ports"]) + _set(
        "sources", "ifname . ether_addr . ipv4_addr", elements["sources"]
    )
    chains = _chain(
        "prerouting", ["iifname @ports jump own_address"], "filter hook prerouting priority -300"
    ) + _chain(
        "own_address",
        [
            "ether type { 8021q, 8021ad } drop",
            "ether type ip iifname . ether saddr . ip saddr @sources accept",
            "ether type arp iifname . ether saddr . arp saddr ip @sources"
            " iifname . arp saddr ether . arp saddr ip @sources accept",
            "drop",
        ],
    )
    return f"table bridge {table} {{\n{sets}{chains}}}\n"
