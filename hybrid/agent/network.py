"""Moves a container's interfaces into its network namespace and back."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hybrid.agent import syscalls
from hybrid.agent.netlink import Link, Netlink
from hybrid.errors import Internal, Unavailable
from hybrid.wire.messages import Interface

_WAIT = 30.0
Moved = set[int]  # the indices that they have in the container's namespace
_passing = itertools.count(1)


@contextmanager
def inside(namespace: int) -> Iterator[Netlink]:
    """Netlink in another network namespace. Only the socket is made there; it stays there by itself."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWNET)
        try:
            netlink = Netlink()
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWNET)
    finally:
        os.close(own)
    with netlink:
        yield netlink


async def attach(namespace: int, interfaces: Sequence[Interface], moved: Moved) -> None:
    """Moves the interfaces into ``namespace`` and configures them there; waits for those just being plugged in.

    What is there so far is in ``moved``, also when this fails.
    """
    for interface in interfaces:
        link = await _appeared(interface)
        try:
            with Netlink() as here, inside(namespace) as there:
                # a passing name, unique here and there, so that neither an eth0 of the machine nor one that was
                # moved before is in the way
                name = _passing_name()
                here.change(link.index, up=False, name=name)
                here.change(link.index, namespace=namespace)
                arrived = _find(there.links(), "", name)
                if arrived is None:
                    raise Internal(f"interface {interface.name} did not arrive in the container")
                moved.add(arrived.index)
                _configure(there, arrived, interface)
        except OSError as error:
            raise Internal(
                f"cannot set up interface {interface.name} ({interface.mac}): {error.strerror}"
            ) from error


def _configure(netlink: Netlink, link: Link, interface: Interface) -> None:
    mac = interface.mac if link.mac != interface.mac.lower() else ""
    netlink.change(link.index, name=interface.name, mac=mac, mtu=interface.mtu)
    for address in interface.addresses:
        netlink.add_address(link.index, address)
    netlink.change(link.index, up=True)
    if interface.gateway:
        netlink.add_default_route(link.index, interface.gateway)


def detach(namespace: int, moved: Moved) -> None:
    """Moves the interfaces back to the machine, down and without their names, before their namespace goes.

    Only what is no virtual link: those go with their namespace, and a container that may administer its network can
    make one that looks like another's in name, address and even index.
    """
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(namespace) as there:
            for link in there.links():
                if link.index in moved and not link.kind:
                    there.change(link.index, up=False, name=_passing_name())
                    there.change(link.index, namespace=own)
    except OSError as error:
        raise Internal(f"cannot take the interfaces back: {error.strerror}") from error
    finally:
        os.close(own)


async def _appeared(interface: Interface) -> Link:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WAIT
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as events:
        events.setblocking(False)
        events.bind((0, 1))  # RTMGRP_LINK
        while True:
            with Netlink() as netlink:
                link = _find(netlink.links(), interface.mac, interface.device)
            if link is not None:
                return link
            try:
                async with asyncio.timeout_at(deadline):
                    await loop.sock_recv(events, 65536)
            except TimeoutError:
                what = interface.device or interface.mac
                raise Unavailable(
                    f"no network interface {what} appeared in {_WAIT:.0f} s"
                ) from None
            except OSError:  # ENOBUFS: events were lost, so look again
                continue


def _find(links: Sequence[Link], mac: str, device: str) -> Link | None:
    if device:
        return next((link for link in links if link.name == device), None)
    return next((link for link in links if link.mac == mac.lower()), None)


def _passing_name() -> str:
    return f"hybrid{os.getpid() % 46656:x}{next(_passing) % 4096:x}"[:15]
