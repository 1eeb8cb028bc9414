"""Real conversions: confined processes, tar2sqfs, the result mounted and compared with what the
layer said.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hybrid.errors import InvalidInput, Unavailable
from hybrid.image.layer import Bounds, SquashfsConverter
from hybrid.image.store import ImageStore
from hybrid.paths import Paths
from tests.archives import (
    ImageMade,
    digest,
    directory,
    hard_link,
    member,
    simple,
    stream,
    symlink,
    tar,
    tree,
)

pytestmark = pytest.mark.root
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path, tmp_path / "run")


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,ro", "-t", "squashfs", str(image), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


async def converted(
    paths: Paths, layer: bytes, packed: bytes | None = None, /, **bounds: int
) -> Path:
    blob = paths.root / "blob"
    blob.write_bytes(layer if packed is None else packed)
    return await SquashfsConverter(paths, Bounds(**bounds)).convert(blob, digest(layer))


def leftovers(paths: Paths) -> list[str]:
    return os.listdir(paths.layers)


LAYER = tar(
    [
        directory("./", 0o711, mtime=1_600_000_000),
        directory("etc/", 0o750, uid=7, gid=8, mtime=1_600_000_001),
        member("etc/conf", b"text\n", mode=0o640, uid=7, gid=8, mtime=1_600_000_002),
        member("bin/su", b"\x7fELF", mode=0o4755),
        member(
            "bin/ping", b"\x7fELF", xattrs={"security.capability": CAPABILITY, "user.k": b"\0v"}
        ),
        hard_link("bin/ping6", "bin/ping"),
        symlink("sbin", "bin"),
        symlink("out", "../../../etc"),
        member("out/through", b"inside\n"),
        member("large", b"x" * 300_000, uid=3_000_000_000, gid=100_000),
        member("holes", b"\0" * 5_000_000 + b"end"),
        member("dev/null", type=b"3", devmajor=1, devminor=3, mode=0o666),
        member("dev/sda", type=b"4", devmajor=8, devminor=0),
        member("pipe", type=b"6", mode=0o600),
        member("name-\udcff\udcfe", b"raw"),
        member("deep/" + "d" * 120 + "/" + "n" * 200, b"long"),
        member("empty"),
        member("etc/.wh.gone"),
        directory("fresh/", 0o700),
        member("fresh/.wh..wh..opq"),
        directory("sticky", 0o1777),
    ]
)


async def test_a_layer_keeps_everything(paths: Paths, tmp_path: Path) -> None:
    image = await converted(paths, LAYER)
    with mounted(image, tmp_path / "m") as root:
        st = os.lstat
        assert stat.S_IMODE(st(root).st_mode) == 0o711
        assert (st(root / "etc").st_uid, st(root / "etc").st_gid) == (7, 8)
        conf = st(root / "etc/conf")
        assert (stat.S_IMODE(conf.st_mode), conf.st_mtime) == (0o640, 1_600_000_002)
        assert (root / "etc/conf").read_bytes() == b"text\n"
        assert stat.S_IMODE(st(root / "bin/su").st_mode) == 0o4755
        assert os.getxattr(root / "bin/ping", "security.capability") == CAPABILITY
        assert os.getxattr(root / "bin/ping6", "user.k") == b"\0v"
        assert st(root / "bin/ping").st_ino == st(root / "bin/ping6").st_ino
        assert st(root / "bin/ping").st_nlink == 2
        assert os.readlink(root / "sbin") == "bin"
        assert os.readlink(root / "out") == "../../../etc"
        assert (root / "etc/through").read_bytes() == b"inside\n"
        large = st(root / "large")
        assert (large.st_uid, large.st_gid, large.st_size) == (3_000_000_000, 100_000, 300_000)
        assert (root / "holes").read_bytes() == b"\0" * 5_000_000 + b"end"
        null = st(root / "dev/null")
        assert stat.S_ISCHR(null.st_mode)
        assert (os.major(null.st_rdev), os.minor(null.st_rdev)) == (1, 3)
        assert stat.S_ISBLK(st(root / "dev/sda").st_mode)
        assert stat.S_ISFIFO(st(root / "pipe").st_mode)
        assert b"name-\xff\xfe" in os.listdir(os.fsencode(root))
        assert (root / "deep" / ("d" * 120) / ("n" * 200)).read_bytes() == b"long"
        assert (root / "empty").read_bytes() == b""
        gone = st(root / "etc/gone")
        assert stat.S_ISCHR(gone.st_mode)
        assert gone.st_rdev == 0
        assert os.getxattr(root / "fresh", "trusted.overlay.opaque") == b"y"
        assert stat.S_IMODE(st(root / "sticky").st_mode) == 0o1777


async def test_the_file_is_ready_for_a_block_device(paths: Paths) -> None:
    image = await converted(paths, LAYER)
    found = image.stat()
    assert found.st_size % 4096 == 0
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o444, 0)
    assert image.name == digest(LAYER).removeprefix("sha256:") + ".squashfs"
    assert leftovers(paths) == [image.name]


async def test_overlayfs_sees_whiteouts_and_opaque_directories(
    paths: Paths, tmp_path: Path
) -> None:
    lower = tree({"etc/gone": b"1", "etc/kept": b"2", "fresh/old": b"3", "was/dir/x": b"4"})
    upper = tar(
        [
            member("etc/.wh.gone"),
            directory("fresh"),
            member("fresh/.wh..wh..opq"),
            member("fresh/new", b"5"),
            member(".wh.was"),
            member("was/again", b"6"),
        ]
    )
    images = [await converted(paths, layer) for layer in (lower, upper)]
    with mounted(images[0], tmp_path / "l") as low, mounted(images[1], tmp_path / "u") as up:
        merged = tmp_path / "merged"
        merged.mkdir()
        subprocess.run(
            ["mount", "-t", "overlay", "-o", f"lowerdir={up}:{low}", "overlay", str(merged)],
            check=True,
        )
        try:
            names = {str(path.relative_to(merged)) for path in merged.rglob("*") if path.is_file()}
        finally:
            subprocess.run(["umount", str(merged)], check=True)
    assert names == {"etc/kept", "fresh/new", "was/again"}


@pytest.mark.parametrize("program", ["gzip", "zstd", "xz", "bzip2"])
async def test_compressed_layers(paths: Paths, program: str) -> None:
    packed = subprocess.run([program, "-c"], input=LAYER, capture_output=True, check=True).stdout
    assert (await converted(paths, LAYER, packed)).exists()


async def test_an_empty_layer(paths: Paths, tmp_path: Path) -> None:
    with mounted(await converted(paths, tar([])), tmp_path / "m") as root:
        assert os.listdir(root) == []


async def test_two_conversions_of_one_layer_share_the_work(paths: Paths) -> None:
    blob = paths.root / "blob"
    blob.write_bytes(LAYER)
    converter = SquashfsConverter(paths)
    results = await asyncio.gather(*[converter.convert(blob, digest(LAYER)) for _ in range(3)])
    assert len({path.stat().st_ino for path in results}) == 1


BAD = {
    "escape": (tar([member("../escaped", b"x")]), "leaves the root"),
    "hard link escape": (tar([hard_link("x", "../../etc/shadow")]), "leaves the root"),
    "hard link to a lower layer": (tar([hard_link("x", "elsewhere")]), "not a file of the layer"),
    "below a file": (tar([member("f"), member("f/x")]), "no directory"),
    "truncated": (LAYER[:40_000], "truncated"),
    "not a tar": (b"no tar at all" * 100, "not a tar archive"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_layers_are_refused_and_leave_nothing(paths: Paths, case: str) -> None:
    layer, message = BAD[case]
    with pytest.raises(InvalidInput, match=message):
        await converted(paths, layer)
    assert leftovers(paths) == []


async def test_a_wrong_diff_id_is_refused(paths: Paths) -> None:
    with pytest.raises(InvalidInput, match="wrong digest"):
        await converted(paths, LAYER, gzip.compress(LAYER + b"\0" * 512))
    assert leftovers(paths) == []


async def test_damaged_compression_is_refused(paths: Paths) -> None:
    with pytest.raises(InvalidInput, match="damaged or truncated gzip"):
        await converted(paths, LAYER, gzip.compress(LAYER)[:-100])
    assert leftovers(paths) == []


async def test_a_decompression_bomb_is_refused(paths: Paths) -> None:
    with pytest.raises(InvalidInput, match="decompression bomb"):
        await converted(paths, LAYER, gzip.compress(b"\0" * (64 << 20)), layer=16 << 20)
    assert leftovers(paths) == []


async def test_a_bomb_of_holes_is_refused(paths: Paths) -> None:
    info, _ = member("s")
    info.pax_headers = {"GNU.sparse.realsize": str(1 << 49), "GNU.sparse.major": "1",
                        "GNU.sparse.minor": "0", "GNU.sparse.name": "s"}  # fmt: skip
    info.size = 512
    layer = tar([(info, b"0\n".ljust(512, b"\0"))])
    with pytest.raises(InvalidInput, match="files have more than"):
        await converted(paths, layer)
    assert leftovers(paths) == []


async def test_too_many_members_are_refused(paths: Paths) -> None:
    with pytest.raises(InvalidInput, match="more than 10 members"):
        await converted(paths, LAYER, members=10)
    assert leftovers(paths) == []


async def test_a_cancelled_conversion_leaves_nothing(paths: Paths) -> None:
    task = asyncio.create_task(converted(paths, LAYER))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(paths) == []


async def test_an_image_end_to_end(paths: Paths, tmp_path: Path) -> None:
    store = ImageStore(paths)
    made = ImageMade([LAYER, *simple().layers])
    await store.load(stream(gzip.compress(made.oci_archive())))
    layers = await store.layers(store.resolve("made:1"))
    with mounted(layers[2], tmp_path / "m") as root:
        assert (root / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    await store.remove("made:1")
    assert leftovers(paths) == []


async def test_a_layer_that_is_bad_inside_fails_the_load(paths: Paths) -> None:
    store = ImageStore(paths)
    made = ImageMade([tar([member("../../etc/cron.d/x", b"x")])])
    with pytest.raises(InvalidInput, match="leaves the root"):
        await store.load(stream(made.docker_archive()))
    assert store.list() == []
    assert leftovers(paths) == []
    assert os.listdir(paths.images / "blobs/sha256") == []


async def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(tmp_path)], check=True)
    try:
        small = Paths(tmp_path, tmp_path / "run")
        layer = tar([member("random", os.urandom(30 << 20))])
        with pytest.raises(Unavailable, match="no space left"):
            await converted(small, layer)
        assert leftovers(small) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
