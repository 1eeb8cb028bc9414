"""Recipe data files: one item a line, ``#`` starts a comment, ``[name]`` starts a section. Pure."""

from __future__ import annotations

import re

from hybrid.errors import InvalidInput

_SECTION = re.compile(r"\[([a-z0-9-]+)\]")


def parse(text: str, where: str, **values: str) -> dict[str, list[str]]:
    """Items by section ("" before the first), in order; ``{name}`` is replaced from ``values``."""
    sections: dict[str, list[str]] = {"": []}
    current = sections[""]
    for number, line in enumerate(text.splitlines(), 1):
        item = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        match = _SECTION.fullmatch(item)
        if match:
            current = sections.setdefault(match[1], [])
        elif item:
            try:
                current.append(item.format_map(values) if "{" in item else item)
            except (KeyError, ValueError, IndexError) as error:
                raise InvalidInput(f"{where}:{number}: unknown placeholder in {item!r}") from error
    return sections
