"""The guest's recipe: what its data files must say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hybrid.errors import Internal, NotFound
from hybrid.guest import image, tools
from hybrid.guest.bootstrap import ARCHITECTURES
from hybrid.guest.recipe import Recipe, publish_link
from hybrid.paths import Paths


@pytest.fixture
def recipe(top: Path) -> Recipe:
    return Recipe(top / "images/guest")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_console_and_a_kernel(recipe: Recipe, architecture: str) -> None:
    own = recipe.section("command-line.conf", architecture)
    assert any(argument.startswith("console=") for argument in own)
    kernel = recipe.section("packages.conf", "kernel", arch=architecture)
    assert kernel == [f"linux-image-cloud-{architecture}"]


@pytest.mark.parametrize(
    "argument",
    [
        "module.sig_enforce=1",
        "init_on_alloc=1",
        "slab_nomerge",
        "page_alloc.shuffle=1",
        "randomize_kstack_offset=on",
        "debugfs=off",
        "oops=panic",
        "panic=-1",
    ],
)
def test_the_kernel_is_started_hardened(recipe: Recipe, argument: str) -> None:
    assert argument in recipe.section("command-line.conf")


def test_the_command_line_has_no_identity(recipe: Recipe) -> None:
    text = (recipe.directory / "command-line.conf").read_text()
    assert not re.search(r"^(ip|hostname|root|systemd\.machine_id)=", text, re.MULTILINE)


def test_sysctls_are_what_init_can_read(recipe: Recipe) -> None:
    for line in recipe.section("sysctl.conf"):
        assert re.fullmatch(r"[a-z0-9_.]+ =( \S.*)?", line)
        assert len(line) < 200


@pytest.mark.parametrize(
    "sysctl",
    ["kernel.kexec_load_disabled = 1", "kernel.yama.ptrace_scope = 2", "kernel.modprobe ="],
)
def test_sysctls_close_what_no_container_needs(recipe: Recipe, sysctl: str) -> None:
    assert sysctl in recipe.section("sysctl.conf")


def test_a_recipes_digest_follows_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("x\n")
    first = Recipe(tmp_path).digest()
    assert Recipe(tmp_path).digest() == first
    assert Recipe(tmp_path).digest([("agent", b"1")]) != first
    (tmp_path / "a.conf").write_text("y\n")
    assert Recipe(tmp_path).digest() != first


def test_a_link_is_replaced_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        publish_link(tmp_path / "current", name)
        assert (tmp_path / "current").readlink() == Path(name)
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_without_an_image_it_is_said_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="run 'hybrid guest build'"):
        image.current(Paths.of(tmp_path))
    with pytest.raises(NotFound, match="run 'hybrid guest build'"):
        tools.tool(Paths.of(tmp_path), "virtiofsd")


def test_an_image_without_its_description_is_an_error(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path)
    (paths.guest / "abc").mkdir(parents=True)
    publish_link(paths.guest / "current", "abc")
    with pytest.raises(Internal, match="unreadable description"):
        image.current(paths)


def test_a_tool_runs_through_its_own_loader(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path)
    tree = paths.tools / "abc"
    for name in ("usr/libexec", "usr/lib/x-linux-gnu"):
        (tree / name).mkdir(parents=True)
    (tree / "usr/libexec/virtiofsd").touch()
    publish_link(paths.tools / "current", "abc")
    loader, option, libraries, program = tools.tool(paths, "virtiofsd")
    assert loader.startswith(str(tree))
    assert (option, libraries) == ("--library-path", str(tree / "usr/lib/x-linux-gnu"))
    assert program == str(tree / "usr/libexec/virtiofsd")
    with pytest.raises(NotFound, match="no program other"):
        tools.tool(paths, "other")
