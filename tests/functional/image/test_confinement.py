"""What a confined process can do: nothing but compute, read /usr, and write its one file."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root
TOP = Path(__file__).resolve().parents[3]
PROBE = """
import ctypes, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(call):
    try:
        return call() is None and False
    except OSError as error:
        return error.strerror
def syscall(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
print(json.dumps({
    "ids": [os.getuid(), os.getgid(), os.getegid(), os.getgroups()],
    "pid": os.getpid(),
    "root": sorted(os.listdir("/")),
    "descriptors": [n for n in range(3, 100) if refused(lambda: os.fstat(n)) is False],
    "write /": refused(lambda: open("/x", "w")),
    "write /usr": refused(lambda: open("/usr/x", "w")),
    "setuid": refused(lambda: os.setuid(0)),
    "socket": refused(socket.socket),
    "unshare": refused(lambda: syscall(272, 0x10000000)),
    "mount": refused(lambda: syscall(165, b"none", b"/usr", b"tmpfs", 0, 0)),
    "bpf": refused(lambda: syscall(321, 0, 0, 0)),
    "io_uring": refused(lambda: syscall(425, 1, 0)),
    "ptrace": refused(lambda: syscall(101, 16, 1, 0, 0)),
    "keyctl": refused(lambda: syscall(250, 0, -3, 0)),
}))
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "hybrid.image.confine", "1900000007", "0", str(2 << 30),
         "/usr/bin/python3", "-c", PROBE],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(TOP)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_it_is_nobody_special(seen: dict[str, Any]) -> None:
    assert seen["ids"] == [1900000007, 1900000007, 1900000007, []]
    assert seen["pid"] == 1


def test_it_sees_only_usr(seen: dict[str, Any]) -> None:
    assert set(seen["root"]) <= {"bin", "lib", "lib64", "usr"}
    assert seen["descriptors"] == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe's numbers are x86_64's")
@pytest.mark.parametrize(
    "what",
    ["setuid", "socket", "unshare", "mount", "bpf", "io_uring", "ptrace", "keyctl"],
)
def test_ways_out_are_refused(seen: dict[str, Any], what: str) -> None:
    assert seen[what] == "Operation not permitted"


@pytest.mark.parametrize("what", ["write /", "write /usr"])
def test_nothing_can_be_written(seen: dict[str, Any], what: str) -> None:
    assert seen[what] == "Read-only file system"
