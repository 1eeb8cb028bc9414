from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hybrid.errors import HybridError, InvalidInput, Unavailable
from hybrid.image import blobs, writable

GIB = 1 << 30


def test_a_disk_is_clean_sparse_ext4(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    writable.create(path, 10 * GIB + 5)
    assert path.stat().st_size == 10 * GIB
    assert path.stat().st_blocks * 512 < 32 << 20
    assert path.stat().st_mode & 0o777 == 0o600
    checked = subprocess.run(
        ["/usr/sbin/e2fsck", "-fn", str(path)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    features = subprocess.run(
        ["/usr/sbin/dumpe2fs", "-h", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert "has_journal" in features


@pytest.mark.parametrize("size", [0, 1 << 20, 1 << 50])
def test_impossible_sizes_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidInput, match="64 MiB to 16 TiB"):
        writable.create(tmp_path / "disk", size)


def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious")
    with pytest.raises(HybridError):
        writable.create(path, GIB)
    assert path.read_bytes() == b"precious"


def test_nothing_is_left_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writable, "_MKE2FS", "/nonexistent")
    with pytest.raises(Unavailable, match="install the Debian package e2fsprogs"):
        writable.create(tmp_path / "disk", GIB)
    monkeypatch.setattr(writable, "_MKE2FS", "/bin/false")
    with pytest.raises(HybridError):
        writable.create(tmp_path / "disk", GIB)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_RESERVE", 1 << 60)
    with pytest.raises(Unavailable, match="no space left"):
        writable.create(tmp_path / "disk", GIB)


def test_an_unformatted_disk_never_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed while formatting leaves no disk that the next start would take for a good one."""
    seen: list[list[str]] = []

    def spy(path: Path) -> None:
        seen.append([entry.name for entry in tmp_path.iterdir()])

    monkeypatch.setattr(writable, "_format", spy)
    writable.create(tmp_path / "disk", GIB)
    assert "disk" not in seen[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk"]
