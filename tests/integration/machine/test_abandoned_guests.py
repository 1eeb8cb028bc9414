"""Guests whose owner was killed: at any step of making them, and later.

The embedded driver holds its root until the process ends, so the owners are processes of their own; and this module is
the first of its folder, before one of the tests is such an owner.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from .conftest import Setting

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

OWNER = """
import asyncio, os, signal, sys
from pathlib import Path
from hybrid.machine.providers.libvirt import LibvirtProvider
from hybrid.paths import Paths
from tests.built import BUILT
from tests.integration.machine.conftest import Setting, agent
from hybrid.guest.image import current

async def main(root, machine_id, then):
    setting = Setting(Paths.of(Path(root)), current(BUILT))
    provider = LibvirtProvider(setting.paths)
    await provider.open()
    if then == "create":
        await provider.create(setting.request(id=machine_id))
    (status,) = await provider.list()
    async with agent(provider, status.id) as client:
        print(status.id, status.running, client.hello.boot, flush=True)
    uid = (await provider.evidence(status.id))["uid"]
    assert Path(f"/proc/{provider._guests[status.id].pid}").stat().st_uid == uid
    if then != "destroy":
        os.kill(os.getpid(), signal.SIGKILL)
    await provider.destroy(status.id)
    await provider.close()

asyncio.run(main(*sys.argv[1:]))
"""


HALF_MADE = """
import asyncio, os, signal, sys
from pathlib import Path
from hybrid.guest.image import current
from hybrid.machine.hypervisor import Hypervisor
from hybrid.machine.providers.libvirt import LibvirtProvider
from hybrid.paths import Paths
from tests.built import BUILT
from tests.integration.machine.conftest import Setting

async def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main(root, then):
    setting = Setting(Paths.of(Path(root)), current(BUILT))
    provider = LibvirtProvider(setting.paths)
    await provider.open()
    if then == "die":
        Hypervisor.resume = die
        await provider.create(setting.request())
    print(await provider.list())
    await provider.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def run_owner(top: Path, script: str, *arguments: str) -> tuple[int | None, str]:
    """Exit code and output of a process that owns the setting's provider for a while."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, *arguments), cwd=top, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_a_guest_whose_owner_died_while_making_it_is_removed(
    setting: Setting, top: Path
) -> None:
    root = str(setting.paths.root)
    assert (await run_owner(top, HALF_MADE, root, "die"))[0] == -signal.SIGKILL
    assert setting.leftovers() != []
    assert await run_owner(top, HALF_MADE, root, "look") == (0, "[]\n")
    assert setting.leftovers() == []


# Dies at the named step: the how-manieth call of a function, before or after it.
WALK = """
import asyncio, os, signal, sys
from pathlib import Path
from hybrid.guest.image import current
from hybrid.machine import memory
from hybrid.machine.hypervisor import Hypervisor
from hybrid.machine.providers.cloned import ClonedProvider
from hybrid.paths import Paths
from tests.built import BUILT
from tests.integration.machine.conftest import Setting

def dying(owner, name, number, when):
    real, calls = getattr(owner, name), []
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    def call(*arguments, **more):
        calls.append(name)
        if len(calls) < number:
            return real(*arguments, **more)
        if when == "before":
            die()
        result = real(*arguments, **more)
        if not asyncio.iscoroutine(result):
            die()
        async def then():
            await result
            die()
        return then()
    setattr(owner, name, call)

async def main(root, *step):
    setting = Setting(Paths.of(Path(root)), current(BUILT))
    if step:
        name, number, when = step
        owner = Hypervisor if hasattr(Hypervisor, name) else memory
        dying(owner, name, int(number), when)
    provider = ClonedProvider(setting.paths)
    await provider.open()
    if step:
        await provider.create(setting.request(shares_later=name == "copy"))
    print(await provider.list(), provider.templates())
    await provider.close()

asyncio.run(main(*sys.argv[1:]))
"""

TEMPLATE = [
    "create 1 before",
    "create 1 after",
    "resume 1 after",
    "freeze 1 after",
    "save_state 1 after",
    "seal 1 after",
    "seal 2 after",
]
CLONE = ["copy 1 before", "copy 1 after", "create 2 before", "create 2 after", "load_state 1 after"]


@pytest.mark.parametrize("step", TEMPLATE + CLONE)
async def test_an_owner_killed_while_it_clones_leaves_nothing(
    setting: Setting, top: Path, step: str
) -> None:
    root = str(setting.paths.root)
    assert (await run_owner(top, WALK, root, *step.split()))[0] == -signal.SIGKILL
    assert await run_owner(top, WALK, root) == (0, "[] []\n")
    assert setting.leftovers() == []


async def test_guests_outlive_their_owner_and_are_adopted(setting: Setting, top: Path) -> None:
    machine_id = setting.request().id

    async def owner(then: str) -> str:
        code, output = await run_owner(top, OWNER, str(setting.paths.root), machine_id, then)
        assert code == (0 if then == "destroy" else -signal.SIGKILL)
        return output

    first = await owner("create")
    assert first.startswith(f"{machine_id} True ")
    assert await owner("leave") == first
    assert await owner("destroy") == first
    assert setting.leftovers() == []
