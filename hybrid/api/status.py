"""Error kind → HTTP status: the only such map. Pure."""

from __future__ import annotations

from hybrid.errors import HybridError

STATUS = {
    "invalid": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "not_modified": 304,
    "unsupported": 501,
    "unavailable": 503,
    "internal": 500,
}


def of(error: HybridError) -> int:
    return STATUS.get(error.kind, 500)
