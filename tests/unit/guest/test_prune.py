"""What is removed of earlier builds."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hybrid.guest import prune
from hybrid.paths import Paths


def build(directory: Path, letter: str, age: float) -> Path:
    made = directory / (letter * 64)
    made.mkdir(parents=True)
    (made / "root").touch()
    os.utime(made, (time.time() - age,) * 2)
    return made


def test_the_current_and_the_previous_and_used_builds_stay(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path / "run")
    builds = {letter: build(paths.guest, letter, 10 * age) for age, letter in enumerate("abcde")}
    (paths.guest / "current").symlink_to(builds["c"].name)
    said: list[str] = []
    with (builds["d"] / "root").open("rb"):
        prune.prune(paths, said.append)
    assert {path.name[0] for path in paths.guest.iterdir()} == {"a", "c", "d"}
    assert said == [f"removing the unused guest/{letter * 12}" for letter in "be"]


def test_what_is_mapped_is_used(tmp_path: Path) -> None:
    one, two, three = (build(tmp_path, letter, age) for age, letter in enumerate("abc"))
    (tmp_path / "current").symlink_to(one.name)
    assert prune.unneeded(tmp_path, frozenset()) == [three]
    assert prune.unneeded(tmp_path, frozenset({f"{three}/usr/bin/virtiofsd"})) == []
    assert two.exists()


def test_without_a_current_build_all_stay(tmp_path: Path) -> None:
    build(tmp_path, "a", 1)
    build(tmp_path, "b", 2)
    assert prune.unneeded(tmp_path, frozenset()) == []


def test_packages_go_two_weeks_after_their_last_use(tmp_path: Path) -> None:
    cache = tmp_path / "cache/packages"
    cache.mkdir(parents=True)
    for name, days in (("new", 1), ("old", 15)):
        (cache / f"{name}.tar").touch()
        os.utime(cache / f"{name}.tar", (time.time() - days * 86400,) * 2)
    prune.prune(Paths(tmp_path, tmp_path / "run"), lambda _: None)
    assert [path.name for path in cache.iterdir()] == ["new.tar"]
