"""Containers through a real agent on this kernel: life, output, exit codes, users, failures."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import Conflict, InvalidInput, NotFound, Unsupported
from hybrid.wire.messages import (
    Configure,
    Delete,
    Facts,
    List,
    Pause,
    Shutdown,
    Signal,
    Source,
    StartContainer,
    StartExec,
    State,
    Update,
)
from tests.agentdriver import Driver, address_spaces
from tests.functional.agent.conftest import RunningAgent


async def test_runs_a_program_and_tells_its_output_and_exit_code(driver: Driver) -> None:
    code, out, err = await driver.run("sh", "-c", "echo hello; echo oops >&2; exit 3")
    assert (code, out, err) == (3, "hello\n", "oops\n")


async def test_a_death_by_signal_is_128_and_its_number(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    await driver.client.call(Signal(name, signal.SIGKILL))
    assert await driver.exited(name) == 137
    state = await driver.client.call(State(name))
    assert (state.status, state.exit_code, state.pid) == ("stopped", 137, 0)
    with pytest.raises(Conflict):
        await driver.client.call(Signal(name, signal.SIGKILL))


async def test_the_layers_are_stacked_and_whiteouts_hold(driver: Driver) -> None:
    code, out, _ = await driver.run(
        "sh", "-c", "cat /etc/added; ls /etc/removed; touch /new && stat -c %u /new /"
    )
    assert code == 0
    assert out == "added\n0\n0\n"


async def test_root_of_the_container_is_nobody_on_the_machine(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    pid = (await driver.client.call(State(name))).pid
    assert os.stat(f"/proc/{pid}").st_uid == 100000
    await driver.client.call(Delete(name))


async def test_without_an_id_map_ids_are_the_machines(driver: Driver) -> None:
    code, out, _ = await driver.run(
        "sh", "-c", "cat /proc/self/uid_map; stat -c %u /data/file", id_map=None
    )
    assert code == 0
    assert out.split() == ["0", "0", "4294967295", "1000"]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "uid=0(root) gid=0(root) groups=0(root)"),
        ("ann", "uid=1000(ann) gid=1001(ann) groups=10(wheel),1001(ann)"),
        ("ann:staff", "uid=1000(ann) gid=50(staff) groups=50(staff)"),
        ("1234", "uid=1234 gid=0(root) groups=0(root)"),
        ("1234:77", "uid=1234 gid=77 groups=77"),
    ],
)
async def test_users_are_resolved_in_the_container(
    driver: Driver, user: str, expected: str
) -> None:
    code, out, _ = await driver.run("id", process={"user": {"username": user}})
    assert (code, out.strip()) == (0, expected)


async def test_an_unknown_user_is_refused(driver: Driver) -> None:
    with pytest.raises(InvalidInput, match="unable to find user bob"):
        await driver.run("id", process={"user": {"username": "bob"}})


async def test_home_and_working_directory_are_as_docker_has_them(driver: Driver) -> None:
    process = {"user": {"username": "ann"}, "cwd": "/made/here"}
    code, out, err = await driver.run(
        "sh", "-c", "echo $HOME; pwd; echo x > /dev/stdout", process=process
    )
    assert (code, out, err) == (0, "/home/ann\n/made/here\nx\n", "")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("nosuch", 'exec: "nosuch": executable file not found in $PATH'),
        ("/bin/nosuch", 'exec: "/bin/nosuch": no such file or directory'),
        ("/bin/notexec", 'exec: "/bin/notexec": permission denied'),
        ("/etc", 'exec: "/etc": is a directory: permission denied'),
    ],
)
async def test_what_cannot_be_started_says_so_in_dockers_words(
    driver: Driver, program: str, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await driver.run(program)
    assert caught.value.message == message
    name = await driver.start(driver.request("sleep", "100"))
    with pytest.raises(InvalidInput) as caught:
        await driver.execute(name, program)
    assert caught.value.message == message
    await driver.client.call(Delete(name))
    assert (await driver.client.call(List())).processes == []


@pytest.mark.parametrize(
    "config",
    [
        {"hooks": {}},
        {"annotations": {"run.oci.handler": "wasm"}},
        {"mounts": [{"destination": "/x", "type": "bind", "source": "/etc"}]},
        {"mounts": [{"destination": "/../x", "type": "tmpfs", "source": "tmpfs"}]},
        {"mounts": [{"destination": "/x", "type": "hybrid-share", "source": "0"}]},
        {"process": {"args": []}},
        {"linux": {"namespaces": [{"type": "mount"}, {"type": "pid", "path": "/proc/1/ns/pid"}]}},
    ],
)
async def test_what_the_agent_does_not_know_is_refused(
    driver: Driver, config: dict[str, Any]
) -> None:
    request = driver.request("true")
    request.config.update(config)
    with pytest.raises(InvalidInput):
        await driver.client.call(request)
    assert (await driver.client.call(List())).processes == []


async def test_creation_is_idempotent_for_an_equal_request(driver: Driver) -> None:
    request = driver.request("true")
    await driver.client.call(request)
    await driver.client.call(request)
    with pytest.raises(Conflict):
        await driver.client.call(driver.request("false", name=request.container))
    await driver.client.call(StartContainer(request.container))
    assert await driver.exited(request.container) == 0
    with pytest.raises(Conflict):
        await driver.client.call(StartContainer(request.container))


async def test_deletion_is_idempotent_and_unknown_names_are_not_found(driver: Driver) -> None:
    await driver.client.call(Delete("nobody"))
    with pytest.raises(NotFound):
        await driver.client.call(StartContainer("nobody"))
    with pytest.raises(InvalidInput):
        await driver.client.call(driver.request("true", name="../x"))


async def test_a_missing_layer_leaves_nothing(driver: Driver) -> None:
    layers = [Source("file", "/nonexistent.squashfs")]
    with pytest.raises(NotFound):
        await driver.client.call(driver.request("true", layers=layers))


async def test_pause_stops_and_resume_goes_on(driver: Driver) -> None:
    name = await driver.start(driver.request("sh", "-c", "sleep 0.2; echo done"))
    await driver.client.call(Pause(name, True))
    assert (await driver.client.call(State(name))).status == "paused"
    with pytest.raises(Conflict):
        await driver.client.call(Pause(name, True))
    await driver.client.call(Pause(name, False))
    assert await driver.text(name) == "done\n"


async def test_a_paused_container_can_be_deleted(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    await driver.client.call(Pause(name, True))
    await driver.client.call(Delete(name))
    assert (await driver.client.call(List())).processes == []


async def test_exec_runs_beside_the_container_with_its_rights(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    code, out, err = await driver.execute(name, "sh", "-c", "id -u; hostname; echo e >&2; exit 5")
    assert (code, out, err) == (5, "0\nbox\n", "e\n")
    code, out, _ = await driver.execute(
        name, "grep", "-E", "Seccomp:|NoNewPrivs|CapEff", "/proc/self/status"
    )
    own = await driver.execute(name, "grep", "-E", "Seccomp:|NoNewPrivs|CapEff", "/proc/1/status")
    assert out == own[1]
    assert "Seccomp:\t2" in out
    assert "NoNewPrivs:\t1" in out
    code, out, _ = await driver.execute(name, "id", "-u", user={"username": "ann"}, cwd="/home/ann")
    assert out == "1000\n"
    await driver.client.call(Delete(name))
    with pytest.raises(NotFound):
        await driver.client.call(StartExec(name, "x", {"args": ["true"]}))


async def test_an_exec_has_the_containers_limits(driver: Driver) -> None:
    limits = {"rlimits": [{"type": "RLIMIT_CORE", "soft": 512, "hard": 512}], "oomScoreAdj": 500}
    name = await driver.start(driver.request("sleep", "100", process=limits))
    script = "ulimit -c; cat /proc/self/oom_score_adj"
    assert (await driver.execute(name, "sh", "-c", script))[1] == "1\n500\n"


async def test_only_crun_has_fixed_addresses_where_the_machine_is_emulated(driver: Driver) -> None:
    await driver.client.call(Configure("m1", "", 0, b"", False, emulated=True))
    found = await address_spaces(driver)
    assert {personality for personality, _ in found} == {"00000000"}
    assert len({stack for _, stack in found}) == len(found)


async def test_an_exec_that_leaves_a_child_behind_still_ends(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    code, out, _ = await driver.execute(name, "sh", "-c", "sleep 90 & echo started")
    assert (code, out) == (0, "started\n")


async def test_execs_end_with_their_container(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    await driver.client.call(StartExec(name, "e", {"args": ["sleep", "90"]}))
    await driver.client.call(Signal(name, signal.SIGKILL))
    assert await driver.exited(name, "e") == 137


async def test_a_joined_namespace_is_the_other_containers(driver: Driver) -> None:
    first = await driver.start(driver.request("sleep", "100"))
    joined: dict[str, Any] = {"network": "container", "network_container": first}
    joined |= {"pid_container": first, "ipc_container": first}
    code, out, _ = await driver.run(
        "sh", "-c", "ps -o args | grep -c '[s]leep 100'; ls -l /proc/self/ns/net", **joined
    )
    assert code == 0
    assert out.startswith("1\n")
    inner = await driver.execute(first, "ls", "-l", "/proc/self/ns/net")
    assert out.rsplit("net:", 1)[1] == inner[1].rsplit("net:", 1)[1]
    await driver.client.call(Signal(first, signal.SIGKILL))
    await driver.exited(first)
    with pytest.raises(Conflict, match="not running"):
        await driver.client.call(driver.request("true", **joined))


async def test_limits_that_cannot_be_had_are_refused(driver: Driver) -> None:
    with pytest.raises(Unsupported, match="cgroup controller"):
        await driver.run("true", linux={"resources": {"rdma": {"mlx5": {"hcaHandles": 1}}}})


async def test_memory_is_limited_and_the_kill_is_told(driver: Driver) -> None:
    resources = {"memory": {"limit": 16 << 20}, "pids": {"limit": 20}}
    container = driver.request("tail", "/dev/zero", linux={"resources": resources})
    name = await driver.start(container)
    assert await driver.exited(name) == 137
    assert (await driver.client.call(State(name))).oom_killed


async def test_limits_can_be_changed(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    await driver.client.call(Update(name, {"pids": {"limit": 7}}))
    await driver.client.call(Delete(name))


async def test_small_files_are_writable_and_not_part_of_the_root(driver: Driver) -> None:
    files = {"/etc/hosts": "127.0.0.1 localhost\n", "/etc/hostname": "box\n"}
    script = "cat /etc/hosts; echo more >> /etc/hosts && tail -n1 /etc/hosts; stat -c %u /etc/hosts"
    code, out, _ = await driver.run("sh", "-c", script, files=files)
    assert (code, out) == (0, "127.0.0.1 localhost\nmore\n0\n")


async def test_control_groups_are_seen_but_not_made(driver: Driver) -> None:
    options = ["nosuid", "noexec", "nodev", "relatime", "ro"]
    mount = {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": options,
    }
    script = "ls /sys/fs/cgroup | grep -cE '^(memory|cgroup.controllers)$'; mkdir /sys/fs/cgroup/x"
    code, out, err = await driver.run("sh", "-c", script, mounts=[mount])
    assert (code, out) == (1, "1\n")
    assert "Read-only" in err


async def test_facts_are_this_kernels(driver: Driver) -> None:
    facts = await driver.client.call(Facts())
    assert facts.kernel == os.uname().release
    assert facts.runtime.startswith("crun ")
    assert 0 < facts.memory_available < facts.memory
    assert 0 < facts.agent_rss < 100 << 20


async def test_shutdown_ends_containers_and_agent(
    driver: Driver, agent_process: RunningAgent
) -> None:
    await driver.start(
        driver.request("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    )
    await driver.client.call(Shutdown(5))
    await driver.client.wait_closed()
    assert await asyncio.to_thread(agent_process.process.wait, 10) == 0


async def test_a_resource_limit_can_be_lowered_and_reaches_the_process(driver: Driver) -> None:
    rlimits = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    _code, out, _ = await driver.run(
        "sh", "-c", "ulimit -n; ulimit -Hn", process={"rlimits": rlimits}
    )
    assert out == "100\n200\n"
    with pytest.raises(InvalidInput, match="unknown resource limit"):
        await driver.run("true", process={"rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]})


@pytest.mark.slow
async def test_an_exec_right_after_the_start_always_works(driver: Driver) -> None:
    for _ in range(60):
        name = await driver.start(driver.request("sleep", "100"))
        assert await driver.execute(name, "echo", "x") == (0, "x\n", "")
        await driver.client.call(Delete(name))


async def test_an_agent_that_died_leaves_nothing_to_the_next(
    driver: Driver, agent_process: RunningAgent
) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    pid = (await driver.client.call(State(name))).pid
    boot = driver.client.hello.boot
    await driver.disconnect()
    agent_process.process.kill()
    agent_process.process.wait()
    agent_process.socket.unlink()
    agent_process.start()
    await driver.connect()
    assert driver.client.hello.boot != boot
    assert (await driver.client.call(List())).processes == []
    assert await driver.run("echo", "again") == (0, "again\n", "")
    assert not Path(f"/proc/{pid}/root/etc/added").exists()


async def test_only_one_agent_works_in_a_directory(
    driver: Driver, agent_process: RunningAgent
) -> None:
    second = RunningAgent(agent_process.socket.with_name("other"), agent_process.state)
    second.start()
    assert await asyncio.to_thread(second.process.wait, 20) == 1
