"""The store with a converter in memory: names, ids, loading, removing, and what is left after
failures.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.errors import Conflict, Internal, InvalidInput, NotFound, Unavailable
from hybrid.image import blobs
from hybrid.image.layer import Bounds
from hybrid.image.store import ImageStore
from hybrid.paths import Paths
from tests.archives import ImageMade, descriptor, digest, member, simple, stream, symlink, tar, tree


class MemoryConverter:
    """Makes empty layer files; fails for the diff ids in ``broken``."""

    def __init__(self, paths: Paths) -> None:
        self._directory = paths.layers
        self.broken: set[str] = set()
        self.asked: list[str] = []

    def path(self, diff_id: str) -> Path:
        return self._directory / (diff_id.removeprefix("sha256:") + ".squashfs")

    async def convert(self, blob: Path, diff_id: str) -> Path:
        self.asked.append(diff_id)
        assert blob.is_file()
        if diff_id in self.broken:
            raise InvalidInput("the layer is bad")
        self.path(diff_id).touch()
        return self.path(diff_id)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path, tmp_path / "run")


@pytest.fixture
def converter(paths: Paths) -> MemoryConverter:
    return MemoryConverter(paths)


@pytest.fixture
def store(paths: Paths, converter: MemoryConverter) -> ImageStore:
    return ImageStore(paths, converter)


def files(paths: Paths) -> set[str]:
    return {str(path.relative_to(paths.root)) for path in paths.root.rglob("*") if path.is_file()}


EMPTY = {"images/oci-layout"}


async def load(store: ImageStore, data: bytes) -> list[tuple[str, str]]:
    return [(one.id, one.name) for one in await store.load(stream(data))]


@pytest.mark.parametrize(
    "pack",
    [
        lambda made: made.docker_archive(),
        lambda made: made.docker_archive(compress=True),
        lambda made: made.oci_archive(),
        lambda made: tree({**made.oci_files(), **made.docker_files()}),
    ],
)
async def test_every_kind_of_archive(store: ImageStore, pack: Callable[[ImageMade], bytes]) -> None:
    made = simple()
    assert await load(store, pack(made)) == [(made.id, "made:1")]
    image = store.resolve("made:1")
    assert image.names == ["made:1"]
    assert store.config(image).command == ["sh"]
    assert len(await store.layers(image)) == 2
    assert store.raw_config(image)["created"] == "2024-05-01T00:00:00Z"


async def test_an_archive_on_disk(store: ImageStore, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(simple().docker_archive())
    assert (await store.load(archive))[0].name == "made:1"
    with pytest.raises(NotFound, match="no such file"):
        await store.load(tmp_path / "missing.tar")


async def test_an_image_without_a_name(store: ImageStore) -> None:
    made = simple(names=[])
    assert await load(store, made.docker_archive()) == [(made.id, "")]
    assert store.resolve(made.id).names == []


async def test_several_names_and_images(store: ImageStore) -> None:
    one, two = simple(["a:1", "b"]), simple(["c:2"], b"other\n")
    manifest = [
        entry for made in (one, two) for entry in json.loads(made.docker_files()["manifest.json"])
    ]
    for number, entry in enumerate(manifest):
        entry["Layers"] = [f"{number}/{name}" for name in entry["Layers"]]
    contents = {}
    for number, made in enumerate((one, two)):
        for name, data in made.docker_files().items():
            contents[f"{number}/{name}" if "layer" in name else name] = data
    contents["manifest.json"] = json.dumps(manifest).encode()
    assert await load(store, tree(contents)) == [
        (one.id, "a:1"),
        (one.id, "b:latest"),
        (two.id, "c:2"),
    ]


async def test_a_layer_that_is_a_link_to_another(store: ImageStore) -> None:
    base = tar([member("x", b"x")])
    made = ImageMade([base, base])
    members = [
        member(name, data) for name, data in made.docker_files().items() if name != "1/layer.tar"
    ]
    await load(store, tar([*members, symlink("1/layer.tar", "../0/layer.tar")]))
    assert len(await store.layers(store.resolve("made:1"))) == 2


async def test_the_store_is_found_again(
    paths: Paths, store: ImageStore, converter: MemoryConverter
) -> None:
    made = simple()
    await load(store, made.docker_archive())
    await store.tag("made:1", "other")
    again = ImageStore(paths, converter)
    assert again.list() == store.list()
    assert again.resolve("other").id == made.id


async def test_resolving(store: ImageStore) -> None:
    made = simple(["beef:latest"])
    await load(store, made.docker_archive())
    bare = made.id.removeprefix("sha256:")
    manifest = store.resolve("beef").manifest.digest
    for text in ("beef", "beef:latest", "docker.io/library/beef", bare, bare[:12], made.id,
                 "sha256:" + bare[:8], f"beef@{manifest}"):  # fmt: skip
        assert store.resolve(text).id == made.id
    for text, shown in (("nope", "nope:latest"), ("beef:2", "beef:2"), ("0" * 64, "0" * 64)):
        with pytest.raises(NotFound, match=f"No such image: {shown}"):
            store.resolve(text)
    with pytest.raises(InvalidInput):
        store.resolve("UPPER")


async def test_an_ambiguous_prefix_is_refused(store: ImageStore) -> None:
    first: dict[str, bytes] = {}
    for number in range(40):
        made = simple([f"n:{number}"], b"%d" % number)
        await load(store, made.docker_archive())
        letter = made.id.removeprefix("sha256:")[0]
        if letter in first:
            with pytest.raises(InvalidInput, match="ambiguous"):
                store.resolve("sha256:" + letter)
            return
        first[letter] = b""
    pytest.fail("40 ids with 40 first digits")


async def test_a_name_moves_to_the_newer_image(store: ImageStore) -> None:
    old, new = simple(), simple(content=b"new\n")
    await load(store, old.docker_archive())
    await load(store, new.docker_archive())
    assert store.resolve("made:1").id == new.id
    assert store.resolve(old.id).names == []


async def test_removing_a_name_of_several_only_untags(store: ImageStore) -> None:
    made = simple()
    await load(store, made.docker_archive())
    await store.tag("made:1", "made:2")
    assert await store.remove("made:2") == [{"Untagged": "made:2"}]
    assert store.resolve("made:1").names == ["made:1"]


async def test_removing_the_last_name_deletes_everything(
    paths: Paths, store: ImageStore, converter: MemoryConverter
) -> None:
    made = simple()
    await load(store, made.docker_archive())
    removed = await store.remove("made:1")
    assert removed[:2] == [{"Untagged": "made:1"}, {"Deleted": made.id}]
    assert removed[-1] == {"Deleted": digest(made.layers[0])}
    assert files(paths) == EMPTY | {"images/index.json"}
    assert store.list() == []


async def test_removing_by_id(store: ImageStore) -> None:
    made = simple()
    await load(store, made.docker_archive())
    await store.tag("made:1", "made:2")
    await store.tag("made:1", "other:1")
    short = made.id.removeprefix("sha256:")[:12]
    with pytest.raises(Conflict, match=f"unable to delete {short} \\(must be forced\\)"):
        await store.remove(short)
    removed = await store.remove(short, force=True)
    assert sum("Untagged" in item for item in removed) == 3
    assert store.list() == []


async def test_shared_layers_stay(paths: Paths, store: ImageStore) -> None:
    one, two = simple(["a:1"]), simple(["b:1"])
    two.layers[1] = tar([member("else", b"e")])
    await load(store, one.docker_archive())
    await load(store, two.docker_archive())
    removed = await store.remove("a:1")
    assert {"Deleted": digest(one.layers[0])} not in removed
    assert len(await store.layers(store.resolve("b:1"))) == 2
    assert len(list(paths.layers.iterdir())) == 2


async def test_layers_that_containers_use_stay(paths: Paths, store: ImageStore) -> None:
    made = simple()
    await load(store, made.docker_archive())
    store.pinned = lambda: [digest(made.layers[0])]
    await store.remove("made:1", force=True)
    assert len(list(paths.layers.iterdir())) == 1


async def test_an_image_removed_while_its_layers_are_asked_for(
    store: ImageStore, converter: MemoryConverter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(store, simple().docker_archive())
    image = store.resolve("made:1")

    async def removed_meanwhile(blob: Path, diff_id: str) -> Path:
        await store.remove("made:1")
        raise Internal(f"{blob}: No such file or directory")

    monkeypatch.setattr(converter, "convert", removed_meanwhile)
    for _ in range(2):  # meanwhile, and before
        with pytest.raises(NotFound, match=f"No such image: {image.id}"):
            await store.layers(image)
    with pytest.raises(NotFound):
        store.config(image)


async def test_names_given_at_once_are_all_stored(
    paths: Paths, store: ImageStore, converter: MemoryConverter
) -> None:
    await load(store, simple().docker_archive())
    names = [f"other:{number}" for number in range(20)]
    await asyncio.gather(*(store.tag("made:1", name) for name in names), store.collect())
    assert set(ImageStore(paths, converter).resolve("made:1").names) == {"made:1", *names}


def spoiled(change: Callable[[dict[str, bytes]], object], oci: bool = False) -> bytes:
    made = simple()
    contents = made.oci_files() if oci else made.docker_files()
    change(contents)
    return tree(contents)


def _edit(contents: dict[str, bytes], name: str, old: bytes, new: bytes) -> None:
    assert old in contents[name]
    contents[name] = contents[name].replace(old, new)


def _blob(contents: dict[str, bytes], marker: bytes) -> str:
    return next(
        name for name, data in contents.items() if name.startswith("blobs/") and marker in data
    )


BAD = {
    "empty": (b"", "empty"),
    "not a tar": (b"x" * 2048, "not a tar archive"),
    "no image": (tree({"a": b"b"}), "not an image archive"),
    "truncated": (simple().docker_archive()[:2500], "truncated"),
    "truncated gzip": (gzip.compress(simple().docker_archive())[:-200], "truncated gzip"),
    "no layer": (spoiled(lambda c: c.pop("1/layer.tar")), "incomplete: it has no 1/layer.tar"),
    "other layer": (
        spoiled(lambda c: c.update({"1/layer.tar": tar([member("x", b"y")])})),
        "wrong digest",
    ),
    "other config": (
        spoiled(lambda c: [c.update({n: d + b" "}) for n, d in list(c.items()) if len(n) == 69]),
        "wrong digest",
    ),
    "layer count": (
        spoiled(lambda c: _edit(c, "manifest.json", b', "1/layer.tar"', b"")),
        "layers length mismatch",
    ),
    "bad name": (spoiled(lambda c: _edit(c, "manifest.json", b"made:1", b"MADE:1")), "lowercase"),
    "escape": (
        spoiled(lambda c: _edit(c, "manifest.json", b"1/layer.tar", b"../etc/shadow")),
        "leaves its root",
    ),
    "escaping member": (tree({"../x": b"", "manifest.json": b"[]"}), "leaves its root"),
    "absolute member": (tree({"/x": b"", "manifest.json": b"[]"}), "leaves its root"),
    "link loop": (
        tar([symlink("manifest.json", "m"), symlink("m", "manifest.json")]),
        "not a regular file",
    ),
    "link out": (tar([symlink("manifest.json", "/etc/passwd")]), "incomplete"),
    "device": (tar([member("manifest.json", type=b"3")]), "not a regular file"),
    "no images": (tree({"manifest.json": b"[]"}), "holds no image"),
    "not json": (tree({"manifest.json": b"{"}), "manifest.json is invalid"),
    "oci: blob missing": (
        spoiled(lambda c: c.pop(_blob(c, b"made by a test")), oci=True),
        "incomplete",
    ),
    "oci: wrong config": (
        spoiled(lambda c: _edit(c, _blob(c, b"made by a test"), b"a test", b"b test"), oci=True),
        "wrong digest",
    ),
    "oci: wrong layer": (
        spoiled(lambda c: _edit(c, _blob(c, b"\x1f\x8b"), b"\x1f\x8b", b"\x1f\x8c"), oci=True),
        "wrong digest",
    ),
    "oci: wrong size": (
        spoiled(lambda c: c.update({_blob(c, b"\x1f\x8b"): b"\x1f\x8b"}), oci=True),
        "wrong size",
    ),
    "oci: bad digest": (
        spoiled(lambda c: _edit(c, "index.json", b"sha256:", b"sha256:../../"), oci=True),
        "index.json is invalid",
    ),
    "oci: other platform": (
        spoiled(
            lambda c: _edit(
                c, "index.json", b'"size"', b'"platform": {"os": "plan9"}, "size"'
            ),
            oci=True,
        ),
        "no image for linux/",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    # decompressors are confined in namespaces
    [pytest.param(one, marks=pytest.mark.root if "gzip" in one else ()) for one in BAD],
)
async def test_bad_archives_leave_nothing(paths: Paths, store: ImageStore, case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(InvalidInput, match=message):
        await load(store, data)
    assert files(paths) == EMPTY
    assert store.list() == []


async def test_a_bad_layer_leaves_nothing(
    paths: Paths, store: ImageStore, converter: MemoryConverter
) -> None:
    kept, bad = simple(["kept:1"]), simple(["kept:1"], b"bad\n")
    await load(store, kept.docker_archive())
    before = files(paths)
    converter.broken = {digest(bad.layers[0])}
    with pytest.raises(InvalidInput, match="layer is bad"):
        await load(store, bad.docker_archive())
    assert files(paths) == before
    assert store.resolve("kept:1").id == kept.id


async def test_an_archive_for_two_platforms(store: ImageStore) -> None:
    made, other = simple(), simple(content=b"other\n")
    contents = {**made.oci_files(), **other.oci_files()}
    tops = []
    for one, architecture in ((other, "s390x"), (made, "amd64")):
        top = json.loads(one.oci_files()["index.json"])["manifests"][0]
        tops.append({**top, "platform": {"os": "linux", "architecture": architecture}})
    index = json.dumps({"schemaVersion": 2, "manifests": tops}).encode()
    media_type = "application/vnd.oci.image.index.v1+json"
    outer = {
        **descriptor(index, media_type),
        "annotations": {"io.containerd.image.name": "x.example/m:1"},
    }
    contents["blobs/sha256/" + digest(index).removeprefix("sha256:")] = index
    contents["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [outer]}).encode()
    assert await load(store, tree(contents)) == [(made.id, "x.example/m:1")]


async def test_an_archive_that_is_too_large_is_refused(
    paths: Paths, converter: MemoryConverter
) -> None:
    store = ImageStore(paths, converter, Bounds(archive=1 << 20))
    with pytest.raises(InvalidInput, match="larger than"):
        await load(store, b"x" * (2 << 20))
    assert files(paths) == EMPTY


async def test_a_full_disk_is_said(
    paths: Paths, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_RESERVE", 1 << 60)
    with pytest.raises(Unavailable, match="no space left"):
        await load(store, simple().docker_archive())
    assert files(paths) == EMPTY


async def test_a_stream_that_breaks_leaves_nothing(paths: Paths, store: ImageStore) -> None:
    async def broken() -> object:
        yield simple().docker_archive()[:1000]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.load(broken())  # type: ignore[arg-type]
    assert files(paths) == EMPTY


async def test_what_a_crash_left_is_swept(
    paths: Paths, store: ImageStore, converter: MemoryConverter
) -> None:
    await load(store, simple().docker_archive())
    before = files(paths)
    (paths.images / "blobs/sha256/.tmp").touch()
    (paths.images / ".tmp").touch()
    (paths.layers / ".tmp").touch()
    orphan = b"orphan"
    (paths.images / "blobs/sha256" / digest(orphan).removeprefix("sha256:")).write_bytes(orphan)
    again = ImageStore(paths, converter)
    await again.collect()
    assert files(paths) == before


async def test_a_damaged_store_is_said(
    paths: Paths, store: ImageStore, converter: MemoryConverter
) -> None:
    made = simple()
    await load(store, made.docker_archive())
    config = store.blob(made.id)
    config.chmod(0o600)
    config.write_bytes(b"{}")
    with pytest.raises(Internal, match="is damaged"):
        ImageStore(paths, converter)
    (paths.images / "index.json").write_text("{")
    with pytest.raises(Internal, match=r"index\.json is damaged"):
        ImageStore(paths, converter)


async def test_tagging_refuses_digests(store: ImageStore) -> None:
    with pytest.raises(NotFound):
        await store.tag("nothing", "x")


@pytest.mark.parametrize("oci", [False, True])
async def test_what_is_saved_can_be_loaded(
    paths: Paths, store: ImageStore, tmp_path: Path, oci: bool
) -> None:
    made = simple()
    await load(store, made.oci_archive() if oci else made.docker_archive())
    await store.tag("made:1", "other:2")
    saved = b"".join([chunk async for chunk in store.save(["made:1", "other:2"])])
    again = b"".join([chunk async for chunk in store.save(["made:1", "other:2"])])
    assert saved == again
    elsewhere = Paths(tmp_path / "b", tmp_path / "b/run")
    other = ImageStore(elsewhere, MemoryConverter(elsewhere))
    assert await load(other, saved) == [(made.id, "made:1"), (made.id, "other:2")]


async def test_saving_by_id_has_no_name(store: ImageStore) -> None:
    made = simple()
    await load(store, made.docker_archive())
    saved = b"".join([chunk async for chunk in store.save([made.id])])
    await store.remove("made:1")
    assert await load(store, saved) == [(made.id, "")]
    with pytest.raises(NotFound):
        store.save(["nothing"])
