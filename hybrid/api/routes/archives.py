"""``/containers/{id}/archive``: files in and out, as tar streams."""

from __future__ import annotations

import base64
import json
import stat as modes

from aiohttp import web

from hybrid.api import query, times
from hybrid.api.respond import add, empty, engine_of
from hybrid.errors import InvalidInput
from hybrid.wire.messages import PathStat

STAT_HEADER = "X-Docker-Container-Path-Stat"
# Go's os.FileMode bits (``io/fs``).
_GO_BITS = (
    (modes.S_ISDIR, 1 << 31),
    (modes.S_ISLNK, 1 << 27),
    (modes.S_ISFIFO, 1 << 25),
    (modes.S_ISSOCK, 1 << 24),
    (modes.S_ISBLK, 1 << 26),
    (modes.S_ISCHR, 1 << 26 | 1 << 21),
)
_GO_SPECIAL = ((modes.S_ISUID, 1 << 23), (modes.S_ISGID, 1 << 22), (modes.S_ISVTX, 1 << 20))


def setup(app: web.Application) -> None:
    path = "/containers/{id}/archive"
    add(app, "HEAD", path, stat)
    add(app, "GET", path, get)
    add(app, "PUT", path, put)


def go_mode(mode: int) -> int:
    """st_mode as Go's os.FileMode."""
    result = mode & 0o777
    for test, bits in _GO_BITS:
        if test(mode):
            result |= bits
    for mask, bit in _GO_SPECIAL:
        if mode & mask:
            result |= bit
    return result


def stat_header(stat_: PathStat) -> str:
    body = {
        "name": stat_.name,
        "size": stat_.size,
        "mode": go_mode(stat_.mode),
        "mtime": times.rfc3339(stat_.mtime_ns) if stat_.mtime_ns else "1970-01-01T00:00:00Z",
        "linkTarget": stat_.link_target,
    }
    return base64.b64encode(json.dumps(body).encode()).decode()


def _path(request: web.Request) -> str:
    path = request.query.get("path", "")
    if not path:
        raise InvalidInput("bad parameter: path is empty")
    return path


async def stat(request: web.Request) -> web.Response:
    found = await engine_of(request).archives.stat(request.match_info["id"], _path(request))
    return web.Response(headers={STAT_HEADER: stat_header(found)})


async def get(request: web.Request) -> web.StreamResponse:
    async with engine_of(request).archives.get(request.match_info["id"], _path(request)) as (
        found,
        data,
    ):
        response = web.StreamResponse(
            headers={"Content-Type": "application/x-tar", STAT_HEADER: stat_header(found)}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in data:
            await response.write(chunk)
        return response


async def put(request: web.Request) -> web.Response:
    await engine_of(request).archives.put(
        request.match_info["id"],
        _path(request),
        request.content.iter_any(),
        no_overwrite_dir_non_dir=query.flag(request.query, "noOverwriteDirNonDir"),
        copy_ids=query.flag(request.query, "copyUIDGID"),
    )
    return empty(200)
