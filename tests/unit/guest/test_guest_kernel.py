"""Which modules go with which."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from hybrid.errors import Internal
from hybrid.guest import elf, kernel


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> kernel.Kernel:
    """A kernel with three modules that depend on each other; a module's data is its dependencies."""
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1-test").write_bytes(b"k")
    base = tmp_path / "usr/lib/modules/6.1-test"
    for name, depends in {
        "md/dm-verity.ko.xz": "dm-bufio,dm-mod",
        "md/dm-bufio.ko.xz": "dm-mod",
        "md/dm-mod.ko.xz": "",
        "fs/odd.ko.zst": "",
    }.items():
        path = base / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(depends.encode()))
    (base / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    monkeypatch.setattr(
        elf, "module_depends", lambda data: [name for name in data.decode().split(",") if name]
    )
    return kernel.Kernel(tmp_path)


def test_release_is_in_the_image_name(linux: kernel.Kernel) -> None:
    assert linux.release == "6.1-test"


def test_dependencies_come_first_and_once(linux: kernel.Kernel) -> None:
    modules = linux.closure(["dm_verity", "dm-mod", "ext4"])
    assert [module.name for module in modules] == ["dm_mod", "dm_bufio", "dm_verity"]
    assert modules[0].path == "kernel/md/dm-mod.ko"


def test_dependency_file_is_in_modprobe_order(linux: kernel.Kernel) -> None:
    assert kernel.dependency_file(linux.closure(["dm_verity"])).splitlines() == [
        "kernel/md/dm-bufio.ko: kernel/md/dm-mod.ko",
        "kernel/md/dm-mod.ko:",
        "kernel/md/dm-verity.ko: kernel/md/dm-bufio.ko kernel/md/dm-mod.ko",
    ]


@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "has no module nothing"), ("odd", "compressed in an unknown")]
)
def test_what_cannot_be_had_is_named(linux: kernel.Kernel, name: str, message: str) -> None:
    with pytest.raises(Internal, match=message):
        linux.closure([name])
