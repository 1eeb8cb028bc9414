"""``/containers``: everything but their streams and files."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from hybrid.api import parse, query, render, times
from hybrid.api.fields import Fields
from hybrid.api.respond import (
    add,
    begin_stream,
    body_of,
    empty,
    engine_of,
    json_response,
    line,
)
from hybrid.api.stream import caller_of
from hybrid.engine.container import Record
from hybrid.engine.engine import Engine
from hybrid.engine.live import Container
from hybrid.errors import InvalidInput, NotFound
from hybrid.wire.messages import ContainerStats

LIST_FILTERS = (
    "ancestor before expose exited health id isolation is-task label label! name network publish since status volume"
).split()
STATUSES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTH = ("starting", "healthy", "unhealthy", "none")
CONDITIONS = ("not-running", "next-exit", "removed")
PLATFORM = "linux"


def setup(app: web.Application) -> None:
    one = "/containers/{id}"
    add(app, "GET", "/containers/json", listing)
    add(app, "POST", "/containers/create", create)
    add(app, "POST", "/containers/prune", prune)
    add(app, "GET", f"{one}/json", inspect)
    add(app, "GET", f"{one}/top", top)
    add(app, "GET", f"{one}/stats", stats)
    for verb, handler in (
        ("start", start),
        ("stop", stop),
        ("restart", restart),
        ("kill", kill),
        ("pause", pause),
        ("unpause", unpause),
        ("rename", rename),
        ("update", update),
        ("resize", resize),
        ("wait", wait),
    ):
        add(app, "POST", f"{one}/{verb}", handler)
    add(app, "DELETE", one, remove)


def _machine_name(engine: Engine, record: Record) -> str:
    machine = engine.machines.get(record.machine) if record.machine else None
    return machine.record.name if machine else ""


# --- looking ---


async def listing(request: web.Request) -> web.Response:
    engine, parameters = engine_of(request), request.query
    chosen = query.filters(parameters, LIST_FILTERS)
    query.one_of(chosen, "status", STATUSES)
    query.one_of(chosen, "health", HEALTH)
    limit = query.integer(parameters, "limit") or 0
    everything = (
        query.flag(parameters, "all") or limit > 0 or "status" in chosen or "exited" in chosen
    )
    found = [
        one
        for one in engine.containers.all()
        if (everything or one.record.live or one.record.status == "restarting")
        and _chosen(engine, one, chosen)
    ]
    if limit > 0:
        found = found[:limit]
    return json_response(
        [
            render.listed(
                one.record, _machine_name(engine, one.record), engine.paths.container(one.id)
            )
            for one in found
        ]
    )


def _chosen(engine: Engine, one: Container, chosen: query.Filters) -> bool:
    record, spec = one.record, one.record.spec
    health = record.health.status if record.health else "none"
    mounts = [text for mount in spec.mounts for text in (mount.source, mount.target)]
    networks = [text for name, end in record.endpoints.items() for text in (name, end.network)]
    created = {
        other: engine.containers.find(other).record.created_ns
        for key in ("before", "since")
        for other in chosen.get(key, [])
    }
    published = [f"{port.container_port}/{port.protocol}" for port in spec.ports]
    any_match = query.any_match
    return (
        any_match(chosen.get("id"), lambda v: record.id.startswith(v))
        and any_match(
            chosen.get("name"), lambda v: query.name_matches(v, record.name, f"/{record.name}")
        )
        and any_match(chosen.get("status"), lambda v: render.docker_status(record) == v)
        and any_match(chosen.get("health"), lambda v: health == v)
        and any_match(
            chosen.get("exited"), lambda v: record.status == "exited" and str(record.exit_code) == v
        )
        and any_match(chosen.get("ancestor"), lambda v: _descends(engine, record, v))
        and any_match(
            chosen.get("network"), lambda v: v in networks or any(n.startswith(v) for n in networks)
        )
        and any_match(chosen.get("volume"), lambda v: v in mounts)
        and any_match(chosen.get("publish"), lambda v: (v if "/" in v else f"{v}/tcp") in published)
        and any_match(
            chosen.get("expose"), lambda v: (v if "/" in v else f"{v}/tcp") in spec.exposed
        )
        and any_match(chosen.get("isolation"), lambda v: (spec.isolation or "vm") == v)
        and all(record.created_ns < created[v] for v in chosen.get("before", []))
        and all(record.created_ns > created[v] for v in chosen.get("since", []))
        and query.labels_match(chosen, spec.labels)
    )


def _descends(engine: Engine, record: Record, reference: str) -> bool:
    if record.spec.image == reference:
        return True
    try:
        return engine.images.find(reference).id == record.image
    except NotFound:
        return False


async def inspect(request: web.Request) -> web.Response:
    engine = engine_of(request)
    one = engine.containers.find(request.match_info["id"])
    machine = engine.machines.get(one.record.machine) if one.record.machine else None
    return json_response(
        render.inspect(
            one.record,
            _machine_name(engine, one.record),
            engine.execs.running(one.id),
            engine.paths.container(one.id),
            PLATFORM,
            machine.record.origin if machine is not None else None,
        )
    )


async def top(request: web.Request) -> web.Response:
    engine = engine_of(request)
    table = await engine.observation.top(
        request.match_info["id"], request.query.get("ps_args", "-ef")
    )
    return json_response({"Titles": table.titles, "Processes": table.rows})


# --- figures ---


async def stats(request: web.Request) -> web.StreamResponse:
    engine = engine_of(request)
    one = engine.containers.find(request.match_info["id"])
    follow = query.flag(request.query, "stream", True)
    once = query.flag(request.query, "one-shot")
    before: ContainerStats | None = None
    if not follow:
        if not once:
            before = await engine.observation.stats(one)
            await asyncio.sleep(1)
        return json_response(_stats_json(one, await engine.observation.stats(one), before))
    response = await begin_stream(request, "application/json")
    while engine.containers.get(one.id) is one:
        now = await engine.observation.stats(one)
        await response.write(line(_stats_json(one, now, before)))
        before = now
        await asyncio.sleep(1)
    return response


def _cpu_json(figures: ContainerStats | None) -> dict[str, Any]:
    if figures is None:
        usage = {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}
        return {
            "cpu_usage": usage,
            "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
        }
    return {
        "cpu_usage": {
            "total_usage": figures.cpu_total,
            "usage_in_kernelmode": figures.cpu_system,
            "usage_in_usermode": figures.cpu_user,
        },
        "system_cpu_usage": figures.system_cpu,
        "online_cpus": figures.cpus,
        "throttling_data": {
            "periods": figures.cpu_periods,
            "throttled_periods": figures.cpu_throttled,
            "throttled_time": figures.cpu_throttled_time,
        },
    }


def _stats_json(
    one: Container, now: ContainerStats | None, before: ContainerStats | None
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": f"/{one.record.name}",
        "id": one.id,
        "read": times.rfc3339(now.read_ns) if now else times.ZERO,
        "preread": times.rfc3339(before.read_ns) if before else times.ZERO,
        "num_procs": 0,
        "storage_stats": {},
        "pids_stats": {},
        "memory_stats": {},
        "blkio_stats": {"io_service_bytes_recursive": None},
        "cpu_stats": _cpu_json(now),
        "precpu_stats": _cpu_json(before),
    }
    if now is None:
        return body
    # A limit of no limit is none: docker shows the machine's memory then.
    body["pids_stats"] = {
        "current": now.pids,
        **({"limit": now.pids_limit} if now.pids_limit else {}),
    }
    body["memory_stats"] = {
        "usage": now.memory,
        "stats": now.memory_stat,
        "limit": now.memory_limit,
    }
    body["blkio_stats"] = {"io_service_bytes_recursive": now.blkio or None}
    body["networks"] = now.networks
    return body


# --- making and changing ---


async def create(request: web.Request) -> web.Response:
    engine = engine_of(request)
    platform = request.query.get("platform", "")
    if platform and platform.split("/")[0] != "linux":
        raise InvalidInput(f"invalid platform {platform!r}: only linux images can be run")
    spec = parse.container_spec(await body_of(request, needed=True), caller_of(request))
    one, warnings = await engine.containers.create(request.query.get("name", ""), spec)
    return json_response({"Id": one.id, "Warnings": warnings}, 201)


async def start(request: web.Request) -> web.Response:
    # A client that goes away does not interrupt a start half-way.
    await asyncio.shield(engine_of(request).containers.start(request.match_info["id"]))
    return empty()


def _timeout(request: web.Request) -> int | None:
    return query.integer(request.query, "t")


async def stop(request: web.Request) -> web.Response:
    reference, signal = request.match_info["id"], request.query.get("signal", "")
    await engine_of(request).containers.stop(reference, _timeout(request), signal)
    return empty()


async def restart(request: web.Request) -> web.Response:
    reference, signal = request.match_info["id"], request.query.get("signal", "")
    await asyncio.shield(
        engine_of(request).containers.restart(reference, _timeout(request), signal)
    )
    return empty()


async def kill(request: web.Request) -> web.Response:
    await engine_of(request).containers.kill(
        request.match_info["id"], request.query.get("signal", "")
    )
    return empty()


async def pause(request: web.Request) -> web.Response:
    await engine_of(request).containers.pause(request.match_info["id"])
    return empty()


async def unpause(request: web.Request) -> web.Response:
    await engine_of(request).containers.unpause(request.match_info["id"])
    return empty()


async def rename(request: web.Request) -> web.Response:
    engine_of(request).containers.rename(request.match_info["id"], request.query.get("name", ""))
    return empty()


async def update(request: web.Request) -> web.Response:
    fields = Fields(await body_of(request, needed=True))
    limits = parse.limits(fields)
    policy = fields.inner("RestartPolicy")
    wanted = parse.restart_policy(policy) if policy.raw("Name") else None
    fields.finish()
    warnings = await engine_of(request).containers.update(request.match_info["id"], limits, wanted)
    return json_response({"Warnings": warnings})


async def resize(request: web.Request) -> web.Response:
    rows, columns = query.integer(request.query, "h"), query.integer(request.query, "w")
    if rows is None or columns is None or not (0 <= rows < 65536 and 0 <= columns < 65536):
        raise InvalidInput("invalid terminal size: h and w must be small whole numbers")
    await engine_of(request).containers.resize(request.match_info["id"], rows, columns)
    return empty(200)


async def wait(request: web.Request) -> web.StreamResponse:
    condition = request.query.get("condition", "") or "not-running"
    if condition not in CONDITIONS:
        raise InvalidInput(f'invalid condition: "{condition}"')
    engine = engine_of(request)
    exit_code = engine.containers.wait(request.match_info["id"], condition)
    # The head goes out before the wait: the docker CLI starts the container only when it has it.
    response = await begin_stream(request, "application/json")
    try:
        code = await exit_code
    finally:
        exit_code.cancel()
    await response.write(line({"StatusCode": code}))
    return response


async def remove(request: web.Request) -> web.Response:
    if query.flag(request.query, "link"):
        raise InvalidInput("links are not supported: use networks")
    await asyncio.shield(
        engine_of(request).containers.remove(
            request.match_info["id"],
            force=query.flag(request.query, "force"),
            volumes=query.flag(request.query, "v"),
        )
    )
    return empty()


async def prune(request: web.Request) -> web.Response:
    engine = engine_of(request)
    chosen = query.filters(request.query, ("until", "label", "label!"))
    until = query.seconds(chosen["until"][0]) if chosen.get("until") else None
    gone = []
    for one in engine.containers.all():
        record = one.record
        old = until is None or record.created_ns < min(until, time.time_ns())
        if (
            record.status in ("created", "exited", "dead")
            and old
            and query.labels_match(chosen, record.spec.labels)
        ):
            await engine.containers.remove(one.id)
            gone.append(one.id)
    return json_response({"ContainersDeleted": gone or None, "SpaceReclaimed": 0})
