"""Around every request: version, headers, errors in Docker's form."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from hybrid.api import status, versions
from hybrid.api.stream import Front, Hijacked
from hybrid.errors import HybridError

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
VERSION: web.RequestKey[tuple[int, int]] = web.RequestKey("version", tuple[int, int])
HEADERS = {
    "Api-Version": versions.text(versions.NEWEST),
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Server": f"Docker/{versions.ENGINE} (linux)",
}


def error_response(code: int, message: str) -> web.Response:
    if code == 304:
        return web.Response(status=304, headers=HEADERS)
    return web.Response(
        status=code,
        headers=HEADERS,
        content_type="application/json",
        body=json.dumps({"message": message}).encode() + b"\n",
    )


def version_of(request: web.Request) -> tuple[int, int]:
    version: tuple[int, int] = request.get(VERSION, versions.NEWEST)
    return version


@web.middleware
async def give_back(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A connection that might have been taken over and was not goes on as HTTP."""
    response = await handler(request)
    if not isinstance(response, Hijacked) and isinstance(request.transport, asyncio.Transport):
        front = request.transport.get_protocol()
        if isinstance(front, Front) and not front.release():
            response.force_close()
    return response


@web.middleware
async def docker_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as ``{"message": …}``; unknown routes as Docker's."""
    try:
        if word := request.match_info.get("version"):
            request[VERSION] = versions.parse(word)
        return await handler(request)
    except HybridError as error:
        if error.kind in ("internal", "unavailable"):
            log.warning("%s %s: %s", request.method, request.path, error)
        return error_response(status.of(error), error.message)
    except web.HTTPRequestEntityTooLarge:
        return error_response(413, "the request body is too large")
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
        return error_response(404, "page not found")
    except web.HTTPException as error:
        return error_response(error.status, error.reason or "bad request")
    except ConnectionError:
        log.debug("%s %s: the client went away", request.method, request.path)
        return Hijacked()
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        return error_response(
            500, f"unexpected: {type(error).__name__}: {error}; see the daemon's log"
        )


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """A signal of the application: every response says who speaks, and which version."""
    del request
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = HEADERS["Server"]
