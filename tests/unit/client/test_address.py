from __future__ import annotations

from pathlib import Path

import pytest

from hybrid.client.address import TcpAddress, UnixAddress, parse, resolve
from hybrid.errors import InvalidInput
from hybrid.paths import Paths


def test_default_is_the_socket_of_the_default_root() -> None:
    assert resolve(None, None, {}) == UnixAddress("/run/hybrid/hybrid.sock", "/var/lib/hybrid")


def test_root_means_the_socket_of_that_root(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path)
    address = UnixAddress(str(paths.socket), str(paths.root))
    assert resolve(None, tmp_path, {}) == address
    assert resolve(None, None, {"HYBRID_ROOT": str(tmp_path)}) == address


def test_options_win_over_environment_and_ours_over_dockers() -> None:
    environment = {"HYBRID_HOST": "unix:///h", "DOCKER_HOST": "unix:///d"}
    assert resolve("unix:///o", None, environment) == UnixAddress("/o")
    assert resolve(None, None, environment) == UnixAddress("/h")
    assert resolve(None, None, {"DOCKER_HOST": "unix:///d"}) == UnixAddress("/d")


def test_a_daemon_is_only_ours_to_start_where_no_host_was_named() -> None:
    found = resolve("unix:///run/hybrid/hybrid.sock", None, {})
    assert isinstance(found, UnixAddress)
    assert found.root is None


def test_tcp() -> None:
    assert parse("tcp://h:1", {}) == TcpAddress("h", 1)
    assert parse("tcp://[::1]", {}) == TcpAddress("::1", 2376)
    assert parse("tcp://h", {"DOCKER_CERT_PATH": "/c"}) == TcpAddress("h", 2376, "/c")


@pytest.mark.parametrize("text", ["ftp://x", "unix://", "unix://host/x", "tcp://", "tcp://h:x", ""])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="invalid host"):
        parse(text, {})
