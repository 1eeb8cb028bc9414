from __future__ import annotations

from typing import Any

import pytest

from hybrid.errors import Forbidden, InvalidInput
from hybrid.policy import process
from hybrid.policy.process import ExecRequest, Rlimit


@pytest.mark.parametrize(
    ("image", "request_", "expected"),
    [
        ((["/e"], ["c"]), (None, None), (["/e"], ["c"])),
        ((["/e"], ["c"]), (None, ["x"]), (["/e"], ["x"])),
        ((["/e"], ["c"]), (["/n"], None), (["/n"], [])),
        ((["/e"], ["c"]), (["/n"], ["x"]), (["/n"], ["x"])),
        ((["/e"], ["c"]), ([""], ["x"]), ([], ["x"])),
        ((["/e"], ["c"]), ([], None), ([], ["c"])),
        ((None, ["c"]), (None, None), ([], ["c"])),
    ],
)
def test_command_follows_dockers_rules(image: Any, request_: Any, expected: Any) -> None:
    assert process.merge_command(image, request_) == expected


def test_environment_overrides_and_unsets() -> None:
    assert process.merge_env(["A=1", "B=2", "C=3"], ["B=x", "C", "D=4=5"]) == [
        "A=1",
        "B=x",
        "D=4=5",
    ]
    assert process.environment(["TERM=dumb"], "h", True) == [
        process.DEFAULT_PATH,
        "HOSTNAME=h",
        "TERM=dumb",
    ]


@pytest.mark.parametrize("item", ["=x", "", "A=\0"])
def test_bad_variables_are_refused(item: str) -> None:
    with pytest.raises(InvalidInput, match="environment"):
        process.merge_env([], [item])


@pytest.mark.parametrize("args", [[], [""], ["a\0"], ["x" * (128 << 10)], ["x"] * 9000])
def test_bad_commands_are_refused(args: list[str]) -> None:
    with pytest.raises(InvalidInput):
        process.arguments(args)


def test_working_directory() -> None:
    assert process.working_directory("") == "/"
    assert process.working_directory("//srv/../a/") == "/a"
    with pytest.raises(InvalidInput, match="absolute"):
        process.working_directory("a")


@pytest.mark.parametrize("text", ["", "0", "postgres", "1000:1000", "a:b", "user@domain"])
def test_users(text: str) -> None:
    assert process.user(text) == {"uid": 0, "gid": 0, "username": text or "0"}


@pytest.mark.parametrize("text", ["a:b:c", "a b", "a/b", "a:", "x" * 65])
def test_bad_users_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="invalid user"):
        process.user(text)


def test_groups_are_numbers_or_names() -> None:
    assert process.groups(["27", "audio"]) == [27, "audio"]
    with pytest.raises(InvalidInput, match="invalid group"):
        process.groups([str(1 << 32)])


def test_rlimits() -> None:
    assert process.rlimits([Rlimit("nofile", 10, -1)]) == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": (1 << 64) - 1}
    ]
    for bad in (Rlimit("files", 1, 1), Rlimit("core", 2, 1), Rlimit("core", -1, 1)):
        with pytest.raises(InvalidInput, match="ulimit"):
            process.rlimits([bad])


CONTAINER = {
    "terminal": False,
    "user": process.user("app"),
    "args": ["server"],
    "env": ["PATH=/bin", "A=1"],
    "cwd": "/srv",
    "capabilities": {"bounding": ["CAP_KILL"]},
    "noNewPrivileges": True,
}


def test_an_exec_is_as_its_container_and_leaves_rights_to_the_agent() -> None:
    built = process.exec_process(CONTAINER, ExecRequest(["sh"], env=["A=2"]))
    assert built == {
        "args": ["sh"],
        "env": ["PATH=/bin", "A=2"],
        "cwd": "/srv",
        "user": CONTAINER["user"],
        "terminal": False,
    }


def test_an_exec_may_choose_user_directory_and_terminal() -> None:
    request = ExecRequest(["sh"], user="0", cwd="/tmp", terminal=True, rows=24, columns=80)
    built = process.exec_process(CONTAINER, request)
    assert built["user"]["username"] == "0"
    assert built["cwd"] == "/tmp"
    assert built["terminal"] is True
    assert built["consoleSize"] == {"height": 24, "width": 80}
    assert "TERM=xterm" in built["env"]


def test_a_privileged_exec_is_refused() -> None:
    with pytest.raises(Forbidden, match="inner boundary"):
        process.exec_process(CONTAINER, ExecRequest(["sh"], privileged=True))
