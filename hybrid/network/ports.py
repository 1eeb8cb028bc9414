"""Host ports held for published container ports.

A claim is a socket bound to the published address: it finds out that somebody else listens there,
and keeps others from doing so later. No connection reaches it once the ruleset translates the
destination; who came before that is turned away. The sockets end with the daemon while the rules
live on; a new daemon claims the same ports again.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from hybrid.errors import Conflict, Forbidden, HybridError, Internal, InvalidInput
from hybrid.network.model import PortMapping

# protocol, address, number
Port = tuple[str, str, int]
_ANY = "0.0.0.0"
_EARLY = 128  # connections that may wait for the rules
_RESET = struct.pack("ii", 1, 0)  # struct linger: closing resets at once
_TAKEN = "port is already allocated"
_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class PortClaims:
    """All ports that this daemon holds, by protocol, address and number."""

    def __init__(self) -> None:
        self._held: dict[Port, socket.socket] = {}

    def __repr__(self) -> str:
        return f"<PortClaims {sorted(self._held)}>"

    def claim(
        self, wanted: Iterable[PortMapping], foreign: Mapping[Port, str] = MappingProxyType({})
    ) -> list[PortMapping]:
        """All of them with their real ports, or none: Conflict when one is taken.

        ``foreign`` are ports whose rules live although no socket may hold them (a daemon of another
        instance is away), and the nftables table of these rules.
        """
        done: list[PortMapping] = []
        try:
            for mapping in wanted:
                done.append(self._claim(mapping, foreign))
        except HybridError:
            self.release(done)
            raise
        return done

    def turn_away(self, mappings: Iterable[PortMapping]) -> None:
        """Ends the connections of those who came before the rules did: nobody would ever answer them."""
        for mapping in mappings:
            holder = self._held[_key(mapping)]
            if mapping.protocol == "tcp":
                with contextlib.suppress(
                    OSError
                ):  # nobody is left, or accept(2) tells of one's end
                    while True:
                        early, _ = holder.accept()
                        early.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        early.close()

    def release(self, mappings: Iterable[PortMapping]) -> None:
        """Lets others listen there; unknown ones are passed over."""
        for mapping in mappings:
            holder = self._held.pop(_key(mapping), None)
            if holder is not None:
                holder.close()

    def close(self) -> None:
        """Lets all go."""
        for holder in self._held.values():
            holder.close()
        self._held.clear()

    def _claim(self, mapping: PortMapping, foreign: Mapping[Port, str]) -> PortMapping:
        address = mapping.host_ip or _ANY
        for other, table in foreign.items():
            if _overlap((mapping.protocol, address, mapping.host_port), other):
                raise Conflict(
                    f"Bind for {address}:{mapping.host_port} failed: {_TAKEN} by the rules of another"
                    f" hybrid on this host ('nft list table inet {table}')"
                )
        holder = socket.socket(socket.AF_INET, _TYPES[mapping.protocol])
        try:
            if mapping.protocol == "tcp":
                # As any server does, or the last owner's connections in TIME_WAIT would keep the
                # port for a minute.
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((address, mapping.host_port))
            if mapping.protocol == "tcp":
                holder.listen(_EARLY)
                holder.setblocking(False)
        except OSError as error:
            holder.close()
            raise _translated(error, f"Bind for {address}:{mapping.host_port} failed") from error
        claimed = replace(mapping, host_ip=address, host_port=holder.getsockname()[1])
        self._held[_key(claimed)] = holder
        return claimed


def _key(mapping: PortMapping) -> Port:
    return mapping.protocol, mapping.host_ip or _ANY, mapping.host_port


def _overlap(one: Port, other: Port) -> bool:
    same_address = one[1] == other[1] or _ANY in (one[1], other[1])
    return same_address and one[0] == other[0] and one[2] == other[2]


def _translated(error: OSError, what: str) -> HybridError:
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"{what}: {_TAKEN}")
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidInput(f"{what}: this host has no such address")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Forbidden(f"{what}: not permitted")
    return Internal(f"{what}: {error.strerror}")
