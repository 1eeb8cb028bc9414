"""rtnetlink in a few lines: links, addresses and routes of the network namespace the socket was made in.

Synchronous: each request is one datagram to the kernel, which answers at once. Constants are from
include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from hybrid.errors import Internal

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_GETLINK, _SETLINK = 18, 19
_NEWADDR, _NEWROUTE = 20, 24
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 18, 28
_IFLA_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02
_RTA_OIF, _RTA_GATEWAY = 4, 5
_IFF_UP = 1
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 4, 0, 1
_HEADER = struct.Struct("=IHHII")


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    mac: str
    kind: str = ""  # of a virtual link: veth, bridge, …


def _attribute(kind: int, data: bytes) -> bytes:
    padding = -len(data) % 4
    return struct.pack("=HH", len(data) + 4, kind) + data + b"\0" * padding


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, position)
        if length < 4:
            return
        yield kind & 0x3FFF, data[position + 4 : position + length]
        position += (length + 3) & ~3


def _packed(address: str) -> tuple[int, bytes]:
    """Its family and its bytes. (``ipaddress`` takes as long to load as setting up an interface takes.)"""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


class Netlink:
    """A socket to the kernel's routing side; use it as a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.settimeout(10)
        self._socket.bind((0, 0))
        self._sequence = itertools.count(1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def links(self) -> list[Link]:
        """All links of the namespace."""
        answers = self._ask(_GETLINK, _DUMP, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0))
        found = []
        for body in answers:
            index = struct.unpack_from("=BBHiII", body)[3]
            fields = dict(_attributes(body[16:]))
            name = fields.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("ascii", "replace")
            kind = dict(_attributes(fields.get(_IFLA_LINKINFO, b""))).get(_IFLA_INFO_KIND, b"")
            mac = fields.get(_IFLA_ADDRESS, b"").hex(":")
            found.append(Link(index, name, mac, kind.rstrip(b"\0").decode("ascii", "replace")))
        return found

    def change(
        self,
        index: int,
        *,
        up: bool | None = None,
        name: str = "",
        mac: str = "",
        mtu: int = 0,
        namespace: int | None = None,
    ) -> None:
        """Changes what is given; ``namespace`` is the descriptor of the one to move the link to."""
        flags = _IFF_UP if up else 0
        body = struct.pack("=BBHiII", 0, 0, 0, index, flags, 0 if up is None else _IFF_UP)
        if name:
            body += _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        if mac:
            body += _attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
        if mtu:
            body += _attribute(_IFLA_MTU, struct.pack("=I", mtu))
        if namespace is not None:
            body += _attribute(_IFLA_NET_NS_FD, struct.pack("=i", namespace))
        self._ask(_SETLINK, _ACK, body)

    def add_address(self, index: int, address: str) -> None:
        """Adds ``address`` (with prefix length)."""
        text, _, length = address.partition("/")
        family, packed = _packed(text)
        # a v6 address that the host assigned is unique; duplicate detection would only delay its use
        flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
        body = struct.pack("=BBBBI", family, int(length), 0, 0, index)
        body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
        body += _attribute(_IFA_FLAGS, struct.pack("=I", flags))
        self._ask(_NEWADDR, _ACK | _CREATE | _EXCL, body)

    def add_default_route(self, index: int, gateway: str) -> None:
        """Everything else goes to ``gateway`` through this link."""
        family, packed = _packed(gateway)
        body = struct.pack(
            "=BBBBBBBBI",
            family,
            0,
            0,
            0,
            _RT_TABLE_MAIN,
            _RTPROT_STATIC,
            _RT_SCOPE_UNIVERSE,
            _RTN_UNICAST,
            0,
        )
        body += _attribute(_RTA_GATEWAY, packed) + _attribute(_RTA_OIF, struct.pack("=I", index))
        self._ask(_NEWROUTE, _ACK | _CREATE | _EXCL, body)

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        sequence = next(self._sequence)
        self._socket.send(
            _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, sequence, 0) + body
        )
        answers: list[bytes] = []
        while True:
            datagram = self._socket.recv(1 << 18)
            position = 0
            while position + _HEADER.size <= len(datagram):
                length, answer, _, number, _ = _HEADER.unpack_from(datagram, position)
                if length < _HEADER.size:
                    raise Internal("netlink: the kernel's answer makes no sense")
                payload = datagram[position + _HEADER.size : position + length]
                position += (length + 3) & ~3
                if number != sequence:
                    continue
                if answer == _NLMSG_DONE:
                    return answers
                if answer == _NLMSG_ERROR:
                    error = -struct.unpack_from("=i", payload)[0]
                    if error:
                        raise OSError(error, os.strerror(error))
                    return answers
                answers.append(payload)
