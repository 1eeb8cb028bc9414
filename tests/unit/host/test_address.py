from __future__ import annotations

from pathlib import Path

import pytest

from hybrid.errors import InvalidInput, Unsupported
from hybrid.host.address import Address, Target, parse, resolve

HOME = Path("/home/ann")


def target(address: Address, **settings: str | list[str]) -> Target:
    return resolve(address, settings, local_user="ann", home=HOME)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://box", Address("box")),
        ("ssh://root@box.example:2222", Address("box.example", "root", 2222)),
        ("ssh://root@[2001:db8::1]:22/", Address("2001:db8::1", "root", 22)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "box",
        "http://box",
        "ssh://",
        "ssh://box/path",
        "ssh://box:0",
        "ssh://box:99999",
        "ssh://box:x",
        "ssh://user:secret@box",
        "ssh://-oProxyCommand=x",
        "ssh://a b@box",
        "ssh://-u@box",
        "ssh://box?x=1",
        "ssh://[::1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert "secret" not in caught.value.message


def test_defaults() -> None:
    found = target(Address("box"))
    assert (found.host, found.port, found.user) == ("box", 22, "ann")
    assert found.known_hosts == (HOME / ".ssh/known_hosts", Path("/etc/ssh/ssh_known_hosts"))
    assert found.key_name == "box"


def test_configuration_fills_in_what_the_address_leaves_open() -> None:
    settings = {"hostname": "10.0.0.9", "port": "2200", "user": "root", "identitiesonly": "yes"}
    found = resolve(
        Address("box"),
        {**settings, "identityfile": ["~/.ssh/box", "/keys/other"]},
        local_user="ann",
        home=HOME,
    )
    assert (found.host, found.port, found.user) == ("10.0.0.9", 2200, "root")
    assert found.identities == (HOME / ".ssh/box", Path("/keys/other"))
    assert found.only_identities
    assert found.key_name == "[10.0.0.9]:2200"


def test_the_address_wins_over_the_configuration() -> None:
    found = target(Address("box", "bob", 22), port="2200", user="root")
    assert (found.port, found.user) == (22, "bob")


@pytest.mark.parametrize("name", ["proxycommand", "proxyjump"])
def test_a_proxy_is_refused_and_none_is_none(name: str) -> None:
    with pytest.raises(Unsupported, match=name):
        target(Address("box"), **{name: "ssh -W %h:%p hop"})
    assert target(Address("box"), **{name: "none"}).host == "box"
