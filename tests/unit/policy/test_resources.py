from __future__ import annotations

import pytest

from hybrid.errors import InvalidInput
from hybrid.policy.profile import Limits
from hybrid.policy.resources import ResourceRequest, build

NONE = Limits()
MIB = 1 << 20


def test_nothing_asked_for_is_the_profiles_default() -> None:
    assert build(ResourceRequest(), NONE) == {}
    assert build(ResourceRequest(), Limits(memory=64 * MIB, pids=100)) == {
        "memory": {"limit": 64 * MIB, "swap": 128 * MIB},
        "pids": {"limit": 100},
    }


def test_memory_swap_is_dockers() -> None:
    assert build(ResourceRequest(memory=64 * MIB, memory_swap=-1), NONE)["memory"]["swap"] == -1
    assert build(ResourceRequest(memory=64 * MIB, memory_swap=64 * MIB), NONE)["memory"] == {
        "limit": 64 * MIB,
        "swap": 64 * MIB,
    }
    assert build(ResourceRequest(memory=64 * MIB), NONE, "v1")["memory"] == {"limit": 64 * MIB}


def test_cpus_are_a_quota() -> None:
    assert build(ResourceRequest(nano_cpus=1_500_000_000), NONE)["cpu"] == {
        "quota": 150_000,
        "period": 100_000,
    }


def test_the_rest_is_carried_over() -> None:
    request = ResourceRequest(cpu_shares=512, cpuset_cpus="0-1,3", pids=-1, blkio_weight=300)
    assert build(request, Limits(pids=10)) == {
        "cpu": {"shares": 512, "cpus": "0-1,3"},
        "blockIO": {"weight": 300},
    }


def test_throttles_leave_the_device_to_the_machine() -> None:
    request = ResourceRequest(write_bps=MIB, read_iops=50)
    assert build(request, NONE)["blockIO"] == {
        "throttleWriteBpsDevice": [{"rate": MIB}],
        "throttleReadIOPSDevice": [{"rate": 50}],
    }


@pytest.mark.parametrize(
    "request_",
    [
        ResourceRequest(memory=MIB),
        ResourceRequest(memory=-1),
        ResourceRequest(memory_swap=64 * MIB),
        ResourceRequest(memory=64 * MIB, memory_swap=32 * MIB),
        ResourceRequest(memory=64 * MIB, memory_reservation=65 * MIB),
        ResourceRequest(nano_cpus=1_000_000_000, cpu_quota=5000),
        ResourceRequest(nano_cpus=-1),
        ResourceRequest(cpu_period=10),
        ResourceRequest(cpu_quota=10),
        ResourceRequest(cpu_shares=1),
        ResourceRequest(cpuset_cpus="0-"),
        ResourceRequest(cpuset_mems="a"),
        ResourceRequest(pids=-2),
        ResourceRequest(blkio_weight=5),
        ResourceRequest(read_bps=-1),
    ],
)
def test_contradictions_are_refused(request_: ResourceRequest) -> None:
    with pytest.raises(InvalidInput):
        build(request_, NONE)
