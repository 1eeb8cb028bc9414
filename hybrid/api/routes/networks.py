"""``/networks``."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from hybrid.api import parse, query, times
from hybrid.api.fields import Fields
from hybrid.api.respond import add, body_of, empty, engine_of, json_response
from hybrid.engine.engine import Engine
from hybrid.engine.networks import NetworkRecord, NetworkWish
from hybrid.errors import InvalidInput, Unsupported

FILTERS = "driver id label label! name scope type dangling".split()


def setup(app: web.Application) -> None:
    add(app, "GET", "/networks", listing)
    add(app, "GET", "/networks/", listing)
    add(app, "POST", "/networks/create", create)
    add(app, "POST", "/networks/prune", prune)
    add(app, "GET", "/networks/{id}", inspect)
    add(app, "DELETE", "/networks/{id}", remove)
    add(app, "POST", "/networks/{id}/connect", connect)
    add(app, "POST", "/networks/{id}/disconnect", disconnect)


def network_json(engine: Engine, record: NetworkRecord) -> dict[str, Any]:
    pools = [{"Subnet": record.subnet, "Gateway": record.gateway}] if record.subnet else []
    return {
        "Name": record.name,
        "Id": record.id,
        "Created": times.rfc3339(record.created_ns),
        "Scope": "local",
        "Driver": record.driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": pools},
        "Internal": record.internal,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {
            container.id: {
                "Name": container.name,
                "EndpointID": endpoint.endpoint_id,
                "MacAddress": endpoint.mac,
                "IPv4Address": f"{endpoint.ip}/{endpoint.prefix}",
                "IPv6Address": "",
            }
            for container, endpoint in engine.networks.members(record)
        },
        "Options": record.options,
        "Labels": record.labels,
    }


def _chosen(engine: Engine, record: NetworkRecord, chosen: query.Filters) -> bool:
    kind = "builtin" if record.predefined else "custom"
    unused = not engine.networks.users(record) and not record.predefined
    return (
        query.any_match(chosen.get("id"), lambda v: record.id.startswith(v))
        and query.any_match(chosen.get("name"), lambda v: query.name_matches(v, record.name))
        and query.any_match(chosen.get("driver"), lambda v: v == record.driver)
        and query.any_match(chosen.get("scope"), lambda v: v == "local")
        and query.any_match(chosen.get("type"), lambda v: v == kind)
        and query.any_match(
            chosen.get("dangling"), lambda v: (v.lower() in ("1", "true")) == unused
        )
        and query.labels_match(chosen, record.labels)
    )


async def listing(request: web.Request) -> web.Response:
    engine = engine_of(request)
    chosen = query.filters(request.query, FILTERS)
    query.one_of(chosen, "type", ("custom", "builtin"))
    found = [record for record in engine.networks.all() if _chosen(engine, record, chosen)]
    return json_response([network_json(engine, record) for record in found])


async def inspect(request: web.Request) -> web.Response:
    engine = engine_of(request)
    return json_response(network_json(engine, engine.networks.find(request.match_info["id"])))


async def create(request: web.Request) -> web.Response:
    fields = Fields(await body_of(request, needed=True))
    wish = NetworkWish(
        name=fields.text("Name"),
        driver=fields.text("Driver") or "bridge",
        internal=fields.flag("Internal"),
        labels=fields.table("Labels"),
        options=fields.table("Options"),
    )
    if not wish.name:
        raise InvalidInput("invalid network name: it is empty")
    if fields.flag("EnableIPv6") or not fields.flag("EnableIPv4", True):
        raise Unsupported("EnableIPv6 is not supported by this build: networks are IPv4")
    fields.ignore("CheckDuplicate", "Attachable")
    if fields.text("Scope") not in ("", "local"):
        raise Unsupported("Scope: only local networks are supported")
    _ipam(fields.inner("IPAM"), wish)
    fields.finish()
    record = await engine_of(request).networks.create(wish)
    return json_response({"Id": record.id, "Warning": ""}, 201)


def _ipam(fields: Fields, wish: NetworkWish) -> None:
    if fields.text("Driver") not in ("", "default"):
        raise Unsupported("IPAM.Driver: only 'default' is supported")
    pools = fields.items("Config")
    if len(pools) > 1:
        raise Unsupported("IPAM.Config: only one subnet is supported")
    for pool in pools:
        wish.subnet, wish.gateway = pool.text("Subnet"), pool.text("Gateway")
        pool.finish()
    fields.finish()


async def remove(request: web.Request) -> web.Response:
    engine = engine_of(request)
    await engine.networks.remove(engine.networks.find(request.match_info["id"]))
    return empty()


async def connect(request: web.Request) -> web.Response:
    fields = Fields(await body_of(request, needed=True))
    settings = parse.endpoint(fields.inner("EndpointConfig"))
    container = fields.text("Container")
    fields.finish()
    await engine_of(request).containers.connect(request.match_info["id"], container, settings)
    return empty(200)


async def disconnect(request: web.Request) -> web.Response:
    fields = Fields(await body_of(request, needed=True))
    container, force = fields.text("Container"), fields.flag("Force")
    fields.finish()
    await engine_of(request).containers.disconnect(request.match_info["id"], container, force=force)
    return empty(200)


async def prune(request: web.Request) -> web.Response:
    engine = engine_of(request)
    chosen = query.filters(request.query, ("label", "label!", "until"))
    gone: list[str] = []
    for record in engine.networks.all():
        if (
            not record.predefined
            and not engine.networks.users(record)
            and query.labels_match(chosen, record.labels)
        ):
            await engine.networks.remove(record)
            gone.append(record.name)
    return json_response({"NetworksDeleted": gone or None})
