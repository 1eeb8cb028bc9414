from __future__ import annotations

import socket

import pytest

from hybrid.errors import Conflict, InvalidInput
from hybrid.network.model import PortMapping
from hybrid.network.ports import PortClaims


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_claim_excludes_others_until_it_is_released(protocol: str) -> None:
    claims, others = PortClaims(), PortClaims()
    (real,) = claims.claim([PortMapping("127.0.0.1", 0, "", 80, protocol)])
    with pytest.raises(Conflict, match=rf"Bind for 127\.0\.0\.1:{real.host_port} failed: port is"):
        others.claim([real])
    with pytest.raises(Conflict):
        others.claim([PortMapping("", real.host_port, "", 80, protocol)])
    claims.release([real])
    assert others.claim([real]) == [real]
    others.close()
    claims.close()


def test_who_comes_before_the_rules_is_turned_away_and_the_port_stays_taken() -> None:
    claims = PortClaims()
    (real,) = claims.claim([PortMapping("127.0.0.1", 0, "", 80)])
    early = [socket.create_connection(("127.0.0.1", real.host_port), 5) for _ in range(3)]
    claims.turn_away([real])
    for one in early:
        with one, pytest.raises(ConnectionResetError):
            one.recv(1)
    with pytest.raises(Conflict):
        PortClaims().claim([real])
    claims.close()


def test_all_or_none() -> None:
    claims = PortClaims()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = PortMapping("127.0.0.1", listener.getsockname()[1], "", 80)
        with pytest.raises(Conflict):
            claims.claim([PortMapping("127.0.0.1", 0, "", 81), taken])
    assert repr(claims) == "<PortClaims []>"


def test_an_address_that_this_host_has_not() -> None:
    with pytest.raises(InvalidInput, match="no such address"):
        PortClaims().claim([PortMapping("192.0.2.99", 0, "", 80)])


def test_a_port_that_another_instances_rules_hold_without_a_socket() -> None:
    wanted = PortMapping("127.0.0.1", 8080, "", 80)
    with pytest.raises(Conflict, match=r"already allocated by the rules of .* hybrid_0123"):
        PortClaims().claim([wanted], {("tcp", "0.0.0.0", 8080): "hybrid_0123"})
