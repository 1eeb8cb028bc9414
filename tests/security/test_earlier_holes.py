"""Holes that others had to mend in this very place (DESIGN's list): each is a test here."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from hybrid.wire.messages import Evidence
from tests.agentdriver import Driver
from tests.functional.agent.conftest import agent_directory, agent_process, driver, layers
from tests.security.conftest import RunningDaemon

__all__ = ["agent_directory", "agent_process", "driver", "layers"]
pytestmark = pytest.mark.root
SYS_ADMIN = 21


async def test_capability_sets_do_not_come_from_a_procfs_of_the_workloads(driver: Driver) -> None:
    """The container hides its /proc behind a made-up one; evidence and execs know better."""
    caps = ["CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_DAC_OVERRIDE"]
    process = {"capabilities": {kind: caps for kind in ("bounding", "effective", "permitted")}}
    script = (
        "busybox mount -t tmpfs none /proc && mkdir -p /proc/1 /proc/self && "
        "for p in 1 self; do echo 'CapEff: 0' > /proc/$p/status; done; echo done; exec sleep 60"
    )
    name = await driver.start(driver.request("sh", "-c", script, process=process))
    for _ in range(100):
        found = await driver.client.call(Evidence(name))
        if any(" /proc " in line and "tmpfs" in line for line in found.mounts):
            break
    assert any(" /proc " in line and "tmpfs" in line for line in found.mounts)
    effective = int(found.status["CapEff"], 16)
    assert effective & (1 << SYS_ADMIN)
    assert found.status["NoNewPrivs"] == "1"


async def test_a_joined_namespace_is_named_by_a_held_descriptor(
    driver: Driver, agent_process: Any
) -> None:
    """Never /proc/PID/ns of a container's process: that number may be another process's by then."""
    first = await driver.start(driver.request("sleep", "60"))
    second = await driver.start(
        driver.request("sleep", "60", network="container", network_container=first)
    )
    configs = [p.read_text() for p in (agent_process.state / "c").glob("*/config.json")]
    joined = [text for text in configs if "/proc/" in text and '"path": "/proc/' in text]
    paths = re.findall(r'"type": "network", "path": "([^"]+)"', " ".join(joined))
    assert paths, configs
    for path in paths:
        assert re.fullmatch(rf"/proc/{agent_process.process.pid}/fd/\d+", path)
        assert os.readlink(path).startswith("net:[")
    assert second


async def test_what_runs_in_containers_is_told_to_nobody_else(
    driver: Driver, agent_process: Any
) -> None:
    await driver.start(driver.request("sleep", "60", process={"env": ["PATH=/bin", "PASSWORD=x"]}))
    for file in agent_process.state.rglob("*"):
        if file.is_symlink() or not file.is_file() or "rootfs" in file.parts:
            continue
        if file.stat().st_mode & 0o004 and file.stat().st_size < 1 << 20:
            assert b"PASSWORD" not in file.read_bytes(), file


def test_health_checks_go_on_after_a_restart_of_the_daemon(daemon: RunningDaemon) -> None:
    daemon.run("-d", "--name", "checked", "--health-cmd", "true", "--health-interval", "300ms",
               "busybox", "sleep", "300")  # fmt: skip

    def last() -> tuple[str, str]:
        health = daemon.inspect("checked")["State"]["Health"]
        return health["Status"], (health["Log"] or [{"End": ""}])[-1]["End"]

    _until(lambda: last()[0] == "healthy")
    daemon.end(9)
    daemon.start()
    before = last()[1]
    _until(lambda: last()[1] > before)
    assert last()[0] == "healthy"


def _until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_the_list_is_complete() -> None:
    """What DESIGN lists, and where it is held; those of cloning come with cloning."""
    here = Path(__file__).parent
    held = {
        "capability sets from the workload's procfs": "test_capability_sets_do_not",
        "namespaces by a reusable path": "test_a_joined_namespace_is_named",
        "working directory": "test_a_working_directory_stays_inside",
        "mount targets": "test_mount_targets_that_are_symlinks",
        "user database": "test_a_strange_user_database",
        "copy-up source": "test_a_volume_is_filled_from_the_image_only",
        "policy on one string, mount on another": "test_a_source_replaced_by_a_symlink",
        "a share that a symlink walks out of": "test_a_share_is_not_walked_out_of",
        "guest memory that is never given back": "test_memory_of_an_ended_container_is_given_back",
        "ports that bypass the firewall": "test_a_published_port_does_not_bypass",
        "restart that kills health checks": "test_health_checks_go_on",
    }
    network = here.parent / "functional" / "network" / "test_host_firewall.py"
    text = "".join(path.read_text() for path in (*here.glob("test_*.py"), network))
    for hole, test in held.items():
        assert f"def {test}" in text, hole
