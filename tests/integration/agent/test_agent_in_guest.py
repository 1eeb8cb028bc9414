"""The agent in a real guest: containers behind both walls."""

from __future__ import annotations

import asyncio
import time

import pytest

from hybrid.errors import Conflict, InvalidInput
from hybrid.wire.journal import Parser
from hybrid.wire.messages import (
    AckOutput,
    Configure,
    Delete,
    Evidence,
    Facts,
    Interface,
    Pause,
    Probe,
    ReadOutput,
    Share,
    Shutdown,
    Signal,
    Source,
    StartContainer,
    StartExec,
    State,
    Stats,
    Top,
    Update,
)
from tests.agentdriver import Driver, address_spaces
from tests.integration.agent.conftest import MAC, Guest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]


async def test_a_container_runs_from_disks(driver: Driver) -> None:
    script = "echo hello; cat /etc/added; ls /etc/removed; touch /new && stat -c %u /new; exit 3"
    begun = time.monotonic()
    name = await driver.start(driver.request("sh", "-c", script, writable=driver.disks[0]))
    started = time.monotonic()
    assert await driver.text(name) == "hello\nadded\n0\n"
    assert await driver.exited(name) == 3
    print(f"create and start {started - begun:.2f} s, to the exit {time.monotonic() - begun:.2f} s")
    await driver.client.call(Delete(name))
    code, out, _ = await driver.run("stat", "-c", "%u", "/new", writable=driver.disks[0])
    assert (code, out) == (0, "0\n")


async def test_the_guest_has_its_identity_and_is_locked_down(driver: Driver) -> None:
    facts = await driver.client.call(Facts())
    assert facts.cgroup == "v2"
    assert facts.runtime.startswith("crun 1.2")
    assert "[confidentiality]" in facts.lockdown
    assert abs(facts.realtime_ns - 1_800_000_000_000_000_000) < 240 * 10**9
    assert facts.agent_rss < 64 << 20
    script = "hostname; cat /run/machine-id | wc -c; cat /proc/sys/kernel/modules_disabled"
    process = {"args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}
    await driver.client.call(StartExec("", "id", process))
    assert await driver.text("", "id") == "tested\n33\n1\n"
    await driver.client.call(Delete("", "id"))
    with pytest.raises(Conflict):
        await driver.client.call(Configure("m2", "other", 0, b"", False))


async def test_both_walls_are_seen_by_the_guests_kernel(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "1000", writable=driver.disks[1]))
    found = await driver.client.call(Evidence(name))
    assert found.status["Seccomp"] == "2"
    assert found.status["NoNewPrivs"] == "1"
    assert found.uid_map.split() == ["0", "100000", "65536"]
    own = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    assert all(found.namespaces[kind] != found.machine_namespaces[kind] for kind in own)
    assert found.cgroup == f"/hybrid/{name}"
    assert (found.personality, found.randomize_va_space) == ("00000000", "2")
    answer = await driver.client.call(Probe(name, ["10.0.2.2:22"]), timeout=120)
    assert answer.personality == "00000000"
    results = answer.results
    verdicts = {result.name: result for result in results}
    print(*results, sep="\n")
    assert len(verdicts) > 10
    assert [
        r.name for r in results if not r.refused and r.name in ("mount-proc", "module-init")
    ] == []
    await driver.client.call(Delete(name))


async def test_containers_processes_have_random_addresses(driver: Driver) -> None:
    found = await address_spaces(driver)
    assert {personality for personality, _ in found} == {"00000000"}
    assert len({stack for _, stack in found}) == len(found)


async def test_exec_terminal_users_and_signals(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "1000"))
    begun = time.monotonic()
    assert (await driver.execute(name, "id", "-u", user={"username": "ann"}))[1] == "1000\n"
    # the agent is spared by the out-of-memory killer, what runs in containers is not
    assert (await driver.execute(name, "cat", "/proc/self/oom_score_adj"))[1] == "0\n"
    print(f"exec to its exit {time.monotonic() - begun:.2f} s")
    process = {"args": ["stty", "size"], "terminal": True, "env": ["PATH=/bin"]}
    process["consoleSize"] = {"height": 10, "width": 20}
    await driver.client.call(StartExec(name, "t", process))
    assert await driver.text(name, "t") == "10 20\r\n"
    with pytest.raises(InvalidInput, match="executable file not found"):
        await driver.execute(name, "nosuch")
    table = await driver.client.call(Top(name))
    assert [row[-1] for row in table.rows] == ["sleep 1000"]
    stats = await driver.client.call(Stats(name))
    assert stats.memory > 0
    assert stats.pids == 1
    await driver.client.call(Pause(name, True))
    assert (await driver.client.call(State(name))).status == "paused"
    await driver.client.call(Pause(name, False))
    await driver.client.call(Signal(name, 9))
    assert await driver.exited(name) == 137
    await driver.client.call(Delete(name))


async def test_limits_hold_and_an_out_of_memory_kill_is_told(driver: Driver) -> None:
    resources = {"memory": {"limit": 16 << 20, "swap": 16 << 20}, "pids": {"limit": 10}}
    resources["cpu"] = {"quota": 50000, "period": 100000}
    name = await driver.start(driver.request("tail", "/dev/zero", linux={"resources": resources}))
    assert await driver.exited(name) == 137
    assert (await driver.client.call(State(name))).oom_killed
    await driver.client.call(Delete(name))
    assert driver.oom == [name]


async def test_limits_can_be_changed(driver: Driver) -> None:
    resources = {"memory": {"limit": 64 << 20}, "pids": {"limit": 10}}
    name = await driver.start(driver.request("sleep", "1000", linux={"resources": resources}))
    assert (await driver.client.call(Evidence(name))).limits["memory.max"] == str(64 << 20)
    await driver.client.call(Update(name, {"memory": {"limit": 32 << 20}, "pids": {"limit": 20}}))
    found = (await driver.client.call(Evidence(name))).limits
    assert (found["memory.max"], found["pids.max"]) == (str(32 << 20), "20")
    await driver.client.call(Delete(name))


async def test_without_a_user_namespace(driver: Driver) -> None:
    script = "cat /proc/self/uid_map; stat -c %u /data/file; touch /x; stat -c %u /x"
    code, out, _ = await driver.run("sh", "-c", script, id_map=None, writable=driver.disks[3])
    assert (code, out.split()) == (0, ["0", "0", "4294967295", "1000", "0"])
    assert (await driver.run("stat", "-c", "%u", "/x", writable=driver.disks[3]))[1] == "0\n"


async def test_an_interface_becomes_the_containers_and_comes_back(driver: Driver) -> None:
    interface = Interface("eth0", MAC, ["10.0.2.15/24"], "10.0.2.2")
    for _ in range(2):
        name = await driver.start(driver.request("sleep", "1000", interfaces=[interface]))
        out = (await driver.execute(name, "sh", "-c", "ip -o addr; ip route"))[1]
        assert "eth0    inet 10.0.2.15/24" in out
        assert "default via 10.0.2.2 dev eth0" in out
        assert (await driver.execute(name, "ping", "-c1", "-W5", "10.0.2.2"))[0] == 0
        await driver.client.call(Delete(name))


async def test_a_volume_on_a_disk_starts_with_the_images_files(driver: Driver) -> None:
    share = Share(driver.disks[2], subpath="", populate=True)
    mount = {"destination": "/data", "type": "hybrid-share", "source": "0", "options": []}
    script = "cat /data/file; stat -c %u:%g /data/file; echo changed > /data/file"
    code, out, err = await driver.run("sh", "-c", script, shares=[share], mounts=[mount])
    assert (code, out, err) == (0, "from the image\n1000:1001\n", "")
    code, out, _ = await driver.run("cat", "/data/file", shares=[share], mounts=[mount])
    assert (code, out) == (0, "changed\n")


async def test_a_shared_directory_has_the_containers_ids(driver: Driver, guest: Guest) -> None:
    (guest.shared / "sub" / "link").symlink_to("../outside")
    (guest.shared / "outside").write_text("outside")
    share = Share(Source("tag", "shared"), subpath="sub", populate=False)
    mount = {"destination": "/data", "type": "hybrid-share", "source": "0", "options": []}
    script = "stat -c %u /data; echo made > /data/f; chown 1000:1001 /data/f; cat /data/link"
    code, out, err = await driver.run("sh", "-c", script, shares=[share], mounts=[mount])
    assert (code, out) == (1, "0\n")
    assert "No such file" in err
    made = guest.shared / "sub/f"
    assert (made.stat().st_uid, made.stat().st_gid, made.read_text()) == (1000, 1001, "made\n")
    file = Share(Source("tag", "shared"), subpath="sub/f")
    mount["destination"] = "/etc/f"
    code, out, err = await driver.run("cat", "/etc/f", shares=[file], mounts=[mount])
    assert (code, out, err) == (0, "made\n", "")


async def test_much_output_comes_through_whole(driver: Driver) -> None:
    size = 16 << 20
    request = driver.request("head", "-c", str(size), "/dev/zero")
    await driver.client.call(request)
    stream = driver.client.open()
    await driver.client.call(ReadOutput(request.container, stream.id))
    begun = time.monotonic()
    await driver.client.call(StartContainer(request.container))
    parser, total, offset = Parser(), 0, 0
    while data := await stream.read(262144):
        offset += len(data)
        total += sum(len(record.data) for record in parser.feed(data))
        await driver.client.call(AckOutput(request.container, offset))
    print(f"{size / (time.monotonic() - begun) / 1e6:.1f} MB/s")
    assert total == size
    await driver.client.call(Delete(request.container))


async def test_nothing_is_lost_when_the_host_goes_and_comes_back(driver: Driver) -> None:
    script = "for i in $(seq 1 200); do echo line $i; sleep 0.01; done; exit 4"
    name = await driver.start(driver.request("sh", "-c", script))
    await driver.disconnect()
    await asyncio.sleep(1)
    await driver.connect()
    assert await driver.text(name) == "".join(f"line {n}\n" for n in range(1, 201))
    assert await driver.exited(name) == 4
    await driver.client.call(Delete(name))


async def test_shutdown_powers_the_guest_off(driver: Driver, guest: Guest) -> None:
    await driver.start(driver.request("sleep", "1000", writable=driver.disks[0]))
    await driver.client.call(Shutdown(1))
    assert await asyncio.to_thread(guest.bare.qemu.wait, 30) == 0
