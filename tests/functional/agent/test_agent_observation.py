"""Network, statistics, processes, evidence and probes."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.errors import Conflict, Unsupported
from hybrid.wire.messages import Delete, Evidence, Interface, StartExec, Stats, Top
from tests.agentdriver import CAPABILITIES, GROUP, Driver

_numbers = itertools.count()


@pytest.fixture
def veth() -> Iterator[tuple[str, str]]:
    """A pair of virtual Ethernet devices; this side has 10.213.0.1."""
    number = next(_numbers)
    near, far = f"hyt{os.getpid() % 100000}n{number}", f"hyt{os.getpid() % 100000}f{number}"
    for command in (
        ["link", "add", near, "type", "veth", "peer", "name", far],
        ["address", "add", "10.213.0.1/24", "dev", near],
        ["link", "set", near, "up"],
    ):
        subprocess.run(["ip", *command], check=True)
    yield near, far
    subprocess.run(["ip", "link", "delete", near], check=False, capture_output=True)


async def test_an_interface_is_moved_named_and_addressed(
    driver: Driver, veth: tuple[str, str]
) -> None:
    interface = Interface(
        "eth0", "02:00:0a:d5:00:02", ["10.213.0.2/24"], "10.213.0.1", 1400, device=veth[1]
    )
    name = await driver.start(driver.request("sleep", "100", interfaces=[interface]))
    code, out, _ = await driver.execute(
        name, "sh", "-c", "ip -o addr; ip route; cat /sys/class/net/eth0/address"
    )
    assert "inet 10.213.0.2/24" in out
    assert "mtu 1400" in (await driver.execute(name, "ip", "link"))[1]
    assert "default via 10.213.0.1 dev eth0" in out
    assert "127.0.0.1" in out
    assert "02:00:0a:d5:00:02" in out
    code, out, err = await driver.execute(name, "ping", "-c1", "-W5", "10.213.0.1")
    assert code == 0, out + err
    stats = await driver.client.call(Stats(name))
    assert stats.networks["eth0"]["tx_packets"] > 0
    await driver.client.call(Delete(name))
    assert not Path("/sys/class/net", veth[1]).exists(), "a virtual link goes with its namespace"


async def test_no_link_of_the_containers_own_comes_to_the_machine(
    driver: Driver, veth: tuple[str, str]
) -> None:
    mac = "02:00:0a:d5:00:03"
    interface = Interface("eth0", mac, ["10.213.0.3/24"], "10.213.0.1", 1400, device=veth[1])
    granted = [*CAPABILITIES, "CAP_NET_ADMIN"]
    capabilities = {name: granted for name in ("bounding", "effective", "permitted")}
    request = driver.request(
        "sleep", "100", interfaces=[interface], process={"capabilities": capabilities}
    )
    name = await driver.start(request)
    before = {path.name for path in Path("/sys/class/net").iterdir()}
    index = (await driver.execute(name, "cat", "/sys/class/net/eth0/ifindex"))[1].strip()
    namespace = (await driver.client.call(Evidence(name))).pid
    enter = ["nsenter", "-t", str(namespace), "-U", "-n", "ip", "link"]
    subprocess.run([*enter, "delete", "eth0"], check=True)
    false = ["add", "eth0", "index", index, "address", mac, "type", "veth", "peer", "name", "e"]
    subprocess.run([*enter, *false], check=True)
    await driver.client.call(Delete(name))
    assert not {path.name for path in Path("/sys/class/net").iterdir()} - before


async def test_no_network_has_loopback_only(driver: Driver) -> None:
    _code, out, _ = await driver.run(
        "sh",
        "-c",
        "ip -o link | wc -l; ping -c1 127.0.0.1 | grep -c '1 packets rec'",
        network="none",
    )
    assert out == "1\n1\n"


async def test_the_machines_network(driver: Driver) -> None:
    _code, out, _ = await driver.run("readlink", "/proc/self/ns/net", network="host")
    assert out.strip() == os.readlink("/proc/self/ns/net")


async def test_statistics_count(driver: Driver) -> None:
    script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 100"
    name = await driver.start(driver.request("sh", "-c", script))
    await asyncio.sleep(0.5)
    stats = await driver.client.call(Stats(name))
    assert stats.cpu_total > 0
    assert stats.system_cpu > stats.cpu_total
    assert stats.pids >= 1
    assert stats.memory_limit > 0


async def test_top_lists_the_containers_processes(driver: Driver) -> None:
    name = await driver.start(driver.request("sh", "-c", "sleep 100; true"))
    await asyncio.sleep(0.3)
    table = await driver.client.call(Top(name))
    assert table.titles == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert sorted(row[-1] for row in table.rows) == ["sh -c sleep 100; true", "sleep 100"]
    assert {row[0] for row in table.rows} == {"100000"}
    assert (await driver.client.call(Top(name, "aux"))).titles[0] == "USER"
    assert (await driver.client.call(Top(name, "-o pid,comm"))).titles == ["PID", "COMMAND"]
    with pytest.raises(Unsupported):
        await driver.client.call(Top(name, "--forest"))


async def test_evidence_is_what_the_kernel_says(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    paths = ["/proc/version", "/proc/no-such", "/bin/sh", "/etc/passwd/not-a-directory"]
    found = await driver.client.call(Evidence(name, paths))
    assert found.present == ["/proc/version", "/bin/sh"]
    assert found.status["Seccomp"] == "2"
    assert found.status["NoNewPrivs"] == "1"
    assert found.uid_map.split() == ["0", "100000", "65536"]
    for kind in ("user", "net", "pid", "mnt", "ipc", "uts"):
        assert found.namespaces[kind] != found.machine_namespaces[kind]
    assert found.cgroup == f"/{GROUP}/{name}"
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (found.personality, found.randomize_va_space) == ("00000000", "2")
    assert any(" / / " in line for line in found.mounts)
    await driver.client.call(Delete(name))
    name = await driver.start(driver.request("true"))
    await driver.exited(name)
    with pytest.raises(Conflict):
        await driver.client.call(Evidence(name))


async def test_a_shell_on_the_machine_itself(driver: Driver) -> None:
    process = {"args": ["sh", "-c", "echo $0 $HOME; id -u; exit 6"], "env": ["PATH=/bin:/usr/bin"]}
    await driver.client.call(StartExec("", "m1", process))
    assert await driver.text("", "m1") == "sh /root\n0\n"
    assert await driver.exited("", "m1") == 6
    await driver.client.call(Delete("", "m1"))
    terminal = {"args": ["tty"], "terminal": True, "env": ["PATH=/bin:/usr/bin"]}
    await driver.client.call(StartExec("", "m2", terminal))
    assert (await driver.text("", "m2")).startswith("/dev/pts/")
