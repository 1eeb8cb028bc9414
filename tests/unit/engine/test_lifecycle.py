"""Containers from creation to removal, and everything that can go wrong between, over in-memory twins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hybrid.engine.container import HealthCheck, Mount, Port, Restart
from hybrid.engine.engine import Engine
from hybrid.engine.execs import ExecSpec
from hybrid.engine.live import Container
from hybrid.errors import (
    Conflict,
    HybridError,
    Internal,
    InvalidInput,
    NotFound,
    NotModified,
    Unavailable,
)
from hybrid.wire import journal
from tests.unit.engine.twins import World, spec, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def engine(world: World) -> AsyncIterator[Engine]:
    made = await world.engine()
    yield made
    await made.close()


async def started(engine: Engine, name: str = "one", **fields: object) -> Container:
    container, _ = await engine.containers.create(name, spec(**fields))
    await engine.containers.start(name)
    return container


async def text_of(container: Container) -> str:
    found = b""
    async for records in container.log.records():
        found += b"".join(record.data for record in records if record.stream == journal.STDOUT)
    return found.decode()


def is_clean(world: World) -> bool:
    return not world.fabric.endpoints and not world.guests.agents and not world.shares.served


async def test_a_run_from_start_to_exit(world: World, engine: Engine) -> None:
    container = await started(engine)
    agent = world.guests.agent
    assert container.record.status == "running" and container.record.machine
    exit_code = engine.containers.wait("one", "next-exit")
    agent.write(container.id, "hello\n")
    agent.exit(container.id, 3)
    assert await exit_code == 3
    assert container.record.status == "exited"
    assert await text_of(container) == "hello\n"
    await until(lambda: is_clean(world))
    assert not engine.machines.named("one")


async def test_the_guest_has_the_devices_from_its_start(world: World, engine: Engine) -> None:
    await started(engine, mounts=[Mount("volume", "data", "/data")])
    (request,) = world.guests.requests.values()
    assert [disk.read_only for disk in request.disks] == [True, False]
    assert len(request.nics) == len(request.shares) == 1
    assert request.name == "one" and not any("one" in str(disk.path) for disk in request.disks)


@pytest.mark.parametrize("by", ["name", "id"])
async def test_a_guest_is_made_for_the_volumes_of_those_that_will_join(
    world: World, engine: Engine, by: str
) -> None:
    first, _ = await engine.containers.create("first", spec())
    joined = f"container:{first.id[:12] if by == 'id' else 'first'}"
    await engine.containers.create(
        "second", spec(network_mode=joined, mounts=[Mount("volume", "data", "/data")])
    )
    await engine.containers.start("first")
    await started(engine, "third")
    assert [request.shares_later for request in world.guests.requests.values()] == [True, False]


@pytest.mark.parametrize("where", ["CreateContainer", "StartContainer", "Configure"])
async def test_a_failing_agent_leaves_nothing(world: World, engine: Engine, where: str) -> None:
    original = world.guests.create

    async def create(request: object) -> None:
        await original(request)  # type: ignore[arg-type]
        world.guests.agent.fail[where] = InvalidInput(
            'exec: "x": executable file not found in $PATH'
        )

    world.guests.create = create  # type: ignore[method-assign]
    await engine.containers.create("one", spec())
    with pytest.raises(HybridError, match="executable file not found"):
        await engine.containers.start("one")
    record = engine.containers.find("one").record
    assert (record.status, record.exit_code) == ("exited", 127)
    assert "executable file not found" in record.error
    assert is_clean(world)


async def test_a_guest_that_does_not_boot_is_told_with_its_console(
    world: World, engine: Engine
) -> None:
    world.guests.fail["connect"] = Unavailable("the agent did not answer within 30 s")
    await engine.containers.create("one", spec())
    with pytest.raises(Unavailable, match=r"did not answer .* line one \| last words"):
        await engine.containers.start("one")
    assert is_clean(world)


async def test_a_taken_port_leaves_nothing(world: World, engine: Engine) -> None:
    world.fabric.fail["publish"] = Conflict("Bind for 0.0.0.0:80 failed: port is already allocated")
    await engine.containers.create("one", spec(ports=[Port(80)]))
    with pytest.raises(Conflict, match="port is already allocated"):
        await engine.containers.start("one")
    assert is_clean(world)


async def test_a_guest_that_dies_takes_its_containers_with_a_reason(
    world: World, engine: Engine
) -> None:
    container = await started(engine)
    exit_code = engine.containers.wait("one", "next-exit")
    await world.guests.crash(container.record.machine)
    assert await exit_code == 137
    assert "signal 9" in container.record.error
    await until(lambda: is_clean(world))


async def test_a_group_shares_one_guest_until_its_last_container_ends(
    world: World, engine: Engine
) -> None:
    first = await started(engine, "first", isolation="vm:apps")
    second = await started(engine, "second", isolation="vm:apps")
    assert first.record.machine == second.record.machine
    assert first.record.id_base != second.record.id_base
    agent = world.guests.agent
    agent.exit(first.id, 0)
    await until(lambda: first.record.status == "exited" and len(agent.processes) == 1)
    await until(lambda: len(world.guests.attached[second.record.machine]) == 2)
    assert world.guests.agents
    agent.exit(second.id, 0)
    await until(lambda: is_clean(world))


async def test_a_share_that_cannot_be_attached_leaves_no_server(
    world: World, engine: Engine
) -> None:
    await started(engine, "first", isolation="vm:apps")
    world.guests.fail["attach_share"] = Conflict("no such memory")
    volume = [Mount("volume", "data", "/data")]
    await engine.containers.create("second", spec(isolation="vm:apps", mounts=volume))
    with pytest.raises(Conflict, match="no such memory"):
        await engine.containers.start("second")
    assert world.shares.served == set()


async def test_a_machine_that_a_user_made_stays(world: World, engine: Engine) -> None:
    from hybrid.engine.backends import GuestSize

    machine = await engine.machines.create("build", GuestSize())
    container = await started(engine, isolation="machine:build")
    assert container.record.machine == machine.id
    with pytest.raises(Conflict, match="in use by 1 container"):
        await engine.machines.remove(machine, force=False)
    await engine.containers.remove("one", force=True)
    assert world.guests.agents
    await engine.machines.remove(machine, force=False)
    assert is_clean(world)


async def test_an_unknown_machine_is_refused(engine: Engine) -> None:
    await engine.containers.create("one", spec(isolation="machine:nope"))
    with pytest.raises(NotFound, match="no such machine: nope"):
        await engine.containers.start("one")


async def test_a_broken_link_heals_and_loses_nothing(world: World, engine: Engine) -> None:
    container = await started(engine)
    agent = world.guests.agent
    agent.write(container.id, "before\n")
    await until(lambda: container.log.offset > 0)
    await agent.cut()
    agent.write(container.id, "between\n")
    agent.exit(container.id, 4)
    await until(lambda: container.record.status == "exited")
    assert container.record.exit_code == 4
    assert await text_of(container) == "before\nbetween\n"


async def test_an_agent_that_was_started_anew_has_lost_its_containers(
    world: World, engine: Engine
) -> None:
    container = await started(engine, isolation="container")
    agent = world.host.agent
    agent.processes.clear()
    agent.boot = "another"
    await agent.cut()
    await until(lambda: container.record.status == "exited")
    assert container.record.exit_code == 137 and "started anew" in container.record.error


async def test_stop_signals_and_then_kills(world: World, engine: Engine) -> None:
    container = await started(engine, stop_signal="SIGHUP")
    await engine.containers.stop("one", timeout=0)
    assert container.record.exit_code == 137
    with pytest.raises(NotModified):
        await engine.containers.stop("one")


async def test_a_failing_container_starts_again_as_often_as_asked(
    world: World, engine: Engine
) -> None:
    container = await started(engine, isolation="container", restart=Restart("on-failure", 1))
    world.host.agent.exit(container.id, 1)
    await until(
        lambda: container.record.restart_count == 1 and container.record.status == "running"
    )
    world.host.agent.exit(container.id, 1)
    await until(lambda: container.record.status == "exited")
    assert container.record.restart_count == 1


async def test_a_start_waits_for_one_that_is_under_way(world: World, engine: Engine) -> None:
    container, _ = await engine.containers.create("one", spec())
    first = asyncio.create_task(engine.containers.start("one"))
    await asyncio.sleep(0)
    assert container.record.status == "starting"
    with pytest.raises(NotModified):
        await engine.containers.start("one")
    assert container.record.status == "running"
    await first


async def test_a_stopped_container_does_not_start_again(world: World, engine: Engine) -> None:
    container = await started(engine, isolation="container", restart=Restart("always"))
    await engine.containers.stop("one")
    await asyncio.sleep(0.2)
    assert container.record.status == "exited" and container.record.restart_count == 0


async def test_an_auto_removed_container_tells_who_waits(world: World, engine: Engine) -> None:
    container = await started(engine, isolation="container", auto_remove=True)
    removed = engine.containers.wait("one", "removed")
    world.host.agent.exit(container.id, 9)
    assert await removed == 9
    with pytest.raises(NotFound):
        engine.containers.find("one")
    assert not world.paths.container(container.id).exists()


async def test_names_ids_and_prefixes_find_it(engine: Engine) -> None:
    container, _ = await engine.containers.create("one", spec())
    for reference in (container.id, "one", "/one", container.id[:12]):
        assert engine.containers.find(reference) is container
    with pytest.raises(Conflict, match="already in use"):
        await engine.containers.create("one", spec())
    engine.containers.rename("one", "two")
    await engine.containers.create("one", spec())


async def test_a_running_container_is_not_removed_without_force(
    world: World, engine: Engine
) -> None:
    await started(engine)
    with pytest.raises(
        Conflict, match="container is running: stop the container before removing or force remove"
    ):
        await engine.containers.remove("one")
    await engine.containers.remove("one", force=True, volumes=True)
    assert is_clean(world) and engine.containers.all() == []


async def test_health_decides_when_it_is_ready(world: World, engine: Engine) -> None:
    check = HealthCheck(test=["CMD", "true"], interval=5_000_000, retries=1)
    container = await started(engine, isolation="container", health=check)
    agent = world.host.agent
    assert container.record.health is not None and not container.record.ready_ns

    async def probe(code: int) -> None:
        await until(
            lambda: any(e and p.status == "running" for (_, e), p in agent.processes.items())
        )
        for (of, exec_id), process in list(agent.processes.items()):
            if exec_id and process.status == "running":
                agent.exit(of, code, exec_id)

    await probe(0)
    await until(lambda: container.record.health.status == "healthy")  # type: ignore[union-attr]
    assert container.record.ready_after is not None
    await probe(1)
    await until(lambda: container.record.health.status == "unhealthy")  # type: ignore[union-attr]


async def test_input_waits_for_the_start_and_ends_once(world: World, engine: Engine) -> None:
    container, _ = await engine.containers.create(
        "one", spec(isolation="container", stdin=True, stdin_once=True)
    )
    stdin = engine.containers.attach("one", replay=False).input()
    writing = asyncio.create_task(stdin.write(b"early"))
    await engine.containers.start("one")
    await writing
    await stdin.close()
    await until(lambda: bytes(world.host.agent.inputs[container.id, ""]) == b"early<EOF>")


async def test_names_are_published_before_the_process_runs(world: World, engine: Engine) -> None:
    container = await started(engine, isolation="container")
    address = container.record.endpoints["bridge"].ip
    (names,) = world.fabric.names.values()
    assert names == {address: ["one", container.record.short_id]}


# --- another engine ---


async def test_a_new_engine_adopts_what_runs(world: World) -> None:
    first = await world.engine()
    container = await started(first)
    agent = world.guests.agent
    agent.write(container.id, "one\n")
    await until(lambda: container.log.offset > 0)
    await first.close()
    agent.write(container.id, "two\n")
    second = await world.engine()
    adopted = second.containers.find("one")
    assert adopted.record.status == "running"
    agent.write(container.id, "three\n")
    agent.exit(container.id, 6)
    await until(lambda: adopted.record.status == "exited")
    assert adopted.record.exit_code == 6
    assert await text_of(adopted) == "one\ntwo\nthree\n"
    await until(lambda: is_clean(world))
    await second.close()


async def test_an_exit_while_nobody_looked_is_not_lost(world: World) -> None:
    first = await world.engine()
    container = await started(first)
    agent = world.guests.agent
    await first.close()
    agent.write(container.id, "last\n")
    agent.exit(container.id, 5)
    second = await world.engine()
    adopted = second.containers.find("one")
    await until(lambda: adopted.record.status == "exited")
    assert adopted.record.exit_code == 5 and await text_of(adopted) == "last\n"
    await second.close()


async def test_what_vanished_is_marked_with_a_reason_and_its_policy_applies(world: World) -> None:
    first = await world.engine()
    container = await started(first, restart=Restart("always"))
    await first.close()
    await world.guests.agents.pop(container.record.machine).close()
    second = await world.engine()
    adopted = second.containers.find("one")
    assert "lost while the daemon was down" in adopted.record.error
    await until(lambda: adopted.record.status == "running")
    await second.close()


async def test_what_has_no_owner_is_removed(world: World) -> None:
    first = await world.engine()
    await started(first, isolation="container")
    await first.close()
    from tests.unit.engine.twins import FakeAgent

    world.guests.agents["0123456789ab"] = FakeAgent()
    world.fabric.endpoints["stray"] = "10.0.0.1"
    second = await world.engine()
    assert "0123456789ab" not in world.guests.agents
    assert "stray" not in world.fabric.endpoints
    assert second.containers.find("one").record.status == "running"
    await second.close()


async def test_a_start_that_was_interrupted_is_ended(world: World) -> None:
    first = await world.engine()
    container = await started(first, isolation="container")
    container.record.started_ns = 0
    container.record.status = "starting"
    first.containers.save(container.record)
    world.host.agent.processes[container.id, ""].status = "created"
    await first.close()
    second = await world.engine()
    record = second.containers.find("one").record
    assert record.status == "exited" and "interrupted" in record.error
    assert not world.host.agent.processes
    await second.close()


async def test_a_state_that_cannot_be_read_is_said(world: World) -> None:
    first = await world.engine()
    await first.close()
    world.paths.database.write_bytes(b"not a database at all" * 100)
    with pytest.raises(Internal, match="state database"):
        await world.engine()


async def test_an_exec_that_cannot_start_does_not_stay_in_the_agent(
    world: World, engine: Engine
) -> None:
    container = await started(engine)
    agent = world.guests.agent
    agent.fail["StartExec"] = InvalidInput('exec: "x": executable file not found in $PATH')
    one = engine.execs.create(container, ExecSpec(["x"]))
    with pytest.raises(InvalidInput):
        await engine.execs.start(one)
    assert one.record.exit_code == 127
    await until(lambda: (container.id, one.record.id) not in agent.processes)


async def test_a_container_starts_again_though_its_image_was_removed(
    world: World, engine: Engine
) -> None:
    container = await started(engine)
    await engine.containers.stop("one", 0)
    world.images.removed = True
    with pytest.raises(NotFound, match="No such image"):  # and its layers were not kept
        await engine.containers.start("one")
    kept = world.paths.layers / "a.squashfs"
    kept.parent.mkdir(parents=True)
    kept.touch()
    await engine.containers.start("one")
    assert container.record.status == "running"


async def test_layers_go_with_the_last_container_of_a_removed_image(
    world: World, engine: Engine
) -> None:
    for name in ("one", "two"):
        await engine.containers.create(name, spec())
    before = len(world.images.kept)
    await engine.containers.remove("one")
    assert len(world.images.kept) == before  # the image has them
    world.images.removed = True
    await engine.containers.remove("two")
    assert world.images.kept[before:] == [[]]
