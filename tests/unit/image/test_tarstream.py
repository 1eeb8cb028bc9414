from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import InvalidInput
from hybrid.image import tarstream
from hybrid.image.tarstream import Entry
from tests.archives import directory, hard_link, member, symlink, tar


def read(data: bytes, limit: int = 1000) -> list[Entry]:
    return list(tarstream.entries(io.BytesIO(data), len(data), limit))


def content(data: bytes, entry: Entry) -> bytes:
    return data[entry.offset : entry.offset + entry.size]


LONG = "d" * 90 + "/" + "e" * 120 + "/" + "f" * 60


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read(form: int) -> None:
    long = LONG if form != tarfile.USTAR_FORMAT else "p" * 90 + "/" + "n" * 60
    data = tar(
        [
            directory("a/", 0o1777),
            member("a/f", b"content", mode=0o4755, uid=7, gid=8, mtime=9),
            hard_link("a/g", "a/f"),
            symlink("s", "a/f"),
            member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            member("fifo", type=tarfile.FIFOTYPE),
            member(long, b"x"),
        ],
        form,
    )
    entries = read(data)
    assert [entry.kind for entry in entries] == [b"5", b"0", b"1", b"2", b"3", b"6", b"0"]
    file = entries[1]
    assert (file.mode, file.uid, file.gid, file.mtime) == (0o4755, 7, 8, 9)
    assert content(data, file) == b"content"
    assert entries[2].link == entries[3].link == b"a/f"
    assert (entries[4].major, entries[4].minor) == (1, 3)
    assert entries[6].name.decode() == long


def test_large_ids_and_xattrs_and_raw_names() -> None:
    value = b"\x01\0\0\x02\0\xff"
    data = tar(
        [
            member(
                "\udcff\udcfe",
                uid=4_000_000_000,
                gid=3_000_000,
                xattrs={"security.capability": value},
            )
        ]
    )
    (entry,) = read(data)
    assert (entry.uid, entry.gid) == (4_000_000_000, 3_000_000)
    assert entry.xattrs == {b"security.capability": value}
    assert entry.name == b"\xff\xfe"
    gnu = read(tar([member("x", uid=4_000_000_000)], tarfile.GNU_FORMAT))[0]
    assert gnu.uid == 4_000_000_000


def test_what_is_written_is_read_again() -> None:
    entry = Entry(
        name=b"n\xff" * 80,
        mode=0o755,
        uid=5_000_000,
        gid=1,
        mtime=1_700_000_000,
        size=3,
        xattrs={b"user.a": b"\0\n=1"},
    )
    data = tarstream.header(entry) + b"abc" + tarstream.padding(3) + b"\0" * 1024
    (again,) = read(data)
    entry.offset = again.offset
    assert again == entry
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (info,) = archive.getmembers()
        assert (info.size, info.uid) == (3, 5_000_000)


_MAP = b"2\n1000\n3\n5000\n2\n".ljust(512, b"\0")


@pytest.mark.parametrize(
    ("records", "before"),
    [
        ("size=8000 numblocks=2 offset=1000 numbytes=3 offset=5000 numbytes=2", b""),
        ("size=8000 map=1000,3,5000,2 name=s", b""),
        ("major=1 minor=0 realsize=8000 name=s", _MAP),
    ],
)
def test_pax_sparse_files_of_all_three_versions(records: str, before: bytes) -> None:
    pairs = (record.split("=") for record in records.split())
    extension = b"".join(_record("GNU.sparse." + key, value) for key, value in pairs)
    data = _raw(b"x", extension) + _raw(b"0", before + b"abcde") + b"\0" * 1024
    (entry,) = read(data)
    assert (entry.size, entry.runs) == (8000, [(1000, 3), (5000, 2)])
    assert data[entry.offset : entry.offset + 5] == b"abcde"


def test_old_gnu_sparse() -> None:
    header = bytearray(_raw(b"S", b"abcde")[:512])
    header[257:265] = b"ustar  \0"
    header[386:410] = b"%011o\0%011o\0" % (1000, 3)
    header[410:434] = b"%011o\0%011o\0" % (5000, 2)
    header[483:495] = b"%011o\0" % 8000
    data = _sealed(header) + b"abcde".ljust(512, b"\0")
    (entry,) = read(data)
    assert (entry.size, entry.runs, entry.offset) == (8000, [(1000, 3), (5000, 2)], 512)


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    size = len(body) + 2
    size = size if len(str(size)) == 2 else size + 1
    return str(size).encode() + body


def _sealed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _raw(kind: bytes, body: bytes, name: bytes = b"s") -> bytes:
    entry = Entry(name, kind, size=len(body))
    return tarstream.header(entry) + body + tarstream.padding(len(body))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * 512, "not a tar archive"),
        (b"\x1f\x8b" + b"\0" * 100, "truncated"),
        (_raw(b"0", b"abc")[:514], "truncated"),
        (_raw(b"0", b"abc")[:300], "truncated"),
        (_raw(b"Z", b""), "unknown type"),
        (_raw(b"x", b"9 a=b\n"), "malformed pax"),
        (_raw(b"x", b"6 a=b\n"), "no member"),
        (_raw(b"x", b"99999999999999999999999 a=b\n"), "bad number|malformed"),
        (_raw(b"x", _record("size", "99999999")) + _raw(b"0", b""), "truncated"),
        (_raw(b"x", _record("uid", "-1")) + _raw(b"0", b""), "bad number"),
        (_raw(b"x", _record("uid", "4294967295")) + _raw(b"0", b""), "impossible uid"),
        (_raw(b"x", _record("path", "a\0b")) + _raw(b"0", b""), "bad name"),
        (_raw(b"L", b"n" * 5000) + _raw(b"0", b""), "bad name"),
        (
            _raw(b"x", _record("GNU.sparse.size", "9") + _record("GNU.sparse.map", "5,9"))
            + _raw(b"0", b"x" * 9),
            "malformed sparse",
        ),
        (
            _raw(b"x", _record("GNU.sparse.size", "9") + _record("GNU.sparse.map", "0,9"))
            + _raw(b"0", b"x"),
            "malformed sparse",
        ),
    ],
)
def test_malformed_archives_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(data)


def test_members_are_bounded() -> None:
    with pytest.raises(InvalidInput, match="more than 2 members"):
        read(tar([member(str(n)) for n in range(3)]), limit=2)


def test_extension_headers_are_bounded() -> None:
    with pytest.raises(InvalidInput, match="extension header of"):
        read(_raw(b"x", b"\0" * (tarstream.MAX_EXTENSION + 1)))


VALID = tar([directory("a/"), member("a/" + "f" * 150, b"data", xattrs={"user.k": b"v"})])


@given(st.integers(0, len(VALID) - 1), st.integers(0, 255), st.integers(0, len(VALID)))
def test_a_damaged_archive_is_an_error_or_an_archive(at: int, byte: int, cut: int) -> None:
    data = bytearray(VALID)
    data[at] = byte
    try:
        for entry in read(bytes(data[:cut])):
            assert entry.offset + entry.size <= cut
    except InvalidInput:
        pass
