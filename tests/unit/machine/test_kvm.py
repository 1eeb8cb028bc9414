"""The KVM probe, with programs that behave as QEMU does under good and bad KVM."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hybrid.machine import kvm
from hybrid.machine.kvm import Answer

ARCH = "x86_64"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm-device"
    path.touch()
    path.chmod(0o666)
    return path


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "bin" / kvm.qemu(ARCH)
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


async def ask(tmp_path: Path, device: Path, deadline: float = 5) -> Answer:
    return await kvm.probe(
        Path("/g/vmlinuz"), ARCH, tmp_path / "run" / "kvm.json", device=device, deadline=deadline
    )


async def test_a_kernel_that_gets_to_its_panic_runs(
    tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "echo 'Kernel panic - not syncing: VFS'")
    assert await ask(tmp_path, device) == Answer(True, "")


async def test_a_kernel_that_hangs_does_not(
    tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "echo 'Linux version'; exec sleep 60")
    started = time.monotonic()
    answer = await ask(tmp_path, device, deadline=0.2)
    assert time.monotonic() - started < 5
    assert answer == Answer(False, "a guest kernel hangs under KVM here (no end within 0.2 s)")
    monkeypatch.setenv("PATH", str(tmp_path))  # that is remembered
    assert await ask(tmp_path, device) == answer


async def test_what_qemu_says_is_the_reason(
    tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "echo 'failed to initialize kvm: Invalid argument' >&2; exit 1")
    answer = await ask(tmp_path, device)
    assert not answer.usable
    assert answer.reason.endswith("failed to initialize kvm: Invalid argument")
    # Another hypervisor may have let go of KVM the next time.
    (tmp_path / "bin" / kvm.qemu(ARCH)).write_text("#!/bin/sh\necho 'Kernel panic'\n")
    assert (await ask(tmp_path, device)).usable


async def test_no_device(tmp_path: Path) -> None:
    answer = await ask(tmp_path, tmp_path / "none")
    assert answer == Answer(False, f"this host has no {tmp_path / 'none'}")


async def test_no_qemu(tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (await ask(tmp_path, device)).reason == "qemu-system-x86_64 is not installed"
    install(tmp_path, monkeypatch, "echo 'Kernel panic'")
    assert (await ask(tmp_path, device)).usable


async def test_the_answer_is_remembered_until_the_host_reboots(
    tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "echo 'Kernel panic'")
    await ask(tmp_path, device)
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing to ask any more
    assert (await ask(tmp_path, device)).usable
    cache = tmp_path / "run" / "kvm.json"
    cache.write_text(json.dumps({"usable": True, "reason": "", "boot_id": "another"}))
    assert not (await ask(tmp_path, device)).usable


@pytest.mark.parametrize(
    ("mode", "usable", "group"),
    [
        (0o600, False, False),
        (0o640, False, False),
        (0o660, True, True),
        (0o664, True, True),
        (0o666, True, False),
    ],
)
async def test_guests_must_be_able_to_open_the_device(
    tmp_path: Path,
    device: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    usable: bool,
    group: bool,
) -> None:
    install(tmp_path, monkeypatch, "echo 'Kernel panic'")
    device.chmod(mode)
    answer = await ask(tmp_path, device)
    assert answer.usable is usable
    if not usable:
        assert answer.reason.endswith(f"chgrp kvm {device} && chmod 0660 {device}")
    assert kvm.group(device) == (device.stat().st_gid if group else None)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"boot_id": 1}'])
def test_a_broken_cache_is_no_answer(tmp_path: Path, text: str) -> None:
    (tmp_path / "kvm.json").write_text(text)
    assert kvm.remembered(tmp_path / "kvm.json") is None


def test_the_probe_boots_the_kernel_itself_behind_the_filter() -> None:
    line = kvm.probe_command("/usr/bin/q", ARCH, Path("/g/vmlinuz"))
    assert line[line.index("-kernel") + 1] == "/g/vmlinuz"
    assert "accel=kvm" in line[line.index("-machine") + 1]
    assert line[line.index("-sandbox") + 1].startswith("on,")
