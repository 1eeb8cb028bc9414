"""Is KVM real? Answered by booting a guest, once per boot of the host.

/dev/kvm may exist, open and take ioctls while a stock kernel still hangs under it (nested and
para-virtualised clouds). So the guest kernel itself is booted under KVM, without a root file
system: it must get as far as missing that, panic, and so end QEMU, before a deadline. The answer is
kept in the run directory beside the host's boot id, unless QEMU did not even start: that (no program,
no memory, KVM held by another hypervisor) may change, and is asked again quickly.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

DEVICE = Path("/dev/kvm")
DEADLINE = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PANICKED = b"Kernel panic"
_MACHINES = {"x86_64": "q35", "aarch64": "virt"}
_CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}


@dataclass(frozen=True)
class Answer:
    """Whether guests can run under KVM, and why not. ``lasting``: as long as the host is up."""

    usable: bool
    reason: str
    lasting: bool = True


def qemu(arch: str) -> str:
    """The name of the QEMU program for ``arch``."""
    return f"qemu-system-{arch}"


def probe_command(program: str, arch: str, kernel: Path) -> list[str]:
    """A QEMU that boots ``kernel`` under KVM, prints its console, and ends with the panic."""
    return [
        program,
        *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-machine", f"{_MACHINES.get(arch, 'virt')},accel=kvm", "-cpu", "host"),
        *("-m", "256", "-smp", "1", "-serial", "stdio", "-monitor", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-kernel", str(kernel)),
        *("-append", f"console={_CONSOLES.get(arch, 'ttyS0')} panic=-1"),
    ]


def remembered(cache: Path) -> Answer | None:
    """The answer of an earlier probe since the host was booted."""
    try:
        stored = json.loads(cache.read_text())
        if stored.pop("boot_id") == _BOOT_ID.read_text().strip():
            return Answer(**stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


async def probe(
    kernel: Path, arch: str, cache: Path, *, device: Path = DEVICE, deadline: float = DEADLINE
) -> Answer:
    """Whether guests of ``kernel`` can run under KVM; remembered in ``cache`` until the host
    reboots.
    """
    closed = _refusal(device)
    if closed is not None:
        return Answer(False, closed)
    answer = remembered(cache)
    if answer is None:
        answer = await _ask(kernel, arch, deadline)
        if answer.lasting:
            cache.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            stored = asdict(answer) | {"boot_id": _BOOT_ID.read_text().strip()}
            cache.write_text(json.dumps(stored))
    return answer


def group(device: Path = DEVICE) -> int | None:
    """The group that a guest's QEMU must be in to open ``device``; None if any user may, or nobody."""
    try:
        found = device.stat()
    except FileNotFoundError:
        return None
    anybody, members = found.st_mode & 0o006 == 0o006, found.st_mode & 0o060 == 0o060
    return found.st_gid if members and not anybody else None


def _refusal(device: Path) -> str | None:
    """Why guests, whose QEMUs are nobody in particular, cannot open ``device``. Not worth
    remembering.
    """
    if not device.exists():
        return f"this host has no {device}"
    mode = device.stat().st_mode
    if mode & 0o006 != 0o006 and mode & 0o060 != 0o060:
        return f"{device} is closed to guests: chgrp kvm {device} && chmod 0660 {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"no permission to open {device}"
    return None


async def _ask(kernel: Path, arch: str, deadline: float) -> Answer:
    program = shutil.which(qemu(arch))
    if program is None:
        return Answer(False, f"{qemu(arch)} is not installed", lasting=False)
    # A guest that hangs must not outlive us.
    until_we_end = ["/usr/bin/setpriv", "--pdeathsig", "KILL"]
    return await _boot([*until_we_end, *probe_command(program, arch, kernel)], deadline)


async def _boot(command: list[str], deadline: float) -> Answer:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), deadline)
    except TimeoutError:
        return Answer(False, f"a guest kernel hangs under KVM here (no end within {deadline:g} s)")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if _PANICKED in output:
        return Answer(True, "")
    last = (output.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
    return Answer(False, f"a guest does not boot under KVM here: {last[:200]}", lasting=False)
