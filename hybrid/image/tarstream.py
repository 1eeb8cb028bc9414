"""Tar archives, read without trust and written without loss. Standard library only; names are
bytes, not text.

Read: v7, ustar, GNU (long names, old sparse) and pax (names, sizes, ids, times, xattrs, GNU sparse
0.0, 0.1, 1.0). Written: ustar headers, preceded by a pax header where a field does not fit. Unlike
``tarfile`` the size of every extension header is bounded, no name is decoded, and what is not
understood is an error, not skipped. Sources: POSIX pax(1), the GNU tar manual's "Basic Tar Format"
and "Storing Sparse Files".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from hybrid.errors import InvalidInput

BLOCK = 512
MAX_EXTENSION = 1 << 20  # one pax header or long name
MAX_NAME = 4096  # PATH_MAX
MAX_SPARSE = 1 << 16  # runs in one sparse file
MAX_ID = (1 << 32) - 2
FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)
_XATTR = b"SCHILY.xattr."
_KINDS = {b"\0": FILE, b"7": FILE, b"S": FILE} | {
    kind: kind for kind in (FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO)
}
Records = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Entry:
    """One member. ``size`` is the content's length, found at ``offset`` in the archive; a sparse
    file's content is instead the ``runs`` (position, length), one after the other from ``offset``
    on, in a file of zeros.
    """

    name: bytes
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    offset: int = 0
    runs: list[tuple[int, int]] | None = None


def entries(source: BinaryIO, length: int, limit: int) -> Iterator[Entry]:
    """The members of the tar archive of ``length`` bytes in the seekable ``source``; at most
    ``limit`` of them.

    InvalidInput for anything malformed: bad checksum, truncation, unknown types, oversized
    extension headers.
    """
    position, records, count = 0, Records(), 0
    while header := _block(source, position, length):
        position += BLOCK
        kind, stored = header[156:157], _number(header[124:136])
        if stored < 0 or position + stored > length:
            raise InvalidInput("the archive is truncated: it ends inside a member")
        if kind in b"xgLK":
            extension = _extension(source, position, stored)
            if kind == b"x":
                records += _pax(extension)
            elif kind != b"g":
                key = b"path" if kind == b"L" else b"linkpath"
                records.append((key, extension.rstrip(b"\0")))
            position += _padded(stored)
            continue
        count += 1
        if count > limit:
            raise InvalidInput(f"the archive has more than {limit} members")
        entry, stored, position = _entry(source, header, records, position, length)
        records = Records()
        yield entry
        position += _padded(stored)
    if records:
        raise InvalidInput("the archive is truncated: an extension header has no member")


def _block(source: BinaryIO, position: int, length: int) -> bytes:
    """The header at ``position``; empty at the archive's end (a zero block, or the end of the
    file).
    """
    if position >= length:
        return b""
    source.seek(position)
    header = source.read(BLOCK)
    if len(header) < BLOCK:
        raise InvalidInput("the archive is truncated: it ends inside a header")
    if not any(header):
        return b""
    blank = header[:148] + b" " * 8 + header[156:]
    total = sum(blank)
    signed = total - 256 * sum(
        byte > 127 for byte in blank
    )  # some historic tars summed signed characters
    field_ = header[148:156].strip(b" \0")
    if not field_.isdigit() or int(field_, 10 if field_.strip(b"01234567") else 8) not in (
        total,
        signed,
    ):
        raise InvalidInput(f"not a tar archive, or damaged: bad header checksum at byte {position}")
    return header


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _number(field_: bytes) -> int:
    """Octal digits, or (first bit set) a big-endian two's complement number."""
    if field_[0] & 0x80:
        value = int.from_bytes(field_, "big") & ((1 << (8 * len(field_) - 1)) - 1)
        return value - (1 << (8 * len(field_) - 1)) if field_[0] & 0x40 else value
    digits = field_.split(b"\0", 1)[0].strip(b" ")
    return _integer(digits or b"0", 8)


def _integer(text: bytes, base: int = 10) -> int:
    allowed = b"01234567" if base == 8 else b"0123456789"
    if not text or len(text) > 20 or text.strip(allowed):
        raise InvalidInput(f"the archive has a bad number: {text[:24]!r}")
    return int(text, base)


def _extension(source: BinaryIO, position: int, size: int) -> bytes:
    if size > MAX_EXTENSION:
        raise InvalidInput(f"the archive has an extension header of {size} bytes")
    source.seek(position)
    return source.read(size)


def _pax(data: bytes) -> Records:
    """``LENGTH KEY=VALUE\\n`` records, in order (GNU sparse 0.0 repeats its keys)."""
    records: Records = []
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        size = _integer(length[:21]) if space else 0
        record = data[len(length) + 1 : size]
        key, equals, value = record[:-1].partition(b"=")
        if not (len(length) + 3 <= size <= len(data) and record.endswith(b"\n") and equals and key):
            raise InvalidInput("the archive has a malformed pax header")
        records.append((key, value))
        data = data[size:]
    return records


def _text(field_: bytes) -> bytes:
    return field_.split(b"\0", 1)[0]


def _entry(
    source: BinaryIO, header: bytes, records: Records, position: int, length: int
) -> tuple[Entry, int, int]:
    """(the member, its stored size, where its stored bytes begin) from header and extension
    records.
    """
    pax = dict(records)
    name = _text(header[:100])
    if header[257:265] == b"ustar\x0000" and header[345]:
        name = _text(header[345:500]) + b"/" + name
    name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name
    kind = _KINDS.get(header[156:157])
    if kind is None:
        raise InvalidInput(f"the archive has a member of unknown type {header[156:157]!r}")
    if kind == FILE and name.endswith(b"/"):
        kind = DIRECTORY
    stored = _integer(pax[b"size"]) if pax.get(b"size") else _number(header[124:136])
    if kind != FILE:
        stored = 0
    entry = Entry(
        name=name,
        kind=kind,
        mode=_number(header[100:108]) & 0o7777,
        uid=_identity(pax, b"uid", header[108:116]),
        gid=_identity(pax, b"gid", header[116:124]),
        mtime=_time(pax, header[136:148]),
        size=stored,
        link=pax.get(b"linkpath") or _text(header[157:257]),
        xattrs={key[len(_XATTR) :]: value for key, value in records if key.startswith(_XATTR)},
    )
    if kind in (CHARACTER, BLOCK_DEVICE):
        entry.major, entry.minor = _number(header[329:337]), _number(header[337:345])
    for text in (entry.name, entry.link):
        if b"\0" in text or len(text) > MAX_NAME:
            raise InvalidInput(f"the archive has a bad name: {text[:60]!r}")
    begin = position
    if position + stored > length:
        raise InvalidInput("the archive is truncated: it ends inside a member")
    if header[156:157] == b"S":
        begin = position = _old_sparse(source, header, entry, position)
    elif any(key.startswith(b"GNU.sparse.") for key in pax):
        begin = _pax_sparse(source, records, entry, position)
    entry.offset = begin
    if entry.runs is not None:
        _check_runs(entry, stored - (begin - position), begin, length)
    return entry, stored, position


def _identity(pax: dict[bytes, bytes], key: bytes, field_: bytes) -> int:
    value = _integer(pax[key]) if pax.get(key) else _number(field_)
    if not 0 <= value <= MAX_ID:
        raise InvalidInput(f"the archive has a member with an impossible {key.decode()}: {value}")
    return value


def _time(pax: dict[bytes, bytes], field_: bytes) -> int:
    """Whole seconds, at least 0: what the file system image can hold."""
    text = pax.get(b"mtime", b"").partition(b".")[0]
    if text.startswith(b"-"):
        return 0
    return min(max(_integer(text) if text else _number(field_), 0), (1 << 32) - 1)


def _old_sparse(source: BinaryIO, header: bytes, entry: Entry, position: int) -> int:
    """Reads an old GNU sparse map (in the header, then in extra blocks); returns where the data
    begins.
    """
    runs: list[tuple[int, int]] = []
    block, first, count, flag = header, 386, 4, 482
    while True:
        for index in range(count):
            at = first + 24 * index
            if block[at]:
                runs.append((_number(block[at : at + 12]), _number(block[at + 12 : at + 24])))
        if not block[flag]:
            break
        if len(runs) > MAX_SPARSE:
            raise InvalidInput("the archive has a sparse file with too many parts")
        source.seek(position)
        block, first, count, flag = source.read(BLOCK), 0, 21, 504
        if len(block) < BLOCK:
            raise InvalidInput("the archive is truncated: it ends inside a sparse map")
        position += BLOCK
    entry.runs, entry.size = runs, _number(header[483:495])
    return position


def _pax_sparse(source: BinaryIO, records: Records, entry: Entry, position: int) -> int:
    """Reads a pax sparse map: in repeated records (0.0), in one record (0.1), or before the data
    (1.0).
    """
    pax = dict(records)
    size = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
    numbers: list[int] = []
    begin = position
    if pax.get(b"GNU.sparse.major") == b"1":
        numbers, begin = _map_before_data(source, position, entry.size)
    elif b"GNU.sparse.map" in pax:
        numbers = [_integer(text) for text in pax[b"GNU.sparse.map"].split(b",") if text]
    else:
        keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        numbers = [_integer(value) for key, value in records if key in keys]
    if size is None or len(numbers) % 2:
        raise InvalidInput("the archive has a malformed sparse map")
    entry.runs = list(zip(numbers[::2], numbers[1::2], strict=True))
    entry.size = _integer(size)
    return begin


def _map_before_data(source: BinaryIO, position: int, stored: int) -> tuple[list[int], int]:
    """Decimal lines (a count, then pairs) padded to a whole block; (the numbers, where the data
    begins).
    """
    source.seek(position)
    text = source.read(min(stored, MAX_EXTENSION))
    count_line, _, rest = text.partition(b"\n")
    count = _integer(count_line)
    lines = rest.split(b"\n", 2 * count)
    if count > MAX_SPARSE or len(lines) != 2 * count + 1:
        raise InvalidInput("the archive has a malformed sparse map")
    used = len(text) - len(lines[-1])
    return [_integer(line) for line in lines[:-1]], position + _padded(used)


def _check_runs(entry: Entry, available: int, begin: int, length: int) -> None:
    """Runs in order, inside the file, and no more bytes than the archive holds for it."""
    end = total = 0
    runs = entry.runs or []
    for start, size in runs:
        if start < end or size < 0:
            raise InvalidInput("the archive has a malformed sparse map")
        end = start + size
        total += size
    if len(runs) > MAX_SPARSE or end > entry.size or total > available or begin + total > length:
        raise InvalidInput("the archive has a malformed sparse map")


def header(entry: Entry) -> bytes:
    """The header blocks of ``entry``, with a pax header where ustar has no room. Content is the
    caller's to add.
    """
    records: Records = [(_XATTR + key, value) for key, value in sorted(entry.xattrs.items())]
    for key, value, room in ((b"path", entry.name, 100), (b"linkpath", entry.link, 100)):
        if len(value) > room:
            records.append((key, value))
    for key, number, digits in (
        (b"uid", entry.uid, 7),
        (b"gid", entry.gid, 7),
        (b"size", entry.size, 11),
        (b"mtime", entry.mtime, 11),
    ):
        if number >= 8**digits:
            records.append((key, b"%d" % number))
    extension = b"".join(_record(key, value) for key, value in records)
    blocks = _ustar(entry)
    if not extension:
        return blocks
    pax = Entry(name=b"pax", kind=b"x", size=len(extension))
    return _ustar(pax) + extension + padding(len(extension)) + blocks


def padding(size: int) -> bytes:
    """The zeros that fill the last block of ``size`` bytes of content."""
    return b"\0" * (_padded(size) - size)


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = len(body)
    while len(str(size)) + len(body) != size:
        size = len(str(size)) + len(body)
    return str(size).encode() + body


def _ustar(entry: Entry) -> bytes:
    def octal(value: int, digits: int) -> bytes:
        return b"%0*o\0" % (digits, value if value < 8**digits else 0)

    block = bytearray(
        entry.name[:100].ljust(100, b"\0")
        + octal(entry.mode, 7)
        + octal(entry.uid, 7)
        + octal(entry.gid, 7)
        + octal(entry.size, 11)
        + octal(entry.mtime, 11)
        + b" " * 8
        + entry.kind
        + entry.link[:100].ljust(100, b"\0")
        + b"ustar\x0000"
        + b"\0" * 64
        + octal(entry.major, 7)
        + octal(entry.minor, 7)
        + b"\0" * 167
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
