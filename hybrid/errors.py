"""The few kinds of error, named by what a caller can do about them.

Every error a user can meet is one of these; its text is one line that says what is wrong, where, and what to
do. Third-party exceptions are translated where they are caught (``raise Kind(...) from error``). The kind also
travels over the agent link and decides the HTTP status (``hybrid.api.status``) and the CLI's exit code.
"""

from __future__ import annotations


class HybridError(Exception):
    """Base of all errors that may reach a user. ``kind`` is its name on the wire."""

    kind = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Internal(HybridError):
    """A fault of hybrid's own or of the host (HTTP 500)."""


class InvalidInput(HybridError):
    """The request is malformed or contradicts itself; correct it (HTTP 400)."""

    kind = "invalid"


class Unauthorized(HybridError):
    """Credentials are missing or wrong (HTTP 401)."""

    kind = "unauthorized"


class Forbidden(HybridError):
    """Understood, but policy or state forbids it for good (HTTP 403)."""

    kind = "forbidden"


class NotFound(HybridError):
    """The named thing does not exist (HTTP 404)."""

    kind = "not_found"


class Conflict(HybridError):
    """The state of the thing forbids it now (HTTP 409)."""

    kind = "conflict"


class NotModified(HybridError):
    """Already so; nothing was done (HTTP 304)."""

    kind = "not_modified"


class Unsupported(HybridError):
    """hybrid, or this host, cannot do that; the text says why (HTTP 501)."""

    kind = "unsupported"


class Unavailable(HybridError):
    """A part that is needed does not answer or has no room; try again later (HTTP 503)."""

    kind = "unavailable"


KINDS: dict[str, type[HybridError]] = {
    cls.kind: cls
    for cls in (
        Internal,
        InvalidInput,
        Unauthorized,
        Forbidden,
        NotFound,
        Conflict,
        NotModified,
        Unsupported,
        Unavailable,
    )
}


def from_kind(kind: str, message: str) -> HybridError:
    """The error of that kind; an unknown kind becomes ``Internal``."""
    return KINDS.get(kind, Internal)(message)
