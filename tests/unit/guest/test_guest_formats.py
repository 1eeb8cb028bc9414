"""The file formats that the build writes itself, against their definitions."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import InvalidInput
from hybrid.guest import cpio, elf, listing, verity


def test_listing_has_comments_sections_and_placeholders() -> None:
    text = "# head\na  # why\nb#c\n\n[amd64]\nlinux-{arch}\n"
    assert listing.parse(text, "x.conf", arch="amd64") == {
        "": ["a", "b#c"],
        "amd64": ["linux-amd64"],
    }


def test_listing_names_the_line_of_an_unknown_placeholder() -> None:
    with pytest.raises(InvalidInput, match=r"x\.conf:2: .*'\{what\}'"):
        listing.parse("a\n{what}\n", "x.conf")


def test_cpio_records_are_aligned_and_named() -> None:
    data = cpio.archive(
        [
            cpio.directory("dev"),
            cpio.Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            cpio.executable("init", b"abc"),
        ]
    )
    assert len(data) % 512 == 0
    offset, names = 0, []
    while True:
        head = data[offset : offset + 110]
        assert head[:6] == b"070701"
        fields = [int(head[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
        name = data[offset + 110 : offset + 110 + fields[11] - 1].decode()
        names.append((name, fields[1], fields[6], fields[9], fields[10]))
        offset += -(-(110 + fields[11]) // 4) * 4 + -(-fields[6] // 4) * 4
        if name == "TRAILER!!!":
            break
    assert names[:3] == [
        ("dev", 0o040755, 0, 0, 0),
        ("dev/console", 0o020600, 0, 5, 1),
        ("init", 0o100755, 3, 0, 0),
    ]


def test_verity_of_one_block_is_the_hash_of_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "root"
    path.write_bytes(b"x")
    result = verity.append(path)
    block = b"x".ljust(4096, b"\0")
    top = sha256(block).digest().ljust(4096, b"\0")
    assert result == verity.Verity(sha256(top).hexdigest(), 4096)
    assert path.read_bytes() == block + top


@pytest.mark.skipif(not shutil.which("veritysetup"), reason="needs veritysetup (cryptsetup-bin)")
def test_verity_agrees_with_veritysetup(tmp_path: Path) -> None:
    path = tmp_path / "root"
    path.write_bytes(bytes(range(256)) * 16 * 300)  # two levels
    result = verity.append(path)
    options = ["--no-superblock", "--salt=-", "--hash=sha256", "--data-blocks=300"]
    offset = f"--hash-offset={result.hash_offset}"
    subprocess.run(
        ["veritysetup", "verify", *options, offset, path, path, result.root_hash], check=True
    )
    wrong = "0" * 64
    failed = subprocess.run(
        ["veritysetup", "verify", *options, offset, path, path, wrong], capture_output=True
    )
    assert failed.returncode != 0


def test_elf_names_the_libraries_a_program_needs() -> None:
    program = Path(sys.executable).resolve().read_bytes()
    assert elf.is_elf(program)
    assert any(name.startswith("libc.so") for name in elf.needed(program))


@given(st.binary(max_size=400))
def test_elf_refuses_what_is_no_elf(data: bytes) -> None:
    for read in (elf.needed, elf.module_depends):
        for content in (data, b"\x7fELF\x02\x01".ljust(16, b"\0") + data):
            try:
                read(content)
            except InvalidInput:
                continue
