"""Users and groups as Docker resolves them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hybrid.agent.users import User, parse, read_text, resolve
from hybrid.errors import InvalidInput

PASSWD = """root:x:0:0:root:/root:/bin/sh
# a comment
ann:x:1000:1001::/home/ann:/bin/sh
broken:x:abc
nfsnobody:x:4294967294:4294967294::/:/bin/false
1234:x:77:78::/named:/bin/sh
"""
GROUP = """root:x:0:
ann:x:1001:
wheel:x:10:bob,ann
staff:x:50:
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(0, 0, [0], "/root")),
        ("root", User(0, 0, [0], "/root")),
        ("0", User(0, 0, [0], "/root")),
        ("ann", User(1000, 1001, [1001, 10], "/home/ann")),
        ("1000", User(1000, 1001, [1001, 10], "/home/ann")),
        ("ann:staff", User(1000, 50, [50], "/home/ann")),
        ("ann:5", User(1000, 5, [5], "/home/ann")),
        ("4711", User(4711, 0, [0], "/")),
        ("4711:10", User(4711, 10, [10], "/")),
        ("1234", User(77, 78, [78], "/named")),  # a name that looks like a number wins
        (":staff", User(0, 50, [50], "/root")),
    ],
)
def test_names_and_numbers(text: str, expected: User) -> None:
    assert parse(text, (), PASSWD, lambda: GROUP) == expected


def test_additional_groups_are_names_or_numbers() -> None:
    assert parse("ann:staff", ["wheel", 99, "99"], PASSWD, lambda: GROUP).additional == [50, 10, 99]


@pytest.mark.parametrize(
    "text", ["bob", "ann:nobody", "broken", "-1", "99999999999", "4294967295", "ann:²"]
)
def test_what_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse(text, (), PASSWD, lambda: GROUP)


def test_an_image_without_passwd_takes_numbers() -> None:
    assert parse("1000:1000", (), "", lambda: "") == User(1000, 1000, [1000], "/")


def test_files_are_read_inside_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "passwd").write_text("evil:x:0:0::/:/bin/sh\n")
    (root / "etc/passwd").symlink_to("../../passwd")
    descriptor = os.open(root, os.O_PATH)
    try:
        assert read_text(descriptor, "/etc/passwd") == ""
        with pytest.raises(InvalidInput):
            resolve(descriptor, "evil")
        (root / "etc/passwd").unlink()
        os.mkfifo(root / "etc/passwd")
        assert read_text(descriptor, "/etc/passwd") == ""
        (root / "etc/passwd").unlink()
        (root / "etc/passwd").write_bytes(b"a" * (5 << 20))
        with pytest.raises(InvalidInput):
            read_text(descriptor, "/etc/passwd")
    finally:
        os.close(descriptor)
