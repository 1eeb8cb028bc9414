"""The built guest image: two builds are the same bytes, it boots, and it starts only as it was built."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.errors import HybridError
from hybrid.guest.build import build_guest
from hybrid.guest.image import GuestImage
from hybrid.guest.imagebuild import build_image
from hybrid.paths import Paths, data_dir
from hybrid.wire.messages import Configure, Shutdown, StartExec
from tests.bareguest import BareGuest, bare_guest
from tests.built import BUILT

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def built() -> GuestImage:
    return build_guest(BUILT, print)


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[..., BareGuest]]:
    """Starts an image; it ends with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda image, *extra: stack.enter_context(bare_guest(image, tmp_path, *extra))


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    """Each fetches and compiles everything anew, from a copy of the sources in a place of its own."""
    sources = tmp_path / "sources"
    for part in ("hybrid", "images"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(data_dir() / part, sources / part, ignore=ignore)
    images = [build_elsewhere(sources, tmp_path / name) for name in ("one", "some/where/else")]
    for name in ("vmlinuz", "initrd", "root", "guest.json"):
        first, second = [(directory / name).read_bytes() for directory in images]
        assert first == second, name


def build_elsewhere(sources: Path, place: Path) -> Path:
    """A whole build by a process of its own; the directory of the image."""
    shutil.copytree(sources, place)
    command = "import sys, pathlib; from hybrid.guest.build import *; "
    command += "print(build_guest(Paths.of(pathlib.Path('root')), lambda text: None).directory)"
    done = subprocess.run(
        [sys.executable, "-B", "-c", command], cwd=place, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def test_a_second_build_does_nothing(built: GuestImage) -> None:
    said: list[str] = []
    assert build_guest(BUILT, said.append) == built
    assert not said


def test_the_root_has_nothing_it_should_not(built: GuestImage, tmp_path: Path) -> None:
    listing = subprocess.run(
        ["unsquashfs", "-lln", built.root], capture_output=True, text=True, check=True
    ).stdout
    entries = [line.split(maxsplit=5) for line in listing.splitlines() if "squashfs-root" in line]
    files = {entry[5].partition(" -> ")[0].removeprefix("squashfs-root/") for entry in entries}
    regular = {entry[5].removeprefix("squashfs-root/") for entry in entries if entry[0][0] == "-"}
    assert {entry[1] for entry in entries} == {"0/0"}
    assert not [entry for entry in entries if re.search("[sStT]", entry[0][1:])], "set-id bits"
    programs = {name for name in regular if name.startswith(("usr/bin/", "usr/sbin/"))}
    assert {re.sub(r"3\.\d+$", "", name) for name in programs} == {
        "usr/bin/busybox",
        "usr/bin/crun",
        "usr/bin/python",
    }
    assert {"usr/lib/hybrid/agent.pyz", "usr/lib/hybrid/init", "usr/lib/hybrid/probe"} <= files
    assert built.root.stat().st_size < 60 << 20


async def test_it_boots_to_an_agent_that_answers(
    built: GuestImage, boot: Callable[..., BareGuest]
) -> None:
    booted = boot(built)
    client = await booted.connect(120)
    facts = await client.call(
        Configure("m", "m", 1_800_000_000 * 10**9, os.urandom(64), lock_down=True), timeout=60
    )
    assert facts.kernel == built.release
    assert facts.cgroup == "v2"
    assert facts.runtime.startswith("crun 1.")
    assert "[confidentiality]" in facts.lockdown
    with contextlib.suppress(HybridError):
        await client.call(Shutdown(timeout=1))
    assert booted.qemu.wait(60) == 0
    assert "cannot" not in booted.log()


async def test_without_its_agent_the_guest_powers_off(
    built: GuestImage, boot: Callable[..., BareGuest]
) -> None:
    booted = boot(built)
    client = await booted.connect(120)
    process = {"args": ["killall", "-9", "python3"], "cwd": "/", "env": ["PATH=/usr/bin"]}
    with contextlib.suppress(HybridError):
        await client.call(StartExec("", "end", process), timeout=30)
    assert booted.qemu.wait(60) == 0
    assert "the agent was killed by signal 9; powering off" in booted.log()


async def test_a_changed_root_does_not_start(
    built: GuestImage, boot: Callable[..., BareGuest], tmp_path: Path
) -> None:
    """A flipped bit in the interpreter's file stops the machine: the verified root is all it trusts."""
    changed = tmp_path / "root"
    shutil.copyfile(built.root, changed)
    with changed.open("r+b") as file:
        for block in range(1, built.root.stat().st_size // 4096 - 200, 4):
            file.seek(block * 4096 + 100)
            byte = file.read(1)
            file.seek(block * 4096 + 100)
            file.write(bytes([byte[0] ^ 1]))
    booted = boot(replace(built, root=changed))
    with pytest.raises(HybridError):
        await booted.connect(60)
    booted.qemu.wait(60)
    assert "verity" in booted.log()


async def test_a_changed_root_hash_does_not_start(
    built: GuestImage, boot: Callable[..., BareGuest]
) -> None:
    wrong = re.sub(r"hybrid\.roothash=\w+", f"hybrid.roothash={'0' * 64}", built.command_line)
    booted = boot(replace(built, command_line=wrong))
    with pytest.raises(HybridError):
        await booted.connect(60)
    assert booted.qemu.wait(60) is not None


@pytest.mark.parametrize("name", ["busybox", "app"])
def test_two_builds_of_an_image_are_the_same_bytes(tmp_path: Path, name: str) -> None:
    recipe = data_dir() / "images" / name
    one = build_image(Paths.of(tmp_path / "one"), recipe, tmp_path / "one.tar", print)
    two = build_image(Paths.of(tmp_path / "two"), recipe, tmp_path / "two.tar", print)
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as archive:
        assert {"index.json", "manifest.json", "oci-layout"} <= set(archive.getnames())
