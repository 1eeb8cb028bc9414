"""Control groups for programs that outlive the daemon, over plain directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid.machine import standing


@pytest.fixture(params=["v2", "v1"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "v2":
        (tmp_path / "cgroup.controllers").touch()
    else:
        for name in ("systemd", "unified", "memory"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "cgroup.procs").touch()
    return tmp_path


def test_it_is_moved_where_processes_are_told_apart(root: Path) -> None:
    standing.move(7, "hybrid-x-agent", root)
    found = {path.parent.parent.name for path in root.rglob("hybrid-x-agent/cgroup.procs")}
    assert found == ({root.name} if root in standing.hierarchies(root) else {"systemd", "unified"})


def test_an_empty_group_goes_and_a_full_one_stays(root: Path) -> None:
    for place in standing.hierarchies(root):
        (place / "empty").mkdir()
        (place / "full/below").mkdir(parents=True)
    standing.remove("empty", root)
    standing.remove("full", root)
    standing.remove("none", root)
    assert not list(root.rglob("empty")) and list(root.rglob("below"))


def test_what_others_left_is_found_and_removed(root: Path) -> None:
    for place in standing.hierarchies(root):
        (place / "machine/qemu-1-x.libvirt-qemu/emulator").mkdir(parents=True)
    found = standing.find("machine/qemu-*-x*", root)
    assert len(found) == len(standing.hierarchies(root))
    for group in found:
        standing.remove_tree(group)
    assert standing.find("machine/*", root) == []


def test_where_groups_cannot_be_made_nothing_happens(tmp_path: Path) -> None:
    standing.move(7, "hybrid-x-agent", tmp_path / "none")
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "hybrid-x-agent").touch()
    standing.move(7, "hybrid-x-agent", tmp_path)
