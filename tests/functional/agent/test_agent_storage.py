"""Writable parts, volumes, blobs and archives."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import Conflict, HybridError, InvalidInput, NotFound
from hybrid.wire.messages import (
    Delete,
    GetArchive,
    HasBlob,
    PutArchive,
    PutBlob,
    Retain,
    Share,
    Source,
    StatPath,
)
from tests.agentdriver import Driver


def mounted(share: Share, destination: str = "/data", *options: str) -> dict[str, Any]:
    """Request fields that mount one share."""
    mount = {"destination": destination, "type": "hybrid-share", "source": "0"}
    return {"shares": [share], "mounts": [mount | {"options": list(options)}]}


async def test_a_writable_directory_keeps_what_was_written(
    driver: Driver, agent_directory: Path
) -> None:
    directory = agent_directory / "private"
    directory.mkdir(mode=0o700)
    writable = Source("directory", str(directory / "c1"))
    script = "echo kept > /etc/added; chown 1000:1001 /etc/added; rm /etc/group; mkdir -p /a/b"
    code, _, err = await driver.run("sh", "-c", script, writable=writable)
    assert (code, err) == (0, "")
    script = "cat /etc/added; stat -c %u:%g /etc/added; ls /etc/group /a"
    code, out, _ = await driver.run("sh", "-c", script, writable=writable)
    assert (code, out) == (1, "kept\n1000:1001\n/a:\nb\n")
    kept = next((directory / "c1").rglob("added"))
    assert (kept.stat().st_uid, kept.stat().st_gid) == (1000, 1001)  # unshifted on disk


async def test_two_containers_share_their_layers_and_nothing_else(driver: Driver) -> None:
    names = [await driver.start(driver.request("sleep", "100")) for _ in range(2)]
    assert (await driver.execute(names[0], "touch", "/mine"))[0] == 0
    assert (await driver.execute(names[1], "ls", "/mine"))[0] == 1
    await driver.client.call(Delete(names[0]))
    assert (await driver.execute(names[1], "cat", "/etc/added"))[1] == "added\n"


async def test_a_directory_share_has_the_containers_ids(driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/seen").write_text("yes\n")
    share = Share(Source("directory", str(tmp_path)), subpath="sub")
    script = "cat /data/seen; stat -c %u /data/seen; touch /data/made; chown 1000 /data/made"
    code, out, err = await driver.run("sh", "-c", script, **mounted(share))
    assert (code, out, err) == (0, "yes\n0\n", "")
    assert (tmp_path / "sub/made").stat().st_uid == 1000


async def test_a_read_only_share_cannot_be_written(driver: Driver, tmp_path: Path) -> None:
    share = Share(Source("directory", str(tmp_path)))
    code, _, err = await driver.run("touch", "/data/x", **mounted(share, "/data", "ro"))
    assert code == 1
    assert "Read-only" in err


async def test_a_file_can_be_shared_where_nothing_was(driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    share = Share(Source("file", str(tmp_path / "file")))
    code, out, _ = await driver.run("cat", "/some/where/file", **mounted(share, "/some/where/file"))
    assert (code, out) == (0, "content\n")


async def test_a_subpath_cannot_leave_its_share(driver: Driver, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_text("secret")
    (inside / "link").symlink_to("../secret")
    for subpath in ("../secret", "link"):
        share = Share(Source("directory", str(inside)), subpath=subpath)
        with pytest.raises(NotFound):
            await driver.run("true", **mounted(share))


async def test_a_missing_source_is_refused(driver: Driver, tmp_path: Path) -> None:
    share = Share(Source("directory", str(tmp_path / "none")))
    with pytest.raises(NotFound, match="bind source path does not exist"):
        await driver.run("true", **mounted(share))


async def test_an_empty_volume_starts_with_what_the_image_has(
    driver: Driver, tmp_path: Path
) -> None:
    share = Share(Source("directory", str(tmp_path)), populate=True)
    script = "cat /data/file; stat -c %u:%g /data/file; echo changed > /data/file"
    code, out, err = await driver.run("sh", "-c", script, **mounted(share))
    assert (code, out, err) == (0, "from the image\n1000:1001\n", "")
    code, out, _ = await driver.run("cat", "/data/file", **mounted(share))
    assert out == "changed\n"
    assert (tmp_path / "file").stat().st_uid == 1000


async def test_a_blob_is_verified_and_can_be_mounted(driver: Driver) -> None:
    data = b"secret\n" * 1000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    for sent in (data[:-1], data[:-1] + b"x"):
        stream = driver.client.open()
        await stream.write(sent)
        await stream.close_write()
        with pytest.raises(InvalidInput):
            await driver.client.call(PutBlob(digest, len(data), stream.id))
        assert not (await driver.client.call(HasBlob(digest))).value
    stream = driver.client.open()
    await stream.write(data)
    await stream.close_write()
    await driver.client.call(PutBlob(digest, len(data), stream.id))
    assert (await driver.client.call(HasBlob(digest))).value
    share = Share(Source("blob", digest))
    _code, out, _ = await driver.run(
        "sha256sum", "/run/secret", **mounted(share, "/run/secret", "ro")
    )
    assert out.split()[0] == digest[7:]
    with pytest.raises(InvalidInput):
        await driver.client.call(HasBlob("sha256:../../etc/passwd"))


async def archive(driver: Driver, name: str, path: str) -> tarfile.TarFile:
    stream = driver.client.open()
    await driver.client.call(GetArchive(name, path, stream.id))
    data = b""
    while part := await stream.read():
        data += part
    return tarfile.open(fileobj=io.BytesIO(data))


async def put(driver: Driver, name: str, path: str, data: bytes, **fields: bool) -> None:
    stream = driver.client.open()
    writing = driver.client.call(PutArchive(name, path, stream.id, **fields))
    try:
        await stream.write(data)
        await stream.close_write()
    except HybridError:
        pass  # refused before all was read; the answer says why
    await writing


def tar_of(*members: tuple[str, bytes | str | None], **fields: Any) -> bytes:
    """(name, contents), (name, link target) or (name, None: a directory)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as target:
        for name, contents in members:
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            for key, value in fields.items():
                setattr(member, key, value)
            if contents is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(contents, str):
                member.type, member.linkname = tarfile.SYMTYPE, contents
            else:
                member.size = len(contents)
            target.addfile(member, io.BytesIO(contents if isinstance(contents, bytes) else b""))
    return buffer.getvalue()


async def test_files_come_out_as_docker_cp_has_them(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    assert (await archive(driver, name, "/data")).getnames() == ["data", "data/file"]
    assert (await archive(driver, name, "data/.")).getnames() == [".", "./file"]
    member = (await archive(driver, name, "/data/file")).getmember("file")
    assert (member.uid, member.gid, member.uname) == (1000, 1001, "")
    assert (await archive(driver, name, "/bin/sh")).getmember("sh").linkname == "busybox"
    found = await driver.client.call(StatPath(name, "/bin/sh"))
    assert stat.S_ISLNK(found.mode)
    assert (found.name, found.link_target) == ("sh", "busybox")
    with pytest.raises(NotFound):
        await driver.client.call(StatPath(name, "/none"))
    with pytest.raises(NotFound):
        await driver.client.call(GetArchive(name, "/none", driver.client.open().id))


async def test_files_go_in_with_their_ids_links_and_modes(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    data = tar_of(("d", None), ("d/f", b"text\n"), ("d/l", "f"), uid=1000, gid=50, mode=0o4750)
    await put(driver, name, "/tmp", data)
    script = "cat /tmp/d/l; stat -c %u:%g:%a /tmp/d/f"
    assert (await driver.execute(name, "sh", "-c", script))[1] == "text\n1000:50:4750\n"
    await put(driver, name, "/tmp", tar_of(("d/f", b"new\n"), uid=7), copy_ids=True)
    assert (await driver.execute(name, "sh", "-c", script))[1] == "new\n0:0:755\n"


async def test_a_directory_is_not_replaced_by_a_file_unless_allowed(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    with pytest.raises(Conflict):
        await put(driver, name, "/", tar_of(("data", b"x")), no_overwrite_dir_non_dir=True)
    await put(driver, name, "/", tar_of(("data", b"x")))
    assert (await driver.execute(name, "cat", "/data"))[1] == "x"


async def test_an_archive_cannot_reach_the_machine(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    victim = Path(f"/tmp/hybrid-escape-{os.getpid()}")
    data = tar_of(("up", "../../../../tmp"), (f"up/{victim.name}", b"x"))
    await put(driver, name, "/home", data)
    assert not victim.exists()
    assert (await driver.execute(name, "cat", f"/tmp/{victim.name}"))[1] == "x"
    with pytest.raises(InvalidInput, match="points out of"):
        await put(driver, name, "/home", tar_of((f"../../../tmp/{victim.name}", b"x")))
    assert (await driver.execute(name, "ln", "-s", "/", "/data/top"))[0] == 0
    found = await archive(driver, name, "/data/top/etc/")
    assert "etc/added" in found.getnames()


async def test_a_broken_archive_is_refused(driver: Driver) -> None:
    name = await driver.start(driver.request("sleep", "100"))
    with pytest.raises(InvalidInput, match="cannot be read"):
        await put(driver, name, "/tmp", b"not a tar" * 1000)
    with pytest.raises(InvalidInput, match="not a directory"):
        await put(driver, name, "/etc/added", tar_of(("x", b"")))
    data = tar_of(("x", bytes(100000)))
    with pytest.raises(InvalidInput, match="cannot be read"):
        await put(driver, name, "/tmp", data[:50000])


async def test_a_stopped_container_still_has_its_files(driver: Driver) -> None:
    name = await driver.start(driver.request("sh", "-c", "echo result > /tmp/out"))
    assert await driver.exited(name) == 0
    found = (await archive(driver, name, "/tmp/out")).extractfile("out")
    assert found is not None
    assert found.read() == b"result\n"


async def test_layers_that_were_sent(driver: Driver) -> None:
    """What a machine does that shares no files with the host."""
    layers = []
    for source in driver.layers:
        data = Path(source.name).read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        async with driver.client.open() as stream:
            put = asyncio.create_task(driver.client.call(PutBlob(digest, len(data), stream.id)))
            await stream.write(data)
            await stream.close_write()
            await put
        layers.append(Source("blob", digest))
    code, out, err = await driver.run("cat", "/etc/added", layers=layers)
    assert (code, out, err) == (0, "added\n", "")
    missing = Source("blob", f"sha256:{'0' * 64}")
    with pytest.raises(NotFound, match="no blob"):
        await driver.run("true", layers=[*layers, missing])


async def test_a_writable_part_that_the_machine_keeps(
    driver: Driver, agent_directory: Path
) -> None:
    for name in ("kept", "dropped"):
        writable = Source("directory", name)
        assert (await driver.run("sh", "-c", "echo 1 > /new", writable=writable))[0] == 0
        assert (await driver.run("cat", "/new", writable=writable))[1] == "1\n"
    await driver.client.call(Retain(["kept"]))
    assert (await driver.run("cat", "/new", writable=Source("directory", "kept")))[1] == "1\n"
    assert (await driver.run("ls", "/new", writable=Source("directory", "dropped")))[0] == 1
    running = driver.request("sleep", "100", name="used", writable=Source("directory", "used"))
    await driver.start(running)
    await driver.execute("used", "touch", "/new")
    await driver.client.call(Retain([]))
    await driver.client.call(Delete("used"))
    assert (await driver.run("ls", "/new", writable=Source("directory", "used")))[0] == 0
    with pytest.raises(InvalidInput, match="not a name"):
        await driver.run("true", writable=Source("directory", "../c"))
