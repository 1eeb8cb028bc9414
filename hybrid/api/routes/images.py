"""``/images``."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from hybrid.api import query, times
from hybrid.api.render import health_json
from hybrid.api.respond import add, begin_stream, empty, engine_of, json_response, line
from hybrid.engine.container import HealthCheck
from hybrid.errors import HybridError, InvalidInput, NotFound, Unsupported
from hybrid.image.config import ImageConfig
from hybrid.image.store import Image

FILTERS = "before dangling label label! reference since until".split()


def setup(app: web.Application) -> None:
    add(app, "GET", "/images/json", listing)
    add(app, "POST", "/images/load", load)
    add(app, "POST", "/images/create", pull)
    add(app, "GET", "/images/{name:.+}/json", inspect)
    add(app, "GET", "/images/{name:.+}/history", history)
    add(app, "POST", "/images/{name:.+}/tag", tag)
    add(app, "POST", "/images/{name:.+}/push", push)
    add(app, "DELETE", "/images/{name:.+}", remove)


async def listing(request: web.Request) -> web.Response:
    engine = engine_of(request)
    chosen = query.filters(request.query, FILTERS)
    found = []
    for image in engine.images.all():
        config = engine.images.config(image)
        if _chosen(image, config, chosen):
            found.append(
                {
                    "Id": image.id,
                    "ParentId": "",
                    "RepoTags": list(image.names),
                    "RepoDigests": [],
                    "Created": config.created_ns // 1_000_000_000,
                    "Size": image.size,
                    "SharedSize": -1,
                    "Labels": config.labels or None,
                    "Containers": len(engine.images.users(image.id)),
                }
            )
    return json_response(found)


def _chosen(image: Image, config: ImageConfig, chosen: query.Filters) -> bool:
    dangling = not image.references

    def refers(pattern: str) -> bool:
        bare = [name.rpartition(":")[0] for name in list(image.names)]
        return pattern in list(image.names) or pattern in bare

    return (
        query.any_match(chosen.get("dangling"), lambda v: (v.lower() in ("1", "true")) == dangling)
        and query.any_match(chosen.get("reference"), refers)
        and query.labels_match(chosen, config.labels)
    )


def _config_json(config: ImageConfig) -> dict[str, Any]:
    body: dict[str, Any] = {
        "Hostname": "",
        "Domainname": "",
        "User": config.user,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "Env": config.env,
        "Cmd": config.command,
        "Image": "",
        "Volumes": {target: {} for target in config.volumes} or None,
        "WorkingDir": config.working_dir,
        "Entrypoint": config.entrypoint,
        "OnBuild": None,
        "Labels": config.labels or None,
    }
    if config.exposed_ports:
        body["ExposedPorts"] = {port: {} for port in config.exposed_ports}
    if config.stop_signal:
        body["StopSignal"] = config.stop_signal
    if config.healthcheck is not None:
        body["Healthcheck"] = health_json(HealthCheck(**config.healthcheck))
    return body


async def inspect(request: web.Request) -> web.Response:
    engine = engine_of(request)
    image = engine.images.find(request.match_info["name"])
    config = engine.images.config(image)
    return json_response(
        {
            "Id": image.id,
            "RepoTags": list(image.names),
            "RepoDigests": [],
            "Parent": "",
            "Comment": "",
            "Created": times.rfc3339(config.created_ns),
            "DockerVersion": "",
            "Author": config.author,
            "Config": _config_json(config),
            "Architecture": config.architecture,
            "Os": config.os,
            "Size": image.size,
            "GraphDriver": {"Name": "hybrid", "Data": None},
            "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
            "Metadata": {"LastTagTime": image.tagged or times.ZERO},
        }
    )


async def history(request: web.Request) -> web.Response:
    engine = engine_of(request)
    engine.images.find(request.match_info["name"])
    raise Unsupported("image history is not supported by this build")


async def load(request: web.Request) -> web.StreamResponse:
    """The archive is read as it comes; its errors come in the stream once it has begun, else as a status."""
    engine = engine_of(request)
    quiet = query.flag(request.query, "quiet")
    messages: asyncio.Queue[str] = asyncio.Queue(256)

    def progress(text: str) -> None:
        if not quiet and not messages.full():
            messages.put_nowait(text)

    loading = asyncio.create_task(engine.images.load(request.content.iter_any(), progress))
    response: web.StreamResponse | None = None
    try:
        while not loading.done() or not messages.empty():
            getting = asyncio.create_task(messages.get())
            await asyncio.wait({loading, getting}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                continue
            response = response or await begin_stream(request, "application/json")
            await response.write(line({"stream": f"{getting.result()}\n"}, b"\r\n"))
        loaded = await loading
    except HybridError as error:
        if response is None:
            raise
        await response.write(line(_error(error.message), b"\r\n"))
        return response
    finally:
        loading.cancel()
    response = response or await begin_stream(request, "application/json")
    for one in loaded:
        text = f"Loaded image: {one.name}" if one.name else f"Loaded image ID: {one.id}"
        await response.write(line({"stream": f"{text}\n"}, b"\r\n"))
    return response


def _error(message: str) -> dict[str, Any]:
    return {"errorDetail": {"message": message}, "error": message}


async def pull(request: web.Request) -> web.Response:
    name = request.query.get("fromImage", "")
    if not name:
        raise Unsupported("importing a file system as an image is not supported by this build")
    raise NotFound(
        f"pull access denied for {name}: this build has no registry client yet; load an archive with"
        " 'hybrid image load'"
    )


async def push(request: web.Request) -> web.Response:
    raise Unsupported("push: this build has no registry client yet")


async def tag(request: web.Request) -> web.Response:
    repository, tag_ = request.query.get("repo", ""), request.query.get("tag", "")
    if not repository:
        raise InvalidInput("invalid reference format: repo is empty")
    await engine_of(request).images.tag(
        request.match_info["name"], f"{repository}:{tag_}" if tag_ else repository
    )
    return empty(201)


async def remove(request: web.Request) -> web.Response:
    removed = await engine_of(request).images.remove(
        request.match_info["name"], force=query.flag(request.query, "force")
    )
    return json_response(removed)
