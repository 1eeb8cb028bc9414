"""What design has to know about this host, found out when a guest is to be made."""

from __future__ import annotations

import platform
from pathlib import Path

from hybrid.errors import Unavailable
from hybrid.machine import kvm
from hybrid.machine.design import HostFacts
from hybrid.machine.evidence import status_fields
from hybrid.machine.profile import Accelerator
from hybrid.machine.provider import MachineRequest
from hybrid.units import MIB

_VHOST_VSOCK = Path("/dev/vhost-vsock")
_MEMORY = Path("/proc/meminfo")


async def gather(request: MachineRequest, wanted: Accelerator, cache: Path) -> HostFacts:
    """The facts for a guest that is to have the accelerator ``wanted`` (AUTO: as its profile says).

    Unavailable, with the reason, if that must be KVM and there is none. ``cache`` remembers KVM's probe.
    """
    if wanted is Accelerator.AUTO:
        wanted = request.profile.accelerator
    arch = platform.machine()
    chosen = Accelerator.TCG
    if wanted is not Accelerator.TCG and request.boot is not None:
        answer = await kvm.probe(request.boot.kernel, arch, cache)
        if answer.usable:
            chosen = Accelerator.KVM
        elif wanted is Accelerator.KVM:
            raise Unavailable(f"machine {request.name}: no KVM: {answer.reason}")
    return HostFacts(arch, chosen, vsock=_VHOST_VSOCK.exists(), kvm_group=kvm.group())


def check_memory(request: MachineRequest, meminfo: Path = _MEMORY) -> None:
    """Refuses a guest that the host cannot back: when it filled up, the kernel would kill some process."""
    available = int(status_fields(meminfo.read_text())["MemAvailable"].split()[0]) << 10
    if request.memory > available:
        raise Unavailable(
            f"not enough memory for machine {request.name}: it wants {request.memory // MIB} MiB,"
            f" the host has {available // MIB} MiB available"
        )
