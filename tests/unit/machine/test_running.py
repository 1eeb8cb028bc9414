"""How a guest's end is told, and whose process is whose."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from hybrid.machine.console import Console, ConsoleLog
from hybrid.machine.hypervisor import Ended
from hybrid.machine.orphans import is_dead_orphan
from hybrid.machine.running import RunningGuest, is_qemu_of, read_pid

NAME = "hybrid-0123abcd-fedcba987654"


def guest(tmp_path: Path, ended: list[str]) -> RunningGuest:
    console = Console(tmp_path / "s", ConsoleLog(tmp_path / "console.log", 1 << 16))
    return RunningGuest("id", NAME, 7, 7, console, lambda one: ended.append(one.ending))


async def dummy(name: str) -> asyncio.subprocess.Process:
    """A process with QEMU's kind of command line."""
    script = "import time; time.sleep(60)"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, "-name", f"guest={name},debug-threads=on"
    )


async def test_a_killed_process_ends_the_guest_even_if_libvirt_never_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.machine.running._LIBVIRT_LATE", 0.01)
    ended: list[str] = []
    one = guest(tmp_path, ended)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", "import time; time.sleep(60)", "-name", f"guest={NAME}"],
        os.environ,
    )
    while not Path(f"/proc/{pid}/cmdline").read_text().startswith(sys.executable):
        await asyncio.sleep(0.01)
    assert one.watch(pid)
    assert one.kill()
    await asyncio.wait_for(one.dead.wait(), 5)
    await asyncio.wait_for(one.stopped.wait(), 5)
    assert ended == ["killed: its QEMU process got signal 9"]
    assert not one.kill()


async def test_somebody_elses_process_is_not_watched(tmp_path: Path) -> None:
    one = guest(tmp_path, [])
    assert not one.watch(os.getpid())
    process = await dummy("hybrid-0123abcd-other")
    assert not one.watch(process.pid)
    process.kill()
    await process.wait()
    assert not one.watch(process.pid)
    assert not one.kill()


@pytest.mark.parametrize(
    ("how", "console", "ending"),
    [
        (Ended.SHUTDOWN, b"", "shutdown: the guest switched itself off"),
        (Ended.CRASHED, b"", "crashed: its kernel reported a panic"),
        (Ended.FAILED, b"", "killed: its QEMU process died"),
        (
            Ended.SHUTDOWN,
            b"[ 1.0] Kernel panic - not syncing: No init!\x1b[0m\r\n[ 1.1] CPU: 0\r\n",
            "crashed: Kernel panic - not syncing: No init! [0m",
        ),
    ],
)
async def test_endings(tmp_path: Path, how: Ended, console: bytes, ending: str) -> None:
    ended: list[str] = []
    one = guest(tmp_path, ended)
    one.console.log.append(console)
    one.ended(how)
    one.ended(Ended.FAILED)
    await asyncio.wait_for(one.stopped.wait(), 5)
    assert ended == [ending]
    assert ending in repr(one)


def test_which_qemu_is_whose() -> None:
    line = ["/usr/bin/qemu-system-x86_64", "-name", f"guest={NAME},debug-threads=on", "-S"]
    assert is_qemu_of(NAME, line)
    assert not is_qemu_of(NAME[:-1], line)
    assert not is_qemu_of(NAME, [])
    assert not is_qemu_of(NAME, ["-name"])
    assert not is_qemu_of(NAME, ["vi", f"guest={NAME}"])


def test_pid_files(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert read_pid(file) is None
    file.write_text("")
    assert read_pid(file) is None
    file.write_text("123")
    assert read_pid(file) == 123


@pytest.mark.parametrize(
    ("stat", "orphan"),
    [
        ("50 (qemu-system-x86) Z 10 49 49 0", True),
        ("50 (qemu-system-x86) S 10 49 49 0", False),  # alive
        ("50 (qemu-system-x86) Z 11 49 49 0", False),  # somebody else's child
        ("50 (qemu-system-x86) Z 10 50 50 0", False),  # our own, in a new session
        ("50 (qemu-system-x86) Z 10 50 9 0", False),  # our own, in our session
        ("50 (python3) Z 10 49 49 0", False),
        ("50 (a) Z 10 49 49 0 (qemu-system-x86) S 1 1 1", False),
        ("", False),
    ],
)
def test_only_what_libvirt_detached_is_reaped(stat: str, orphan: bool) -> None:
    assert is_dead_orphan(stat, pid=10, session=9) is orphan
