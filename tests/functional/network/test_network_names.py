"""Names, asked for by the C library's resolver and by busybox's."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.errors import InvalidInput

pytestmark = pytest.mark.root

FRONT_NAMES = {"10.9.1.2": ["web", "one"], "10.9.1.3": ["app", "svc.internal"]}


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Path]:
    """The host's resolver: knows names.example, and logs what it is asked."""
    log = tmp_path / "queries"
    process = subprocess.Popen(
        [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            "--bind-interfaces", "--listen-address=127.0.0.53", "--user=root", "--pid-file=",
            "--address=/names.example/192.0.2.80", "--log-queries", f"--log-facility={log}",
        ]
    )  # fmt: skip
    yield log
    process.kill()
    process.wait()


def resolve(box, name: str) -> str:
    return box.run("getent", "ahostsv4", name, check=False).split(" ")[0]


async def test_the_networks_own_names(lab) -> None:
    box = await lab.attach(lab.front, 2)
    await lab.networks.set_names(lab.front.id, FRONT_NAMES)
    box.name_servers(lab.front.gateway)
    await settled(lambda: resolve(box, "app") == "10.9.1.3")
    assert resolve(box, "web") == "10.9.1.2"
    assert resolve(box, "APP") == "10.9.1.3"
    assert resolve(box, "svc.internal") == "10.9.1.3"
    assert resolve(box, "nobody") == ""
    assert box.run("getent", "hosts", "10.9.1.3").split()[1] == "app"
    # Both families are asked for at once; that there is no IPv6 address must not hide the other.
    assert "10.9.1.3" in box.run("getent", "ahosts", "app")


async def test_busybox_resolves_them_too(lab) -> None:
    if not shutil.which("busybox"):
        pytest.skip("no busybox")
    box = await lab.attach(lab.front, 2)
    await lab.attach(lab.front, 3)
    await lab.networks.set_names(lab.front.id, FRONT_NAMES)
    box.name_servers(lab.front.gateway)
    await settled(lambda: resolve(box, "app") == "10.9.1.3")
    assert "10.9.1.3" in box.run("busybox", "nslookup", "app")
    assert "1 packets received" in box.run("busybox", "ping", "-c", "1", "-W", "2", "app")


async def test_changed_names_take_effect_without_a_restart(lab) -> None:
    box = await lab.attach(lab.front, 2)
    box.name_servers(lab.front.gateway)
    await lab.networks.set_names(lab.front.id, {"10.9.1.3": ["app"]})
    await settled(lambda: resolve(box, "app") == "10.9.1.3")
    pid = name_server(lab)
    await lab.networks.set_names(lab.front.id, {"10.9.1.4": ["app"]})
    await settled(lambda: resolve(box, "app") == "10.9.1.4")
    await lab.networks.set_names(lab.front.id, {})
    await settled(lambda: resolve(box, "app") == "")
    assert name_server(lab) == pid


@pytest.mark.parametrize("order", [("front", "back"), ("back", "front"), ("closed", "front")])
async def test_a_container_on_two_networks_resolves_the_names_of_both(lab, order) -> None:
    first, second = (getattr(lab, name) for name in order)
    box = await lab.attach(first, 2)
    await lab.attach(second, 2, box, "eth1")
    box.name_servers(first.gateway, second.gateway)
    await lab.networks.set_names(first.id, {first.gateway: ["here"]})
    await lab.networks.set_names(second.id, {second.gateway: ["there"]})
    await settled(lambda: resolve(box, "here") == first.gateway)
    assert resolve(box, "there") == second.gateway
    assert "1 packets received" in box.run("busybox", "ping", "-c", "1", "-W", "2", "there")


async def test_odd_names_do_no_harm(lab) -> None:
    box = await lab.attach(lab.front, 2)
    box.name_servers(lab.front.gateway)
    odd = ["a..b", "c.", "d-", "x" * 64, "y" * 63, "e_f", "0", "1.2.3.4", "G-H.i"]
    await lab.networks.set_names(lab.front.id, {"10.9.1.3": odd})
    await lab.networks._names.stop(lab.front.id, keep_files=True)
    await lab.networks.set_names(lab.front.id, {"10.9.1.3": [*odd, "app"]})
    await settled(lambda: resolve(box, "app") == "10.9.1.3")
    for name in ("c", "d-", "e_f", "y" * 63, "g-h.i"):
        assert resolve(box, name) == "10.9.1.3"


async def test_a_plain_name_that_nobody_has(lab, upstream: Path) -> None:
    box = await lab.attach(lab.front, 2)
    box.name_servers(lab.front.gateway)
    for others, answer in ((True, "REFUSED"), (False, "NXDOMAIN")):
        await lab.networks.set_names(lab.front.id, FRONT_NAMES, others=others)
        await settled(
            lambda answer=answer: answer in box.run("busybox", "nslookup", "nobody", check=False)
        )
    assert resolve(box, "app") == "10.9.1.3"
    assert "nobody" not in upstream.read_text()


async def test_a_name_server_that_died_is_back_with_the_next_change(lab) -> None:
    box = await lab.attach(lab.front, 2)
    box.name_servers(lab.front.gateway)
    pid = name_server(lab)
    os.kill(pid, 9)
    await settled(lambda: not command_line(pid))
    await lab.networks.set_names(lab.front.id, FRONT_NAMES)
    await settled(lambda: resolve(box, "app") == "10.9.1.3")


async def test_other_names_are_forwarded_but_plain_ones_never_leave(lab, upstream: Path) -> None:
    box = await lab.attach(lab.front, 2)
    await lab.networks.set_names(lab.front.id, FRONT_NAMES)
    box.name_servers(lab.front.gateway)
    await settled(lambda: resolve(box, "names.example") == "192.0.2.80")
    for name in ("app", "nobody", "svc.internal"):
        resolve(box, name)
    box.run("getent", "hosts", "10.9.1.77", check=False)
    asked = upstream.read_text()
    assert "names.example" in asked
    for name in ("app", "nobody", "internal", "10.9.1"):
        assert name not in asked


async def test_an_internal_network_forwards_nothing(lab, upstream: Path) -> None:
    box = await lab.attach(lab.closed, 2)
    await lab.networks.set_names(lab.closed.id, {"10.9.3.9": ["app"]})
    box.name_servers(lab.closed.gateway)
    await settled(lambda: resolve(box, "app") == "10.9.3.9")
    assert resolve(box, "names.example") == ""
    assert "names.example" not in upstream.read_text()


async def test_the_name_server_has_next_to_no_rights(lab) -> None:
    await lab.networks.ensure_network(lab.front)
    status = Path(f"/proc/{name_server(lab)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split()[0] != "0"
    assert fields["CapEff"] == fields["CapBnd"] == "0000000000000400", "CAP_NET_BIND_SERVICE"
    assert fields["NoNewPrivs"] == "1"


async def test_a_removed_network_has_no_name_server(lab) -> None:
    await lab.networks.ensure_network(lab.front)
    pid = name_server(lab)
    await lab.networks.remove_network(lab.front.id)
    assert (
        not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    assert not list(lab.paths.network_run.iterdir())


@pytest.mark.parametrize("name", ["a b", "a\nb", "", "-a", "a/b", "x" * 300, "é"])
async def test_what_is_no_name_is_refused(lab, name: str) -> None:
    await lab.networks.ensure_network(lab.front)
    with pytest.raises(InvalidInput):
        await lab.networks.set_names(lab.front.id, {"10.9.1.2": [name]})


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def name_server(lab) -> int:
    pid = int((lab.paths.network_run / lab.front.id / "run" / "pid").read_text())
    os.kill(pid, 0)
    return pid


async def settled(condition) -> None:
    """dnsmasq reads its files some moments after the signal."""
    for _ in range(50):
        if condition():
            return
        await asyncio.sleep(0.05)
    assert condition()
