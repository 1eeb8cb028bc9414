"""Small pieces that every route needs: bodies in, JSON and streams out."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from hybrid.api import versions
from hybrid.api.fields import check_sound
from hybrid.engine.engine import Engine
from hybrid.errors import InvalidInput

ENGINE: web.AppKey[Engine] = web.AppKey("engine", Engine)
BODY_MAX = 4 << 20


def engine_of(request: web.Request) -> Engine:
    return request.app[ENGINE]


def add(app: web.Application, method: str, path: str, handler: Any) -> None:
    """The route with and without a version in front."""
    app.router.add_route(method, path, handler)
    app.router.add_route(method, versions.PREFIX + path, handler)


async def body_of(request: web.Request, *, needed: bool = False) -> Any:
    """The JSON body; None if there is none. InvalidInput, in Docker's words, if it is something else."""
    data = await request.content.read(BODY_MAX + 1) if request.can_read_body else b""
    while len(data) <= BODY_MAX and (more := await request.content.read(BODY_MAX + 1 - len(data))):
        data += more
    if len(data) > BODY_MAX:
        raise web.HTTPRequestEntityTooLarge(max_size=BODY_MAX, actual_size=len(data))
    if not data.strip():
        if needed:
            raise InvalidInput("invalid JSON: got EOF while reading request body")
        return None
    if request.content_type != "application/json":
        raise InvalidInput(
            f"unsupported Content-Type header ({request.content_type}): must be 'application/json'"
        )
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"invalid JSON: {error}") from error
    check_sound(body)
    return body


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=json.dumps(value, separators=(",", ":")).encode() + b"\n",
        content_type="application/json",
    )


def empty(status: int = 204) -> web.Response:
    return web.Response(status=status)


async def begin_stream(request: web.Request, content_type: str) -> web.StreamResponse:
    """A streamed answer whose head is sent at once."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    response.enable_chunked_encoding()
    await response.prepare(request)
    return response


def line(value: Any, end: bytes = b"\n") -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + end
