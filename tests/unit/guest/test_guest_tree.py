"""What gets into the guest's root file system."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hybrid.errors import Internal
from hybrid.guest import tree


def test_the_last_rule_that_matches_decides() -> None:
    names = ["usr/bin/a", "usr/bin/b", "usr/lib/x/y.py", "usr/lib/x/z.py", "etc/passwd"]
    rules = ["usr/bin/*", "usr/lib/**", "!usr/lib/x/z.*", "!usr/bin/b"]
    assert tree.select(names, rules) == ["usr/bin/a", "usr/lib/x/y.py"]


def test_one_star_stays_in_its_directory() -> None:
    assert tree.select(["a/b", "a/b/c"], ["a/*"]) == ["a/b"]


def test_links_bring_their_targets(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3.13").write_bytes(b"x")
    (tmp_path / "usr/bin/python3").symlink_to("python3.13")
    chosen = tree.with_libraries(tmp_path, ["usr/bin/python3"])
    assert chosen == ["usr/bin/python3", "usr/bin/python3.13"]


def test_a_library_that_no_package_has_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/crun").write_bytes(b"\x7fELF\x02\x01")
    monkeypatch.setattr(tree.elf, "needed", lambda data: ["libmissing.so.1"])
    with pytest.raises(Internal, match=r"usr/bin/crun needs libmissing\.so\.1"):
        tree.with_libraries(tmp_path, ["usr/bin/crun"])


def test_copies_have_plain_permissions_and_the_same_times(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "su").write_bytes(b"x")
    (source / "su").chmod(0o4755)
    (source / "data").write_bytes(b"y")
    (source / "data").chmod(0o664)
    os.utime(source / "data", (1000, 1000))
    tree.copy(source, ["su", "data"], target)
    assert stat.S_IMODE((target / "su").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "data").stat().st_mode) == 0o644
    assert (target / "data").stat().st_mtime == 1000
