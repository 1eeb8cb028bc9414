"""The machine itself: its facts, and a guest's identity, clock, randomness and lock-down."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import struct
import time
from pathlib import Path

from hybrid.agent import cgroups
from hybrid.errors import Internal, InvalidInput, Unsupported
from hybrid.wire.messages import Configure, MachineFacts

_LIBRARY = Path("/usr/lib/hybrid")
_RUNTIME = _LIBRARY / "runtime"  # "crun 1.21", written when the guest image was built
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_SYSCTL = re.compile(r"[a-z0-9_]+(\.[a-zA-Z0-9_-]+)+")
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9])?")

# include/uapi/linux/random.h
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_LARGEST_ENTROPY = 4096
_NAME_FILE_MAX = 64 << 10


def configure(request: Configure) -> None:
    """Gives a guest its identity. In this order: randomness before anything draws on it, lock-down last."""
    if not _HOSTNAME.fullmatch(request.hostname):
        raise InvalidInput(f"not a hostname: {request.hostname!r}")
    reseed(request.entropy)
    if request.realtime_ns:
        set_time(request.realtime_ns)
    socket.sethostname(request.hostname)
    Path("/run/machine-id").write_text(f"{os.urandom(16).hex()}\n")
    for name, value in request.sysctls.items():
        set_sysctl(name, value)
    if request.lock_down:
        lock_down()


def reseed(entropy: bytes) -> None:
    """Mixes ``entropy`` in, credits it and makes the generator use it at once."""
    if len(entropy) > _LARGEST_ENTROPY:
        raise InvalidInput(f"more than {_LARGEST_ENTROPY} bytes of entropy")
    if not entropy:
        return
    with open("/dev/urandom", "wb", buffering=0) as pool:
        fcntl.ioctl(
            pool, _RNDADDENTROPY, struct.pack("=ii", 8 * len(entropy), len(entropy)) + entropy
        )
        fcntl.ioctl(pool, _RNDRESEEDCRNG)


def set_time(realtime_ns: int) -> None:
    """Sets the wall clock."""
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, realtime_ns)
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"cannot set the clock to {realtime_ns} ns: {error}") from error


def set_sysctl(name: str, value: str) -> None:
    """Writes one kernel setting."""
    if not _SYSCTL.fullmatch(name):
        raise InvalidInput(f"not the name of a sysctl: {name!r}")
    try:
        Path("/proc/sys", name.replace(".", "/")).write_text(f"{value}\n")
    except OSError as error:
        raise InvalidInput(f"sysctl {name}: {error.strerror}") from error


def lock_down() -> None:
    """From here on root of this machine cannot change its kernel; it holds until power-off.

    The modules that containers need were loaded by the guest's init. Idempotent.
    """
    set_sysctl("kernel.modules_disabled", "1")
    try:
        if "[confidentiality]" not in _LOCKDOWN.read_text():
            _LOCKDOWN.write_text("confidentiality")
    except FileNotFoundError:
        raise Unsupported("this kernel has no lockdown (CONFIG_SECURITY_LOCKDOWN_LSM)") from None
    except OSError as error:
        raise Internal(f"lockdown: {error.strerror}") from error


def rescan() -> None:
    """Has the kernel look for devices that were added unseen."""
    Path("/sys/bus/pci/rescan").write_text("1")


def recorded_runtime() -> str:
    """The runtime's version as noted in the guest image; "" elsewhere."""
    with contextlib.suppress(OSError):
        return _RUNTIME.read_text().strip()
    return ""


def facts(
    layout: cgroups.Layout,
    runtime: str,
    features: list[str],
    name_files: dict[str, str],
    agent_boot: str,
) -> MachineFacts:
    """What the kernel says now. The boot id is drawn at its first reading, so never before a clone has woken."""
    memory = _memory()
    lockdown = ""
    with contextlib.suppress(OSError):
        lockdown = _LOCKDOWN.read_text().strip()
    name = os.uname()
    return MachineFacts(
        kernel=name.release,
        architecture=name.machine,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        cpus=os.cpu_count() or 1,
        memory=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        cgroup=layout,
        runtime=runtime,
        realtime_ns=time.time_ns(),
        agent_boot=agent_boot,
        lockdown=lockdown,
        agent_rss=int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        features=features,
        name_files=name_files,
    )


def name_files() -> dict[str, str]:
    """What a container in this machine's own network needs to find names as the machine does."""
    found = {}
    for path in ("/etc/resolv.conf", "/etc/hosts"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            found[path] = file.read(_NAME_FILE_MAX).decode(errors="replace")
    return found


def _memory() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        found[name] = int(fields[0]) * (1024 if fields[1:] == ["kB"] else 1)
    return found
