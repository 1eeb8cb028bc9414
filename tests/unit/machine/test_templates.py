"""The table of templates, and memory that has no name."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.errors import NotFound, Unavailable
from hybrid.machine import design, domain, memory, profile
from hybrid.machine.design import Frozen, HostFacts, Placement
from hybrid.machine.memory import Backing
from hybrid.machine.profile import Accelerator
from hybrid.machine.provider import Boot, Disk, MachineRequest, Nic, Origin
from hybrid.machine.template import Limits, Template, Templates, check_digest, key_of

SIZE = 1 << 20
FACTS = HostFacts("x86_64", Accelerator.TCG, vsock=True)


def made(key: str = "k", **changes: object) -> Template:
    """A template of a few bytes."""
    ram, state = memory.create("ram", SIZE), memory.create("state")
    os.pwrite(ram, b"memory", 4096)
    os.write(state, b"devices")
    memory.seal(ram)
    memory.seal(state)
    template = Template(key, "default", SIZE, 1, ram, state, check_digest(state))
    for name, value in changes.items():
        setattr(template, name, value)
    return template


class Maker:
    """Makes templates, and counts."""

    def __init__(self, fails: bool = False) -> None:
        self.calls = 0
        self.fails = fails

    async def __call__(self) -> Template:
        self.calls += 1
        await asyncio.sleep(0)
        if self.fails:
            raise Unavailable("no such thing")
        return made()


async def test_one_is_made_for_all_that_want_it() -> None:
    table, maker = Templates(Limits()), Maker()
    taken = await asyncio.gather(*(table.take("k", maker, common=True) for _ in range(5)))
    assert maker.calls == 1
    first = taken[0]
    assert first is not None and all(one is first for one in taken) and first.users == 5
    table.close()
    assert table.all() == [] and memory.is_sealed(first.memory)  # those that use it go on
    for _ in range(5):
        table.release(first)
    with pytest.raises(OSError):
        os.fstat(first.memory)


async def test_an_uncommon_shape_gets_one_at_its_second_use() -> None:
    table, maker = Templates(Limits()), Maker()
    assert await table.take("k", maker, common=False) is None
    assert "first of its size" in table.why_not("k")
    assert await table.take("k", maker, common=False) is not None


async def test_what_fails_is_not_tried_again_at_once(caplog: pytest.LogCaptureFixture) -> None:
    table, maker = Templates(Limits()), Maker(fails=True)
    assert await table.take("k", maker, common=True) is None
    assert await table.take("k", maker, common=True) is None
    assert maker.calls == 1
    assert "no such thing" in table.why_not("k") and "no such thing" in caplog.text


async def test_nothing_is_made_where_it_is_switched_off() -> None:
    table, maker = Templates(Limits(enabled=False)), Maker()
    assert await table.take("k", maker, common=True) is None
    assert maker.calls == 0 and "daemon.yaml" in table.why_not("k")


async def test_the_oldest_goes_when_there_are_too_many() -> None:
    table = Templates(Limits(max_count=1))
    for key in ("a", "b"):

        async def build(key: str = key) -> Template:
            return made(key)

        taken = await table.take(key, build, common=True)
        assert taken is not None
        table.release(taken)
    assert [one.key for one in table.all()] == ["b"]
    with pytest.raises(NotFound):
        table.remove("a")
    assert table.remove("b").key == "b"
    with pytest.raises(NotFound):
        table.remove("")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"made": time.time() - 3700}, "old"),
        ({"size": SIZE * 2}, "size"),
        ({"digest": "0" * 64}, "checksum"),
    ],
)
async def test_each_is_checked_before_use(
    changes: dict[str, object], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    table, maker = Templates(Limits(max_age=3600)), Maker()
    damaged = made(**changes)

    async def build() -> Template:
        return damaged

    await table.take("k", build, common=True)
    again = await table.take("k", maker, common=True)
    assert (again is damaged) == (not problem)
    assert maker.calls == (1 if problem else 0)
    assert problem in caplog.text


def test_unsealed_memory_is_no_template() -> None:
    template = made()
    template.memory = memory.create("open", SIZE)
    assert "sealed" in template.problem(3600)


def test_a_state_that_was_not_saved() -> None:
    with pytest.raises(Unavailable):
        check_digest(memory.create("empty"))


def request(tmp_path: Path) -> MachineRequest:
    for name in ("kernel", "initrd", "root"):
        (tmp_path / name).write_bytes(b"x")
    boot = Boot(tmp_path / "kernel", tmp_path / "initrd", tmp_path / "root", "quiet")
    shape = profile.load("default")
    return MachineRequest("0" * 32, "db", shape, shape.memory, shape.cpus, boot)


def test_the_key_names_all_that_a_template_depends_on(tmp_path: Path) -> None:
    wanted = request(tmp_path)
    keys = {key_of(wanted, FACTS, ("9", "7"))}
    keys.add(key_of(replace(wanted, memory=wanted.memory * 2), FACTS, ("9", "7")))
    keys.add(key_of(replace(wanted, cpus=2), FACTS, ("9", "7")))
    keys.add(key_of(replace(wanted, profile=profile.load("small")), FACTS, ("9", "7")))
    keys.add(key_of(wanted, replace(FACTS, accelerator=Accelerator.KVM), ("9", "7")))
    keys.add(key_of(wanted, FACTS, ("9", "8")))
    (tmp_path / "new").write_bytes(b"another image")
    (tmp_path / "new").rename(tmp_path / "root")
    keys.add(key_of(wanted, FACTS, ("9", "7")))
    assert len(keys) == 7
    # What only the one machine has does not change it.
    named = replace(wanted, id="1" * 32, name="web", nics=(Nic("02:00:00:00:00:01", "tap0"),))
    assert key_of(named, FACTS, ("9", "7")) in keys


def test_a_clone_has_the_devices_of_its_template(tmp_path: Path) -> None:
    placement = Placement("abcd0123", 1_900_000_001, tmp_path / "a", tmp_path / "c")
    wanted = replace(
        request(tmp_path),
        disks=(Disk("d", tmp_path / "d", True),),
        nics=(Nic("02:00:00:00:00:01", "tap0"),),
    )
    template = design.design(wanted, FACTS, placement, Frozen(Backing("/proc/1/fd/3", True)))
    origin = Origin("clone", "k", 1, 2, "private")
    clone = design.design(wanted, FACTS, placement, Frozen(Backing("/proc/1/fd/3", False), origin))
    assert clone.devices == template.devices
    text = clone.xml()
    assert "<kernel>" not in text and "<kernel>" in template.xml()
    assert "-incoming" in text and "-incoming" not in template.xml()
    assert "share=off" in text and "share=on" in template.xml()
    assert '<memballoon model="none"' in text  # it would punch holes into the template's memory
    origin = Origin("clone", "k", 1, 2, "copied")
    copied = design.design(wanted, FACTS, placement, Frozen(Backing("/proc/1/fd/3", True), origin))
    assert copied.devices[:-1] == template.devices[:-1]
    assert '<memballoon model="virtio"' in copied.xml()
    assert "vsock" not in text and "tap0" not in text and "memfd" not in text
    running = domain.read(text)
    assert running is not None and running.origin is not None
    assert running.origin.memory == "private"


def test_sealed_memory_cannot_be_changed_but_mapped() -> None:
    descriptor = memory.create("m", SIZE)
    os.pwrite(descriptor, b"x", 0)
    memory.seal(descriptor)
    for change in (
        lambda: os.pwrite(descriptor, b"y", 0),
        lambda: os.ftruncate(descriptor, 0),
    ):
        with pytest.raises(PermissionError):
            change()


def test_a_copy_has_the_content_and_the_holes() -> None:
    source = memory.create("m", 64 << 20)
    os.pwrite(source, b"begin", 0)
    os.pwrite(source, b"end", (64 << 20) - 3)
    copy = memory.copy(source, "c")
    assert memory.digest(copy) == memory.digest(source)
    assert memory.used(copy) == memory.used(source) < 1 << 20
    os.pwrite(copy, b"other", 0)
    assert os.pread(source, 5, 0) == b"begin"
    os.close(source)
    os.close(copy)


@pytest.mark.root
def test_memory_is_lent_to_one_user_only() -> None:
    descriptor = memory.create("m", SIZE)
    os.pwrite(descriptor, b"lent", 0)
    with memory.lent(descriptor, 1_900_000_007, 1_900_000_007) as path:

        def as_user(uid: int) -> str:
            reading = subprocess.run(
                ["head", "-c", "4", path],
                user=uid,
                group=uid,
                extra_groups=(),
                capture_output=True,
                check=False,
            )
            return reading.stdout.decode()

        assert as_user(1_900_000_007) == "lent"
        assert as_user(1_900_000_008) == ""
    assert not os.path.exists(path)
    os.close(descriptor)
