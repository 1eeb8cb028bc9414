"""The daemon's configuration and listeners."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hybrid.daemon import config, listeners
from hybrid.daemon.main import search_path
from hybrid.errors import Conflict, InvalidInput, Unsupported


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    assert config.load(tmp_path / "daemon.yaml") == config.Config()


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "daemon.yaml").write_text(
        "writable_size: 1g\naccelerator: tcg\npool_size: 0\npool_memory: 100m\n"
    )
    loaded = config.load(tmp_path / "daemon.yaml")
    assert (loaded.writable_size, loaded.accelerator) == (1 << 30, "tcg")
    assert (loaded.pool_size, loaded.pool_memory) == (0, 100 << 20)


@pytest.mark.parametrize("text", ["nope: 1", "accelerator: fast", "writable_size: 1", "[", "- a"])
def test_a_bad_file_names_the_field(tmp_path: Path, text: str) -> None:
    (tmp_path / "daemon.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=r"daemon\.yaml"):
        config.load(tmp_path / "daemon.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope: 1", "unknown key 'nope'; there are: accelerator, "),
        ("writable_size: 3x", "writable_size: invalid size: '3x'"),
        ("pool_size: -1", "pool_size: input should be greater than or equal to 0"),
        ("pool_memory: much", "pool_memory: invalid size: 'much'"),
        ("policy: [", "line 2: not YAML: "),
        ("- a", "not a mapping"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "daemon.yaml").write_text(text + "\n")
    with pytest.raises(InvalidInput) as caught:
        config.load(tmp_path / "daemon.yaml")
    assert f"daemon.yaml: {said}" in caught.value.message and "\n" not in caught.value.message


def test_hosts() -> None:
    assert listeners.parse("unix:///run/x.sock") == Path("/run/x.sock")
    with pytest.raises(Unsupported, match="TLS"):
        listeners.parse("tcp://0.0.0.0:2375")
    for bad in ("", "/run/x", "unix://x", "http://x", "unix:///" + "x" * 200):
        with pytest.raises(InvalidInput):
            listeners.parse(bad)


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = await listeners.listen(path, Hangup)
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(Conflict, match="listens there already"):
        await listeners.listen(path, Hangup)
    server.close()
    again = await listeners.listen(path, Hangup)
    again.close()
    await asyncio.sleep(0.01)


class Hangup(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def test_each_instance_has_ids_of_its_own_on_this_kernel() -> None:
    instances = ["00000000", "0000002a", "ffffffff", "89abcdef"]
    ranges = [config.Config().host_ids(instance) for instance in instances]
    assert len({ids.start for ids in ranges}) == len(instances)
    for ids in ranges:
        assert ids.step == 65536 and len(ids) >= 256
        assert ids.start >= 1_970_000_000 + 2**20 and ids[-1] + 65536 <= 2**31 - 1


def test_the_configured_ids_win_and_end_before_the_last_id_of_all() -> None:
    ids = config.Config(host_first_id=4_000_000_000).host_ids("00000000")
    assert ids[0] == 4_000_000_000 and ids[-1] + 65536 <= 2**32 - 1


def test_sbin_is_searched_once_and_last() -> None:
    assert search_path("/usr/bin:/bin") == "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
    assert search_path("/usr/sbin:/bin:") == "/usr/sbin:/bin:/usr/local/sbin:/sbin"
    assert search_path("").startswith("/usr/local/bin:")
