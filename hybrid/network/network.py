"""All networks of one daemon on this host: the one door for the engine.

``reconcile`` comes first, once, with everything the engine knows: it adopts what a daemon before
this one left running, removes what nobody knows, and only then are rules written. Every other call
changes the model and then the host, one call at a time: rules first, devices after, so that no
device is ever on a bridge without its rules. Bridges, taps, rules and name servers live on without
the daemon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from hybrid.errors import Conflict, HybridError, Internal, InvalidInput, NotFound
from hybrid.network import dns, firewall, ipam, nft, sysctl, tap
from hybrid.network.dns import NameServers
from hybrid.network.model import (
    Endpoint,
    NetworkConfig,
    PortMapping,
    device_alias,
    device_name,
    device_prefix,
)
from hybrid.network.netlink import Link, Netlink
from hybrid.network.ports import PortClaims
from hybrid.paths import Paths

log = logging.getLogger(__name__)


class Networks:
    """See the module. All methods raise ``hybrid.errors`` kinds.

    All but ``publish`` are idempotent.
    """

    def __init__(self, paths: Paths, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self.instance = paths.instance
        self._netlink = Netlink()
        self._names = NameServers(paths.network_run, resolv_conf)
        self._resolv_conf = resolv_conf
        self._run = paths.run
        self._claims = PortClaims()
        self._networks: dict[str, NetworkConfig] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._lock = asyncio.Lock()
        self._reconciled = False

    def __repr__(self) -> str:
        counts = f"{len(self._networks)} networks, {len(self._endpoints)} endpoints"
        return f"<Networks {self.instance}: {counts}>"

    async def close(self) -> None:
        """Lets go of sockets and the thread; everything on the host runs on."""
        self._claims.close()
        await self._netlink.close()

    # --- networks ---------------------------------------------------------------------------------

    async def ensure_network(self, network: NetworkConfig) -> None:
        """Bridge, address, rules and name server are there.

        Conflict when the subnet is in use on this host.
        """
        async with self._lock:
            self._need_reconciled()
            known = self._networks.get(network.id)
            if known is not None and known != network:
                raise Conflict(f"network {network.name} exists with other settings")
            if known is None:
                await self._check_free(network)
            self._networks[network.id] = network
            try:
                await self._apply()
                await self._raise_network(network)
            except HybridError:
                if known is None:
                    await self._drop_network(network.id)
                raise

    async def remove_network(self, network_id: str) -> None:
        """Conflict while it has endpoints."""
        async with self._lock:
            self._need_reconciled()
            if any(endpoint.network_id == network_id for endpoint in self._endpoints.values()):
                raise Conflict(f"network {network_id[:12]} has active endpoints")
            await self._drop_network(network_id)

    async def set_names(
        self, network_id: str, names: Mapping[str, Sequence[str]], *, others: bool = True
    ) -> None:
        """The network's name server answers exactly these: address → names.

        ``others``: some container here is on another network too (see ``hybrid.network.dns``).
        """
        async with self._lock:
            await self._names.set_names(self._network(network_id), names, others=others)

    async def used_subnets(self) -> list[IPv4Network]:
        """What a new network must not overlap: this host's routes, and the name servers it asks."""
        return await self._netlink.used_subnets() + dns.upstreams(self._resolv_conf)

    async def check(self) -> list[str]:
        """What of this host's set-up keeps networks from working, a line each, for people."""
        found = await firewall.warnings(self.instance)
        if sysctl.read("ipv4/ip_forward") == "0" and self._networks:
            found.append(
                "net.ipv4.ip_forward is off: containers do not reach the outside"
                " (sysctl -w net.ipv4.ip_forward=1)"
            )
        return found

    # --- endpoints --------------------------------------------------------------------------------

    async def attach_tap(
        self,
        network_id: str,
        endpoint_id: str,
        mac: str,
        ip: str,
        mtu: int | None = None,
        *,
        owner: tuple[int, int] | None = None,
    ) -> str:
        """A tap on the network's bridge, which only root and ``owner`` (uid, gid) may open.

        Returns its name.
        """
        async with self._lock:
            endpoint = Endpoint(endpoint_id, network_id, mac.lower(), ip, "tap")
            name = device_name(self.instance, "tap", endpoint_id)
            await self._attach(endpoint, mtu, owner)
            return name

    async def attach_veth(
        self, network_id: str, endpoint_id: str, mac: str, ip: str, mtu: int | None = None
    ) -> str:
        """A veth pair, one end on the bridge; returns the name of the other, the container's."""
        async with self._lock:
            endpoint = Endpoint(endpoint_id, network_id, mac.lower(), ip, "veth")
            await self._attach(endpoint, mtu, None)
            return device_name(self.instance, "peer", endpoint_id)

    async def detach(self, endpoint_id: str) -> None:
        """The device, its rules and published ports are gone."""
        async with self._lock:
            self._need_reconciled()
            endpoint = self._endpoints.get(endpoint_id)
            if endpoint is None:
                return
            await self._netlink.delete(device_name(self.instance, endpoint.kind, endpoint_id))
            await self._forget(endpoint)

    # --- published ports --------------------------------------------------------------------------

    async def publish(self, endpoint_id: str, ports: Sequence[PortMapping]) -> list[PortMapping]:
        """Adds ports to the endpoint, all or none; returns them with the real host ports.

        Conflict, in Docker's words, when a port is taken on this host.
        """
        async with self._lock:
            endpoint = self._endpoint(endpoint_id)
            network = self._network(endpoint.network_id)
            if network.internal and ports:
                raise InvalidInput(
                    f"network {network.name} is internal: no ports can be published on it"
                )
            filled = [
                replace(port, container_ip=port.container_ip or endpoint.ip) for port in ports
            ]
            foreign = await firewall.foreign_ports(self.instance)
            claimed = self._claims.claim(filled, foreign)
            grown = replace(endpoint, ports=endpoint.ports + tuple(claimed))
            self._endpoints[endpoint_id] = grown
            try:
                await self._grow(grown)
            except HybridError:
                self._endpoints[endpoint_id] = endpoint
                self._claims.release(claimed)
                raise
            self._claims.turn_away(claimed)
            # UDP "connections" from before would go on to whoever answered the port until now.
            await self._netlink.forget_connections(endpoint.ip)
            return claimed

    async def unpublish(self, endpoint_id: str) -> None:
        """Takes all ports off the endpoint."""
        async with self._lock:
            self._need_reconciled()
            endpoint = self._endpoints.get(endpoint_id)
            if endpoint is None or not endpoint.ports:
                return
            self._endpoints[endpoint_id] = replace(endpoint, ports=())
            await self._apply()
            self._claims.release(endpoint.ports)
            await self._netlink.forget_connections(endpoint.ip)

    # --- reconciliation ---------------------------------------------------------------------------

    async def reconcile(
        self, networks: Iterable[NetworkConfig], endpoints: Iterable[Endpoint]
    ) -> list[str]:
        """Makes the host match; forgets endpoints whose device is gone and returns their ids.

        Endpoints come with their published ports, real host ports included.
        """
        async with self._lock:
            links = {link.name: link for link in await self._netlink.links()}
            self._networks = {network.id: network for network in networks}
            known = [endpoint for endpoint in endpoints if endpoint.network_id in self._networks]
            self._endpoints = {
                e.id: e for e in known if device_name(self.instance, e.kind, e.id) in links
            }
            lost = [endpoint.id for endpoint in known if endpoint.id not in self._endpoints]
            self._reclaim_ports()
            await self._remove_strangers(links)
            await self._apply()
            self._reconciled = True
            for network in self._networks.values():
                await self._raise_network(network)
            for endpoint in self._endpoints.values():
                await self._join(endpoint)
            return lost

    def _reclaim_ports(self) -> None:
        self._claims.close()
        for endpoint in self._endpoints.values():
            for port in endpoint.ports:
                try:
                    self._claims.claim([port])
                except HybridError as error:
                    # The rule still leads to the container, as it did while no daemon ran.
                    log.warning(
                        "port %s/%s stays published, but: %s", port.host_port, port.protocol, error
                    )

    async def _remove_strangers(self, links: Mapping[str, Link]) -> None:
        wanted = {self._bridge(network_id) for network_id in self._networks}
        for endpoint in self._endpoints.values():
            wanted.add(device_name(self.instance, endpoint.kind, endpoint.id))
            wanted.add(device_name(self.instance, "peer", endpoint.id))
        mine = device_alias(self.instance, "")
        for link in links.values():
            prefixed = link.name.startswith(device_prefix(self.instance))
            # A crash between making a device and marking it leaves one without an alias.
            if (
                prefixed
                and link.name not in wanted
                and (not link.alias or link.alias.startswith(mine))
            ):
                log.info("removing network device %s, which nobody knows", link.name)
                await self._netlink.delete(link.name)
        for network_id in self._names.known():
            if network_id not in self._networks:
                await self._names.stop(network_id)

    # --- inside the lock --------------------------------------------------------------------------

    def _need_reconciled(self) -> None:
        if not self._reconciled:
            raise Internal("networks are used before they were reconciled")

    def _network(self, network_id: str) -> NetworkConfig:
        self._need_reconciled()
        if network_id not in self._networks:
            raise NotFound(f"network {network_id[:12]} not found")
        return self._networks[network_id]

    def _endpoint(self, endpoint_id: str) -> Endpoint:
        self._need_reconciled()
        if endpoint_id not in self._endpoints:
            raise NotFound(f"endpoint {endpoint_id[:12]} not found")
        return self._endpoints[endpoint_id]

    def _bridge(self, network_id: str) -> str:
        return device_name(self.instance, "bridge", network_id)

    async def _apply(self) -> None:
        await firewall.apply(
            nft.render(self.instance, self._networks.values(), self._endpoints.values())
        )

    async def _grow(self, endpoint: Endpoint) -> None:
        """The rules with an endpoint more, or one with more ports: adding is done at once, while a
        replaced table waits for every processor to have left the old one."""
        try:
            await firewall.apply(nft.grown(self.instance, endpoint))
        except Internal:
            await self._apply()  # somebody has emptied the tables

    async def _check_free(self, network: NetworkConfig) -> None:
        own = [IPv4Network(other.subnet) for other in self._networks.values()]
        used = own + await self._netlink.used_subnets(ignore=[self._bridge(network.id)])
        taken = ipam.overlapping(IPv4Network(network.subnet), used)
        if taken is not None:
            raise Conflict(
                f"network {network.name}: {network.subnet} overlaps {taken}, in use on this host"
            )

    async def _raise_network(self, network: NetworkConfig) -> None:
        bridge = self._bridge(network.id)
        await self._netlink.ensure_bridge(
            bridge,
            ipam.mac_address(IPv4Address(network.gateway)),
            device_alias(self.instance, network.id),
            network.mtu,
            network.gateway,
            network.prefix_length,
        )
        sysctl.prepare_bridge(bridge)
        await self._netlink.raise_link(bridge)
        if not network.internal:
            sysctl.enable_forwarding()
        # The name server runs as another user, which must get through to its files.
        self._run.mkdir(parents=True, exist_ok=True)
        self._run.chmod(self._run.stat().st_mode | 0o011)
        await self._names.ensure(network)

    async def _drop_network(self, network_id: str) -> None:
        await self._names.stop(network_id)
        await self._netlink.delete(self._bridge(network_id))
        self._networks.pop(network_id, None)
        await self._apply()

    async def _attach(
        self, endpoint: Endpoint, mtu: int | None, owner: tuple[int, int] | None
    ) -> None:
        network = self._network(endpoint.network_id)
        if IPv4Address(endpoint.ip) not in IPv4Network(network.subnet):
            raise InvalidInput(
                f"address {endpoint.ip} is outside the subnet {network.subnet} of {network.name}"
            )
        known = self._endpoints.get(endpoint.id)
        if known is not None and replace(known, ports=()) != endpoint:
            raise Conflict(f"endpoint {endpoint.id[:12]} exists with other settings")
        self._endpoints[endpoint.id] = known or endpoint
        name = device_name(self.instance, endpoint.kind, endpoint.id)
        alias = device_alias(self.instance, endpoint.id)
        try:
            await self._grow(self._endpoints[endpoint.id])
            if endpoint.kind == "tap":
                tap.create(name, owner)
                await self._netlink.describe(name, alias, mtu or network.mtu)
            else:
                peer = device_name(self.instance, "peer", endpoint.id)
                await self._netlink.ensure_veth(name, peer, endpoint.mac, alias, mtu or network.mtu)
            sysctl.prepare_port(name)
            await self._join(endpoint)
        except HybridError:
            if known is None:
                await self._netlink.delete(name)
                await self._forget(endpoint)
            raise

    async def _join(self, endpoint: Endpoint) -> None:
        # A guest that uses its own published port: with br_netfilter the bridge itself sends that
        # frame back.
        await self._netlink.join_bridge(
            device_name(self.instance, endpoint.kind, endpoint.id),
            self._bridge(endpoint.network_id),
            hairpin=sysctl.bridge_is_filtered(),
        )

    async def _forget(self, endpoint: Endpoint) -> None:
        """Drops it from the model and the rules, and cuts its connections.

        Its address may get another owner.
        """
        gone = self._endpoints.pop(endpoint.id, endpoint)
        rules = self._apply()
        if gone.ports:  # while they are published, connections would be tracked again
            await rules
            self._claims.release(gone.ports)
            await self._netlink.forget_connections(gone.ip)
        else:
            await asyncio.gather(rules, self._netlink.forget_connections(gone.ip))
