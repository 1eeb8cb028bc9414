"""Devices, addresses and routes of this host: the only user of pyroute2.

pyroute2's sockets belong to the thread that made them, so one thread of its own does all the work,
one call after the other. Everything is idempotent: what is there already is taken as it is.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, TypeVar

from pyroute2 import IPRoute, NetlinkError, NFCTSocket
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

from hybrid.errors import Forbidden, HybridError, Internal

T = TypeVar("T")
_AF_INET = 2


@dataclass(frozen=True)
class Link:
    """One network device, as the kernel tells it."""

    index: int
    name: str
    alias: str
    master: int  # index of the bridge that it is a port of; 0: none
    kind: str
    mac: str


class Netlink:
    """The kernel's network configuration, one call at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "netlink")
        self._route: Any = None

    async def close(self) -> None:
        """Ends the thread and its socket."""
        if self._route is not None:
            await self._call("closing netlink", lambda route: route.close())
            self._route = None
        self._thread.shutdown(wait=False)

    async def _call(self, what: str, action: Callable[[Any], T]) -> T:
        def run() -> T:
            if self._route is None:
                self._route = IPRoute()
            return action(self._route)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except NetlinkError as error:
            raise _translated(what, error.code, str(error)) from error
        except OSError as error:
            raise _translated(what, error.errno or 0, str(error)) from error

    async def links(self) -> list[Link]:
        """All devices of this network namespace."""
        return await self._call(
            "listing network devices", lambda route: [_link(m) for m in route.get_links()]
        )

    async def ensure_bridge(
        self, name: str, mac: str, alias: str, mtu: int, address: str, prefix: int
    ) -> None:
        """A bridge with that address; its MAC is fixed, whatever ports come and go."""

        def action(route: Any) -> None:
            index = _index(route, name)
            if index is None:
                route.link(
                    "add", ifname=name, kind="bridge", address=mac, mtu=mtu, br_mcast_snooping=0
                )
                index = _index(route, name)
            route.link("set", index=index, ifalias=alias)
            present = [
                m.get_attr("IFA_ADDRESS") for m in route.get_addr(index=index, family=_AF_INET)
            ]
            if address not in present:
                route.addr("add", index=index, address=address, prefixlen=prefix)

        await self._call(f"making bridge {name}", action)

    async def raise_link(self, name: str) -> None:
        """Sets the device up."""
        await self._call(
            f"raising {name}",
            lambda route: route.link("set", index=_index(route, name), state="up"),
        )

    async def ensure_veth(self, name: str, peer: str, mac: str, alias: str, mtu: int) -> None:
        """A veth pair; the peer gets ``mac``. Left as it is when ``name`` exists."""

        def action(route: Any) -> None:
            if _index(route, name) is None:
                route.link(
                    "add",
                    ifname=name,
                    kind="veth",
                    mtu=mtu,
                    peer={"ifname": peer, "address": mac, "mtu": mtu},
                )
                route.link("set", index=_index(route, peer), ifalias=alias)
            route.link("set", index=_index(route, name), ifalias=alias)

        await self._call(f"making veth {name}", action)

    async def describe(self, name: str, alias: str, mtu: int) -> None:
        """Marks the device with its owner and sets its MTU."""
        await self._call(
            f"configuring {name}",
            lambda route: route.link("set", index=_index(route, name), ifalias=alias, mtu=mtu),
        )

    async def join_bridge(self, name: str, bridge: str, *, hairpin: bool) -> None:
        """Makes the device an up port of the bridge; ``hairpin``.

        Frames may leave where they came.
        """

        def action(route: Any) -> None:
            index, master = _index(route, name), _index(route, bridge)
            if index is None or master is None:
                raise Internal(f"network device {bridge if master is None else name} is gone")
            route.link("set", index=index, master=master)
            route.brport("set", index=index, mode=int(hairpin))
            route.link("set", index=index, state="up")

        await self._call(f"joining {name} to {bridge}", action)

    async def delete(self, name: str) -> None:
        """Removes the device, if it is there."""

        def action(route: Any) -> None:
            index = _index(route, name)
            if index is None:
                return
            try:
                route.link("del", index=index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise

        await self._call(f"removing {name}", action)

    async def used_subnets(self, ignore: Iterable[str] = ()) -> list[IPv4Network]:
        """What the host's routes cover, but for the default route and devices in ``ignore``."""
        skipped = set(ignore)

        def action(route: Any) -> list[IPv4Network]:
            names = {m["index"]: m.get_attr("IFLA_IFNAME") for m in route.get_links()}
            found = set()
            for message in route.get_routes(family=_AF_INET):
                destination, length = message.get_attr("RTA_DST"), message["dst_len"]
                if destination and length and names.get(message.get_attr("RTA_OIF")) not in skipped:
                    found.add(IPv4Network((destination, length), strict=False))
            return sorted(found)

        return await self._call("reading the host's routes", action)

    async def forget_connections(self, address: str) -> None:
        """Drops the tracked connections of an address that changes hands or lost a port."""

        # The kernel finds them: a busy host has more entries than one wants to read here.
        wanted = (
            {"tuple_orig": NFCTAttrTuple(saddr=address)},
            {"tuple_orig": NFCTAttrTuple(daddr=address)},
            {"tuple_reply": NFCTAttrTuple(saddr=address)},
        )

        def action(_route: Any) -> None:
            with NFCTSocket() as conntrack:
                for selection in wanted:
                    for message in list(conntrack.dump(**selection)):
                        if address in _addresses(message):
                            _delete_entry(conntrack, message)

        await self._call(f"forgetting connections of {address}", action)


def _translated(what: str, code: int, text: str) -> HybridError:
    if code in (errno.EPERM, errno.EACCES):
        return Forbidden(f"{what}: not permitted; hybrid's networks need root (CAP_NET_ADMIN)")
    return Internal(f"{what}: {text}")


def _link(message: Any) -> Link:
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        master=message.get_attr("IFLA_MASTER") or 0,
        kind=message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
    )


def _index(route: Any, name: str) -> int | None:
    found = route.link_lookup(ifname=name)
    return int(found[0]) if found else None


def _addresses(message: Any) -> set[str]:
    found = set()
    for side in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY"):
        for end in ("CTA_IP_V4_SRC", "CTA_IP_V4_DST"):
            value = message.get_nested(side, "CTA_TUPLE_IP", end)
            if value:
                found.add(value)
    return found


def _delete_entry(conntrack: Any, message: Any) -> None:
    original = NFCTAttrTuple.from_netlink(_AF_INET, message.get_attr("CTA_TUPLE_ORIG"))
    try:
        conntrack.entry("del", tuple_orig=original)
    except NetlinkError as error:
        if error.code != errno.ENOENT:  # ended meanwhile
            raise
