from __future__ import annotations

import subprocess

import pytest

from hybrid.errors import Unavailable, Unsupported
from hybrid.host.facts import COMMAND, BoxFacts, parse, require

GOOD = """Welcome to box!
python=0.1
hybrid-facts=1
uid=0
kernel=Linux 6.12.0
architecture=x86_64
python=3.13
crun=crun version 1.21
cgroup=v2
hybrid-facts=end
"""
BOX = BoxFacts(0, "Linux 6.12.0", "x86_64", (3, 13), "1.21", "v2")


def test_facts_after_a_greeting() -> None:
    assert parse(GOOD, "box") == BOX
    require(BOX, "box")


@pytest.mark.parametrize(
    ("line", "replaced", "reason"),
    [
        ("crun=crun version 1.21", "crun=", "install the package crun"),
        ("python=3.13", "python=", "install the package python3"),
        ("python=3.13", "python=3.9", "needs 3.11 or newer"),
        ("uid=0", "uid=1000", "needs root"),
        ("uid=0", "uid=x", "needs root"),
        ("kernel=Linux 6.12.0", "kernel=FreeBSD 14", "not a Linux box"),
    ],
)
def test_what_is_missing_is_named(line: str, replaced: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason) as caught:
        require(parse(GOOD.replace(line, replaced), "ssh://box"), "ssh://box")
    assert caught.value.message.startswith("ssh://box: ")


@pytest.mark.parametrize("output", ["", "This account is not available.\n", "x" * 20000])
def test_a_shell_that_is_none(output: str) -> None:
    with pytest.raises(Unavailable):
        parse(output, "box")


def test_hostile_output_is_harmless() -> None:
    assert parse(GOOD.replace("3.13", "9" * 150), "box").python is None
    assert parse(GOOD.replace("1.21", "$(reboot) \x1b[2J"), "box").crun == ""
    assert parse(GOOD.replace("uid=0", "uid=" + "9" * 99), "box").uid == -1


def test_the_command_runs_in_a_posix_shell() -> None:
    done = subprocess.run(["sh", "-c", COMMAND], capture_output=True, text=True, check=True)
    found = parse(done.stdout, "here")
    assert found.kernel.startswith("Linux ") and found.uid >= 0
    assert found.cgroup in ("v1", "v2", "hybrid")
