"""``/volumes``."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from hybrid.api import query, times
from hybrid.api.fields import Fields
from hybrid.api.respond import add, body_of, empty, engine_of, json_response
from hybrid.engine.engine import Engine
from hybrid.engine.volumes import VolumeRecord

FILTERS = "name label label! driver dangling".split()


def setup(app: web.Application) -> None:
    add(app, "GET", "/volumes", listing)
    add(app, "POST", "/volumes/create", create)
    add(app, "POST", "/volumes/prune", prune)
    add(app, "GET", "/volumes/{name}", inspect)
    add(app, "DELETE", "/volumes/{name}", remove)


def volume_json(engine: Engine, record: VolumeRecord) -> dict[str, Any]:
    return {
        "CreatedAt": times.rfc3339(record.created_ns // 1_000_000_000 * 1_000_000_000),
        "Driver": "local",
        "Labels": record.labels or None,
        "Mountpoint": str(engine.volumes.directory(record.name)),
        "Name": record.name,
        "Options": record.options or None,
        "Scope": "local",
    }


async def listing(request: web.Request) -> web.Response:
    engine = engine_of(request)
    chosen = query.filters(request.query, FILTERS)
    found = [record for record in engine.volumes.all() if _chosen(engine, record, chosen)]
    return json_response(
        {"Volumes": [volume_json(engine, record) for record in found], "Warnings": None}
    )


def _chosen(engine: Engine, record: VolumeRecord, chosen: query.Filters) -> bool:
    return (
        query.any_match(chosen.get("name"), lambda v: query.name_matches(v, record.name))
        and query.any_match(chosen.get("driver"), lambda v: v == "local")
        and query.any_match(chosen.get("dangling"), lambda v: _dangling(engine, record, v))
        and query.labels_match(chosen, record.labels)
    )


def _dangling(engine: Engine, record: VolumeRecord, wanted: str) -> bool:
    return (wanted.lower() in ("1", "true")) == (not engine.volumes.users(record.name))


async def create(request: web.Request) -> web.Response:
    engine = engine_of(request)
    fields = Fields(await body_of(request))
    record = engine.volumes.create(
        fields.text("Name"),
        fields.text("Driver"),
        fields.table("Labels"),
        fields.table("DriverOpts"),
    )
    fields.finish()
    return json_response(volume_json(engine, record), 201)


async def inspect(request: web.Request) -> web.Response:
    engine = engine_of(request)
    return json_response(volume_json(engine, engine.volumes.find(request.match_info["name"])))


async def remove(request: web.Request) -> web.Response:
    name, force = request.match_info["name"], query.flag(request.query, "force")
    await engine_of(request).volumes.remove(name, force=force)
    return empty()


async def prune(request: web.Request) -> web.Response:
    chosen = query.filters(request.query, ("label", "label!", "all"))
    everything = any(value.lower() in ("1", "true") for value in chosen.get("all", []))
    gone = await engine_of(request).volumes.prune(everything=everything)
    return json_response({"VolumesDeleted": gone or None, "SpaceReclaimed": 0})
