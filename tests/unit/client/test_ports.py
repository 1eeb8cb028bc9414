from __future__ import annotations

import pytest

from hybrid.client.ports import Published, bindings, parse
from hybrid.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [Published(80, "tcp")]),
        ("53/udp", [Published(53, "udp")]),
        ("8080:80", [Published(80, "tcp", "", "8080")]),
        ("127.0.0.1:8080:80/tcp", [Published(80, "tcp", "127.0.0.1", "8080")]),
        ("127.0.0.1::80", [Published(80, "tcp", "127.0.0.1", "")]),
        ("[::1]:1:2/UDP", [Published(2, "udp", "::1", "1")]),
        ("8000-8001:80-81", [Published(80, "tcp", "", "8000"), Published(81, "tcp", "", "8001")]),
        ("8000-8009:80", [Published(80, "tcp", "", "8000-8009")]),
        ("80-81", [Published(80, "tcp"), Published(81, "tcp")]),
    ],
)
def test_forms(text: str, expected: list[Published]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "x", "0", "65536", "80:70000", "1-2:1-3", "5-1", "a:b:c", "h:1:2", "1:2:3:4", "80/icmp"],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="invalid port"):
        parse(text)


def test_bindings_gather_per_container_port() -> None:
    published = [*parse("127.0.0.1:1:80"), *parse("2:80"), *parse("53/udp")]
    assert bindings(published) == {
        "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}, {"HostIp": "", "HostPort": "2"}],
        "53/udp": [{"HostIp": "", "HostPort": ""}],
    }
