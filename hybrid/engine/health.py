"""Health checks: a command run in the container at intervals, and the state that its exit codes add up to.

    starting ──success──▶ healthy ◀──success── unhealthy
       └──── `retries` failures in a row, after the start period ────▶ unhealthy

Only a change of state is announced. ``step`` is pure; ``HealthChecks.watch`` is one container's task.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from hybrid.engine.container import Health, HealthCheck, HealthProbe, Record
from hybrid.engine.execs import Execs, ExecSpec
from hybrid.engine.live import Container
from hybrid.errors import HybridError, InvalidInput

log = logging.getLogger(__name__)
SECOND = 1_000_000_000
MINIMUM = 1_000_000
DEFAULTS = HealthCheck(
    interval=30 * SECOND, timeout=30 * SECOND, start_period=0, start_interval=5 * SECOND, retries=3
)
KEPT_PROBES = 5
MAX_OUTPUT = 4096


def merge(image: HealthCheck | None, asked: HealthCheck | None) -> HealthCheck | None:
    """The effective check: what was asked, where that says nothing the image's. None: there is none."""
    if asked is None or not asked.test:
        base = image
        if base is None:
            return None
    else:
        base = asked
    if base.test and base.test[0] == "NONE":
        return None
    merged = HealthCheck(test=list(base.test))
    for name in ("interval", "timeout", "start_period", "start_interval", "retries"):
        values = [getattr(one, name) for one in (asked, image) if one is not None]
        setattr(merged, name, next((value for value in values if value), 0))
    return merged if merged.test else None


def checked(check: HealthCheck) -> None:
    """InvalidInput, in Docker's words, for a check that cannot be run."""
    for name, text in (
        ("interval", "Interval"),
        ("timeout", "Timeout"),
        ("start_period", "StartPeriod"),
        ("start_interval", "StartInterval"),
    ):
        value = getattr(check, name)
        if value and value < MINIMUM:
            raise InvalidInput(f"{text} in Healthcheck cannot be less than 1ms")
    if check.retries < 0:
        raise InvalidInput("Retries in Healthcheck cannot be negative")
    if check.test and check.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise InvalidInput(
            f"unknown health check type {check.test[0]!r}: use NONE, CMD or CMD-SHELL"
        )


def filled(check: HealthCheck) -> HealthCheck:
    """With the defaults where it says nothing."""
    full = HealthCheck(test=check.test)
    for name in ("interval", "timeout", "start_period", "start_interval", "retries"):
        setattr(full, name, getattr(check, name) or getattr(DEFAULTS, name))
    return full


def command(check: HealthCheck) -> list[str]:
    if check.test[0] == "CMD-SHELL":
        return ["/bin/sh", "-c", *check.test[1:2]]
    return check.test[1:]


def step(health: Health, probe: HealthProbe, check: HealthCheck, started_ns: int) -> bool:
    """Adds one probe's result; whether the state changed. ``check`` is ``filled``."""
    before = health.status
    health.log = [*health.log, probe][-KEPT_PROBES:]
    in_start_period = probe.start_ns - started_ns < check.start_period
    if probe.exit_code == 0:
        health.status, health.failing = "healthy", 0
    elif not (before == "starting" and in_start_period):
        health.failing += 1
        if health.failing >= check.retries:
            health.status = "unhealthy"
    return health.status != before


class HealthChecks:
    """Runs the checks of running containers."""

    def __init__(
        self,
        execs: Execs,
        save: Callable[[Record], None],
        publish: Callable[[Record, str, dict[str, str]], None],
    ) -> None:
        self._execs = execs
        self._save = save
        self._publish = publish

    async def watch(self, container: Container) -> None:
        """Until the run ends (the task is cancelled then)."""
        record = container.record
        assert record.spec.health is not None
        check = filled(record.spec.health)
        while record.health is not None:
            young = time.time_ns() - record.started_ns < check.start_period
            starting = record.health.status == "starting" and young
            await asyncio.sleep(
                (min(check.start_interval, check.interval) if starting else check.interval) / 1e9
            )
            if record.status != "running":
                continue
            probe = await self._probe(container, check)
            if step(record.health, probe, check, record.started_ns):
                if record.health.status == "healthy" and not record.ready_ns:
                    record.ready_ns = time.time_ns()
                self._publish(record, f"health_status: {record.health.status}", {})
            self._save(record)

    async def _probe(self, container: Container, check: HealthCheck) -> HealthProbe:
        start = time.time_ns()
        timeout = check.timeout / 1e9
        try:
            async with asyncio.timeout(timeout):
                code, output = await self._execs.run(
                    container, ExecSpec(command(check)), MAX_OUTPUT
                )
        except TimeoutError:
            code, output = -1, f"Health check exceeded timeout ({timeout:g}s)".encode()
        except HybridError as error:
            code, output = -1, error.message.encode()
        return HealthProbe(start, time.time_ns(), code, output.decode(errors="replace"))
