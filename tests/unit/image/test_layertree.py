from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import InvalidInput
from hybrid.image.layertree import resolve
from hybrid.image.tarstream import (
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    Entry,
)


def file(name: str, offset: int = 0, **fields: object) -> Entry:
    return Entry(name.encode(), offset=offset, size=1, **fields)  # type: ignore[arg-type]


def folder(name: str, mode: int = 0o755) -> Entry:
    return Entry(name.encode(), DIRECTORY, mode=mode)


def link(name: str, target: str) -> Entry:
    return Entry(name.encode(), LINK, link=target.encode())


def symlink(name: str, target: str) -> Entry:
    return Entry(name.encode(), SYMLINK, link=target.encode())


def plan(*entries: Entry) -> dict[str, Entry]:
    return {entry.name.decode(): entry for entry in resolve(entries).plan()}


def names(*entries: Entry) -> list[str]:
    return list(plan(*entries))


def opaque(entry: Entry) -> bool:
    return entry.xattrs.get(b"trusted.overlay.opaque") == b"y"


def is_whiteout(entry: Entry) -> bool:
    return entry.kind == CHARACTER and (entry.major, entry.minor) == (0, 0)


def test_parents_come_first_and_missing_ones_are_implied() -> None:
    result = plan(file("a/b/c"), folder("a/", 0o700))
    assert list(result) == ["a/", "a/b/", "a/b/c"]
    assert result["a/"].mode == 0o700


def test_names_are_relative_to_the_root() -> None:
    assert names(file("/etc/x"), file("./y"), file("z/../w"), file("/../v")) == [
        "etc/", "etc/x", "y", "w", "v",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "./../x"])
def test_names_that_climb_out_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="leaves the root"):
        resolve([file(name)])


def test_symlinked_parents_are_followed_inside_the_root() -> None:
    result = names(folder("etc"), symlink("out", "../../../etc"), file("out/passwd"))
    assert result == ["etc/", "etc/passwd", "out"]
    assert names(symlink("lib", "/usr/lib"), file("lib/x")) == [
        "lib",
        "usr/",
        "usr/lib/",
        "usr/lib/x",
    ]


def test_symlink_loops_and_files_as_parents_are_refused() -> None:
    for entries in (
        [symlink("a", "b"), symlink("b", "a"), file("a/x")],
        [file("a"), file("a/x")],
        [file("/".join("d" * 300))],
    ):
        with pytest.raises(InvalidInput, match="no directory"):
            resolve(entries)


def test_a_later_member_replaces_an_earlier_one() -> None:
    assert plan(file("a", 1), file("a", 2))["a"].offset == 2
    assert names(folder("a"), file("a/x"), file("a")) == ["a"]
    assert names(file("a"), folder("a"), file("a/x")) == ["a/", "a/x"]
    assert names(folder("a"), file("a/x"), folder("a")) == ["a/", "a/x"]


def test_whiteouts_become_devices() -> None:
    result = plan(folder("a"), file("a/.wh.gone"))
    assert is_whiteout(result["a/gone"])
    assert "a/.wh.gone" not in result


@pytest.mark.parametrize("order", [1, -1])
def test_members_of_the_same_layer_win_over_a_whiteout(order: int) -> None:
    assert plan(*[file("a", 5), file(".wh.a")][::order])["a"].offset == 5
    result = plan(*[file("d/x"), file(".wh.d")][::order])
    assert opaque(result["d/"])
    assert "d/x" in result


@pytest.mark.parametrize("order", [1, -1])
def test_opaque_directories(order: int) -> None:
    result = plan(folder("d", 0o711), *[file("d/x"), file("d/.wh..wh..opq")][::order])
    assert opaque(result["d/"])
    assert result["d/"].mode == 0o711
    assert set(result) == {"d/", "d/x"}


def test_aufs_names_are_dropped_and_malformed_whiteouts_refused() -> None:
    assert names(file(".wh..wh.plnk"), file(".wh..wh.aufs")) == []
    for name in (".wh.", ".wh..", ".wh..."):
        with pytest.raises(InvalidInput, match="malformed whiteout"):
            resolve([file(name)])


def test_hard_links_share_the_first_name() -> None:
    result = plan(file("a", 7), link("b", "/a"), link("c", "b"))
    assert result["a"].kind == FILE
    assert [(result[name].kind, result[name].link) for name in "bc"] == [(LINK, b"a")] * 2


def test_a_hard_link_outlives_the_name_it_was_made_from() -> None:
    result = plan(file("a", 1), link("b", "a"), link("c", "a"), file("a", 2))
    assert result["a"].offset == 2
    by_kind = {result["b"].kind: result["b"], result["c"].kind: result["c"]}
    assert by_kind[FILE].offset == 1
    assert by_kind[LINK].link == by_kind[FILE].name


def test_hard_links_to_special_files_are_copies() -> None:
    result = plan(Entry(b"p", FIFO), link("q", "p"), symlink("s", "x"), link("t", "s"))
    assert result["q"].kind == FIFO
    assert (result["t"].kind, result["t"].link) == (SYMLINK, b"x")


@pytest.mark.parametrize(
    ("name", "target"), [("b", "missing"), ("b", "no/such"), ("b", "d"), ("b", "w"), ("b", "")]
)
def test_hard_links_to_what_the_layer_lacks_are_refused(name: str, target: str) -> None:
    with pytest.raises(InvalidInput, match=r"not a file of the layer|hard link"):
        resolve([folder("d"), file(".wh.w"), link(name, target)])


def test_a_hard_link_out_of_the_root_is_refused() -> None:
    with pytest.raises(InvalidInput, match="leaves the root"):
        resolve([link("b", "../../etc/shadow")])


def test_only_harmless_xattrs_stay() -> None:
    kept = {b"security.capability": b"c", b"user.x": b"u"}
    dropped = {
        b"trusted.overlay.redirect": b"/",
        b"security.selinux": b"l",
        b"system.posix_acl_access": b"a",
        b"user.": b"",
    }
    dropped.pop(b"user.")
    assert plan(file("f", xattrs={**kept, **dropped}))["f"].xattrs == kept


def test_an_image_cannot_make_its_own_opaque_directory_by_xattr() -> None:
    entry = folder("d")
    entry.xattrs = {b"trusted.overlay.opaque": b"y"}
    assert not opaque(plan(entry)["d/"])


def test_the_root_may_have_attributes() -> None:
    assert plan(folder("./", 0o700))["./"].mode == 0o700


def test_names_are_bounded() -> None:
    with pytest.raises(InvalidInput, match="more than 255 bytes"):
        resolve([file("n" * 256)])


PARTS = st.sampled_from(["a", "b", "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", "c"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
ENTRIES = st.builds(
    lambda name, kind, target: Entry(name.encode(), kind, link=target.encode()),
    NAMES,
    st.sampled_from([FILE, DIRECTORY, LINK, SYMLINK, FIFO]),
    NAMES,
)


@given(st.lists(ENTRIES, max_size=12))
def test_any_layer_is_refused_or_becomes_a_proper_tree(entries: list[Entry]) -> None:
    """Every name once, below the root, its parent a directory before it; links to earlier files."""
    try:
        planned = list(resolve(entries).plan())
    except InvalidInput:
        return
    seen: dict[bytes, bytes] = {b"": DIRECTORY}
    for entry in planned:
        if entry.name == b"./":
            continue
        name = entry.name.removesuffix(b"/")
        parts = name.split(b"/")
        assert name not in seen
        assert not {b"", b".", b".."} & set(parts)
        assert seen[b"/".join(parts[:-1])] == DIRECTORY
        if entry.kind == LINK:
            assert seen[entry.link] == FILE
        seen[name] = entry.kind
