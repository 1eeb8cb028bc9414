from __future__ import annotations

import pytest

from hybrid.client.mounts import VolumeFlag, parse_mount, parse_tmpfs, parse_volume
from hybrid.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data", VolumeFlag("", "/data")),
        ("name:/data", VolumeFlag("name", "/data")),
        ("name:/data:ro", VolumeFlag("name", "/data", "ro")),
        ("/h:/data:ro,nocopy", VolumeFlag("/h", "/data", "ro,nocopy")),
        ("./x/../y:/data", VolumeFlag("/here/y", "/data")),
        (".:/data", VolumeFlag("/here", "/data")),
    ],
)
def test_volume_forms(text: str, expected: VolumeFlag) -> None:
    assert parse_volume(text, "/here") == expected


@pytest.mark.parametrize("text", ["", "a:", ":/a", "a:b", "data", "a/b:/c", "a:/b:ro:x"])
def test_volume_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="invalid volume"):
        parse_volume(text, "/here")


def test_mount_forms() -> None:
    assert parse_mount("type=bind,source=./a,target=/t,readonly", "/here") == {
        "Type": "bind",
        "Source": "/here/a",
        "Target": "/t",
        "ReadOnly": True,
    }
    assert parse_mount("src=data,dst=/t,volume-nocopy=true,ro=false", "/") == {
        "Type": "volume",
        "Source": "data",
        "Target": "/t",
        "ReadOnly": False,
        "VolumeOptions": {"NoCopy": True},
    }
    assert parse_mount("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770", "/") == {
        "Type": "tmpfs",
        "Target": "/t",
        "TmpfsOptions": {"SizeBytes": 64 << 20, "Mode": 0o1770},
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("type=bind,target=/t", "needs a source"),
        ("type=volume,source=x", "absolute target"),
        ("type=npipe,target=/t", "none of"),
        ("type=tmpfs,source=x,target=/t", "no source"),
        ("type=bind,source=/a,target=/t,tmpfs-size=1m", "tmpfs options on a bind mount"),
        ("target=/t,colour=red", "unknown key"),
        ("target=/t,ro=maybe", "neither true nor false"),
        ("type=tmpfs,target=/t,tmpfs-size=big", "invalid size"),
        ("type=tmpfs,target=/t,tmpfs-mode=9", "tmpfs-mode"),
    ],
)
def test_mount_nonsense_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse_mount(text, "/")


def test_tmpfs() -> None:
    assert parse_tmpfs("/run:size=64m,mode=755") == ("/run", "size=64m,mode=755")
    assert parse_tmpfs("/run") == ("/run", "")
    with pytest.raises(InvalidInput):
        parse_tmpfs("run")
