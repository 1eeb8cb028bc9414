"""Image references: Docker's grammar, the full form and the familiar one. Pure.

``busybox`` is ``docker.io/library/busybox:latest`` in full. Source: distribution/reference,
``normalize.go``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hybrid.errors import InvalidInput

DEFAULT_DOMAIN, OFFICIAL, DEFAULT_TAG = "docker.io", "library/", "latest"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference. It has a tag, or a digest, or both."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository in full."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as people write it."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        return self.path.removeprefix(OFFICIAL) if self.path.count("/") == 1 else self.path

    @property
    def familiar(self) -> str:
        """The whole reference as people write it, tag always shown."""
        return self.familiar_name + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """The reference that ``text`` means, ``latest`` where it has neither tag nor digest;
    InvalidInput otherwise.
    """
    if _IDENTIFIER.fullmatch(text):
        raise InvalidInput(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        )
    name, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _invalid(text)
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        head, tag = name, ""
    elif not _TAG.fullmatch(tag):
        raise _invalid(text)
    domain, path = _split(head)
    if path.lower() != path:
        raise InvalidInput(f"invalid reference format: repository name ({head}) must be lowercase")
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path):
        raise _invalid(text)
    if len(domain) + 1 + len(path) > _MAX_NAME:
        raise InvalidInput(f"repository name must not be more than {_MAX_NAME} characters")
    return Reference(domain, path, tag or ("" if digest else DEFAULT_TAG), digest)


def _split(name: str) -> tuple[str, str]:
    """Domain and path: the first component is a domain if it looks like one (a dot, a port,
    localhost, capitals).
    """
    first, slash, rest = name.partition("/")
    is_domain = any(c in first for c in ".:") or first == "localhost" or first.lower() != first
    if not slash or not is_domain:
        domain, path = DEFAULT_DOMAIN, name
    else:
        domain, path = first, rest
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL + path
    return domain, path


def _invalid(text: str) -> InvalidInput:
    return InvalidInput(f"invalid reference format: {text[:300]!r}")
