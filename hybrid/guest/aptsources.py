"""The machine's own apt sources, turned to the Debian release of the guests.

Only sources of the Debian archive itself count: those whose suite is the running release's (also
``-updates`` and ``-security``), whose components include ``main`` and whose key, where one is
named, is Debian's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import InvalidInput, Unavailable

GUEST_SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_POCKETS = ("", "-updates", "-security")
_ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)"
)


@dataclass(frozen=True)
class Source:
    """One archive and suite."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""

    def line(self) -> str:
        """As one line of a sources.list."""
        key = f"[signed-by={self.signed_by or KEYRING}]"
        return f"deb {key} {self.uri} {self.suite} {' '.join(self.components)}"


def parse_list(text: str) -> list[Source]:
    """The ``deb`` lines of a sources.list (``sources.list(5)``, one-line style)."""
    sources = []
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.split("#", 1)[0].strip())
        if match:
            options = dict(
                item.split("=", 1) for item in (match["options"] or "").split() if "=" in item
            )
            components = tuple(match["components"].split())
            sources.append(
                Source(match["uri"], match["suite"], components, options.get("signed-by", ""))
            )
    return sources


def parse_deb822(text: str) -> list[Source]:
    """The enabled ``deb`` stanzas of a .sources file (``sources.list(5)``, deb822 style)."""
    sources = []
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')}\n{line.strip()}"
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in (
            "no",
            "false",
        ):
            continue
        signed_by = fields.get("signed-by", "").strip()
        sources += [
            Source(
                uri,
                suite,
                tuple(fields.get("components", "").split()),
                "" if "\n" in signed_by else signed_by,
            )
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return sources


def for_guest(sources: Iterable[Source], codename: str, suite: str = GUEST_SUITE) -> list[Source]:
    """The same archives at ``suite``; Unavailable if the machine knows no Debian archive."""
    found = []
    for source in sources:
        pocket = source.suite.removeprefix(codename)
        named_debian = not source.signed_by or "debian" in Path(source.signed_by).name
        if (
            source.suite.startswith(codename)
            and pocket in _POCKETS
            and "main" in source.components
            and named_debian
        ):
            found.append(Source(source.uri, suite + pocket, ("main",), source.signed_by))
    if not any(source.suite == suite for source in found):
        raise Unavailable(
            f"no Debian archive for {codename!r} in the apt sources (/etc/apt); "
            f"guests are made of Debian {suite} packages"
        )
    return list(dict.fromkeys(found))


def read_host(etc: Path = Path("/etc")) -> list[Source]:
    """What this machine's own apt configuration gives for the guest's release."""
    release = dict(
        line.split("=", 1) for line in (etc / "os-release").read_text().splitlines() if "=" in line
    )
    codename = release.get("VERSION_CODENAME", "").strip('"')
    if release.get("ID", "").strip('"') != "debian" or not codename:
        raise Unavailable("guest images are built on Debian: /etc/os-release names another system")
    sources: list[Source] = []
    try:
        if (etc / "apt/sources.list").exists():
            sources += parse_list((etc / "apt/sources.list").read_text())
        for path in sorted((etc / "apt/sources.list.d").glob("*")):
            if path.suffix == ".list":
                sources += parse_list(path.read_text())
            elif path.suffix == ".sources":
                sources += parse_deb822(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read the apt sources: {error}") from error
    return for_guest(sources, codename)
