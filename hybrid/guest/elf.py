"""The little of ELF that the build needs: linked libraries, and a kernel module's metadata.

64-bit little-endian files only, as on every architecture that guests are made for.
"""

from __future__ import annotations

import struct

from hybrid.errors import InvalidInput

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")
_SHT_DYNAMIC, _DT_NEEDED = 6, 1
_CLASS64_LITTLE = b"\x7fELF\x02\x01"


class _Sections:
    def __init__(self, data: bytes) -> None:
        self.data = data
        try:
            fields = _HEADER.unpack_from(data)
            offset, size, count, names = fields[6], fields[11], fields[12], fields[13]
            self.table = [_SECTION.unpack_from(data, offset + size * n) for n in range(count)]
            self.names = self.content(self.table[names]) if count else b""
        except (struct.error, IndexError) as error:
            raise InvalidInput("malformed ELF file") from error

    def content(self, section: tuple[int, ...]) -> bytes:
        return self.data[section[4] : section[4] + section[5]]

    def named(self, name: str) -> bytes:
        for section in self.table:
            if _string(self.names, section[0]) == name:
                return self.content(section)
        return b""


def _string(table: bytes, at: int) -> str:
    return table[at:].partition(b"\0")[0].decode(errors="replace")


def is_elf(data: bytes) -> bool:
    return data[:6] == _CLASS64_LITTLE


def needed(data: bytes) -> list[str]:
    """The shared libraries that the file names as needed."""
    sections = _Sections(data)
    found = []
    for section in sections.table:
        if section[1] == _SHT_DYNAMIC:
            strings = sections.content(sections.table[section[6] % len(sections.table)])
            content = sections.content(section)
            entries = _DYNAMIC.iter_unpack(content[: len(content) // 16 * 16])
            found += [_string(strings, value) for tag, value in entries if tag == _DT_NEEDED]
    return found


def module_depends(data: bytes) -> list[str]:
    """The names in a kernel module's ``depends=``."""
    for item in _Sections(data).named(".modinfo").split(b"\0"):
        if item.startswith(b"depends="):
            return [name for name in item[8:].decode().split(",") if name]
    return []
