"""Limits: what a request says in Docker's terms, as the OCI ``linux.resources`` that crun turns
into cgroup files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from hybrid.errors import InvalidInput
from hybrid.policy.profile import Limits

MINIMUM_MEMORY = 6 << 20  # moby: linuxMinMemory
_PERIOD = 100_000
_CPUSET = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")
Cgroup = Literal["v2", "v1", "hybrid"]


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """Bytes, counts and microseconds; 0 or empty is "not said". ``memory_swap`` is memory plus
    swap, -1 unlimited; ``pids`` -1 is unlimited. Rates are a second, of the disk
    that holds the container's own file system.
    """

    memory: int = 0
    memory_reservation: int = 0
    memory_swap: int = 0
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0
    blkio_weight: int = 0
    read_bps: int = 0
    write_bps: int = 0
    read_iops: int = 0
    write_iops: int = 0


def build(request: ResourceRequest, limits: Limits, cgroup: Cgroup = "v2") -> dict[str, Any]:
    """The OCI resources object (without the device rules); contradictions are InvalidInput."""
    resources: dict[str, Any] = {}
    for key, value in (
        ("memory", _memory(request, limits, cgroup)),
        ("cpu", _cpu(request)),
        ("pids", _pids(request, limits)),
        ("blockIO", _block_io(request)),
    ):
        if value:
            resources[key] = value
    return resources


def _memory(request: ResourceRequest, limits: Limits, cgroup: Cgroup) -> dict[str, int]:
    memory = request.memory or limits.memory
    swap, reservation = request.memory_swap, request.memory_reservation
    if memory < 0 or (memory and memory < MINIMUM_MEMORY):
        raise InvalidInput("minimum memory limit allowed is 6MB")
    if swap > 0 and not memory:
        raise InvalidInput(
            "you should always set the memory limit when using the memory-swap limit, see usage"
        )
    if 0 < swap < memory or swap < -1:
        raise InvalidInput(
            "minimum memory-swap limit should be larger than memory limit, see usage"
        )
    if reservation < 0 or (memory and reservation > memory):
        raise InvalidInput(
            "minimum memory limit can not be less than memory reservation limit, see usage"
        )
    result: dict[str, int] = {}
    if memory:
        result["limit"] = memory
        # Docker's default is as much swap again as memory; cgroup v1 may lack swap accounting, so
        # only on demand there
        if swap or cgroup == "v2":
            result["swap"] = swap or 2 * memory
    if reservation:
        result["reservation"] = reservation
    return result


def _cpu(request: ResourceRequest) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if request.nano_cpus:
        if request.cpu_quota or request.cpu_period:
            raise InvalidInput(
                "conflicting options: CPUs cannot be set together with CPU period or CPU quota"
            )
        if request.nano_cpus < 10_000_000:
            raise InvalidInput("CPUs must be at least 0.01")
        result |= {"quota": request.nano_cpus * _PERIOD // 1_000_000_000, "period": _PERIOD}
    if request.cpu_period:
        if not 1000 <= request.cpu_period <= 1_000_000:
            raise InvalidInput(
                "CPU cfs period can not be less than 1ms (i.e. 1000) "
                "or larger than 1s (i.e. 1000000)"
            )
        result["period"] = request.cpu_period
    if request.cpu_quota:
        if request.cpu_quota != -1 and request.cpu_quota < 1000:
            raise InvalidInput("CPU cfs quota can not be less than 1ms (i.e. 1000)")
        result["quota"] = request.cpu_quota
    if request.cpu_shares:
        if not 2 <= request.cpu_shares <= 262144:
            raise InvalidInput("CPU shares must be between 2 and 262144")
        result["shares"] = request.cpu_shares
    for key, value in (("cpus", request.cpuset_cpus), ("mems", request.cpuset_mems)):
        if value:
            if not _CPUSET.fullmatch(value):
                raise InvalidInput(
                    f"invalid value {value!r} for cpuset {key}: use numbers and ranges, as 0-2,4"
                )
            result[key] = value
    return result


def _pids(request: ResourceRequest, limits: Limits) -> dict[str, int]:
    if request.pids < -1:
        raise InvalidInput("the pids limit must be a positive number, or -1 for unlimited")
    wanted = request.pids or limits.pids
    return {"limit": wanted} if wanted > 0 else {}


def _block_io(request: ResourceRequest) -> dict[str, Any]:
    """Throttles name no device: which one it is, only the machine knows."""
    result: dict[str, Any] = {}
    if request.blkio_weight:
        if not 10 <= request.blkio_weight <= 1000:
            raise InvalidInput("range of blkio weight is from 10 to 1000")
        result["weight"] = request.blkio_weight
    for key, rate in (
        ("throttleReadBpsDevice", request.read_bps),
        ("throttleWriteBpsDevice", request.write_bps),
        ("throttleReadIOPSDevice", request.read_iops),
        ("throttleWriteIOPSDevice", request.write_iops),
    ):
        if rate < 0:
            raise InvalidInput("an I/O rate must be a positive number")
        if rate:
            result[key] = [{"rate": rate}]
    return result
