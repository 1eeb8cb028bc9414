"""The command line as a user meets it: output, error lines and exit codes, against an in-memory
daemon."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.cli import express, main
from hybrid.cli.app import ORDER, VERBS, command
from tests.unit.memorydaemon import MemoryDaemon, Record


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"<Outcome {self.code} out={self.out!r} err={self.err!r}>"


Hybrid = Callable[..., Outcome]


@pytest.fixture
def hybrid(
    daemon: MemoryDaemon, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Hybrid:
    """Runs one command line against the in-memory daemon."""

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(
            sys, "argv", ["hybrid", "--host", f"unix://{daemon.http.path}", *arguments]
        )
        monkeypatch.setattr(express, "leave", lambda code: code)
        code = main.run()
        sys.stdout.flush()
        return Outcome(code, *capfd.readouterr())

    return call


def test_run_shows_output_and_leaves_with_the_exit_code(
    hybrid: Hybrid, daemon: MemoryDaemon
) -> None:
    daemon.process = lambda record, _: (" ".join(record.body["Cmd"]).encode() + b"\n", 42)
    done = hybrid("run", "--rm", "busybox", "echo", "-n", "--rm")
    assert (done.code, done.out, done.err) == (42, "echo -n --rm\n", "")


def test_the_order_that_loses_nothing(hybrid: Hybrid, daemon: MemoryDaemon) -> None:
    hybrid("run", "--name", "x", "busybox")
    paths = [path.rsplit("/", 1)[-1] for _, path in daemon.calls if path.startswith("/containers")]
    assert paths == ["create", "attach", "wait", "start"]


def test_run_detached_prints_the_id(hybrid: Hybrid, daemon: MemoryDaemon) -> None:
    done = hybrid("run", "-d", "busybox")
    assert (done.code, done.out) == (0, f"{next(iter(daemon.containers))}\n")


def test_joined_short_flags(hybrid: Hybrid, daemon: MemoryDaemon) -> None:
    assert hybrid("run", "-dit", "--name=x", "-ea=b", "busybox").code == 0
    made: Record = next(iter(daemon.containers.values()))
    assert (made.body["Tty"], made.body["OpenStdin"], made.body["Env"]) == (True, True, ["a=b"])


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('exec: "nope": executable file not found in $PATH', 127),
        ("exec: /nope: no such file or directory", 127),
        ("exec: /etc: permission denied", 126),
        ("exec: /etc: is a directory", 126),
        ("not enough memory for the guest", 125),
    ],
)
def test_start_failures_have_dockers_exit_codes(
    hybrid: Hybrid, daemon: MemoryDaemon, message: str, code: int
) -> None:
    daemon.start_error = (400, message)
    done = hybrid("run", "busybox", "nope")
    assert (done.code, done.err) == (code, f"hybrid: {message}\n")


def test_unknown_image(hybrid: Hybrid) -> None:
    done = hybrid("run", "nope")
    assert (done.code, done.err) == (125, "hybrid: No such image: nope:latest\n")


@pytest.mark.parametrize(
    "arguments",
    [("run", "--nope", "busybox"), ("nope",), ("run",), ("ps", "--last", "x"), ("image", "nope")],
)
def test_usage_errors_are_one_line_and_125(hybrid: Hybrid, arguments: tuple[str, ...]) -> None:
    done = hybrid(*arguments)
    assert done.code == 125
    assert done.err.startswith("hybrid: ")
    assert done.err.count("\n") == 1
    assert "--help" in done.err


def test_a_terminal_is_asked_for_where_there_is_none(hybrid: Hybrid) -> None:
    done = hybrid("run", "-it", "busybox")
    assert (done.code, done.err) == (1, "hybrid: the input device is not a TTY\n")


def test_no_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hybrid", "-H", f"unix://{tmp_path}/no.sock", "ps"])
    assert main.run() == 1
    assert capsys.readouterr().err.startswith("hybrid: no daemon listens on unix://")


def test_ps_and_its_styles(hybrid: Hybrid, daemon: MemoryDaemon) -> None:
    hybrid("run", "-d", "--name", "web", "busybox")
    identity = next(iter(daemon.containers))
    table = hybrid("ps").out.splitlines()
    assert table[0].split() == (
        "CONTAINER ID IMAGE COMMAND CREATED STATUS PORTS NAMES ISOLATION MACHINE".split()
    )
    assert table[1].split("   ")[0] == identity[:12]
    assert hybrid("ps", "-q").out == f"{identity[:12]}\n"
    assert hybrid("ps", "-q", "--no-trunc").out == f"{identity}\n"
    shown = json.loads(hybrid("ps", "--format", "json").out)
    assert (shown["Names"], shown["State"], shown["Machine"]) == ("web", "running", "m1")
    hybrid("stop", "web")
    assert hybrid("ps", "-q").out == ""
    assert len(hybrid("ps", "-aq").out.splitlines()) == 1


def test_verbs_on_several_names_go_on_after_a_failure(hybrid: Hybrid) -> None:
    hybrid("run", "-d", "--name", "a1", "busybox")
    hybrid("run", "-d", "--name", "b1", "busybox")
    done = hybrid("stop", "a1", "nope", "b1")
    assert (done.code, done.out) == (1, "a1\nb1\n")
    assert done.err == "hybrid: No such container: nope\n"
    assert hybrid("rm", "a1", "b1").out == "a1\nb1\n"
    assert hybrid("rm", "-f", "nope").code == 0


def test_wait_prints_exit_codes(hybrid: Hybrid, daemon: MemoryDaemon) -> None:
    hybrid("run", "-d", "--name", "x", "busybox")
    daemon.finish(next(iter(daemon.containers.values())), 9)
    assert hybrid("wait", "x").out == "9\n"


def test_logs_split_the_streams(hybrid: Hybrid) -> None:
    hybrid("run", "-d", "--name", "x", "busybox")
    done = hybrid("logs", "-f", "--tail", "5", "x")
    assert (done.out, done.err) == ("line\n", "E")


def test_exec_returns_its_exit_code(hybrid: Hybrid, daemon: MemoryDaemon) -> None:
    hybrid("run", "-d", "--name", "x", "busybox")
    done = hybrid("exec", "-e", "A=1", "-u", "5", "x", "ls", "-l")
    assert (done.code, done.out) == (3, "exec:")
    assert daemon.execs["e1"]["Cmd"] == ["ls", "-l"]
    assert (daemon.execs["e1"]["Env"], daemon.execs["e1"]["User"]) == (["A=1"], "5")


def test_inspect_shows_what_it_finds_and_says_what_not(hybrid: Hybrid) -> None:
    hybrid("run", "-d", "--name", "x", "busybox")
    done = hybrid("inspect", "x", "busybox", "nope")
    assert done.code == 1
    assert [item.get("Name", item.get("RepoTags")) for item in json.loads(done.out)] == [
        "/x",
        ["busybox:latest"],
    ]
    assert done.err == "hybrid: No such object: nope\n"
    assert hybrid("inspect", "--type", "image", "x").err == "hybrid: No such image: x:latest\n"


def test_verify_fails_when_a_promise_is_broken(hybrid: Hybrid, daemon: MemoryDaemon) -> None:
    hybrid("run", "-d", "--name", "x", "busybox")
    daemon.verify_report = {
        "name": "x",
        "isolation": "vm",
        "kept": False,
        "checks": [
            {"boundary": "vm", "name": "own kernel", "kept": True, "evidence": {"a": 1}},
            {"boundary": "container", "name": "seccomp", "kept": False, "evidence": "mode 0"},
        ],
    }
    done = hybrid("verify", "x")
    assert done.code == 1
    assert "container   seccomp      BROKEN   mode 0" in done.out
    assert done.out.endswith("x (vm): 1 of 2 BROKEN\n")
    assert json.loads(hybrid("verify", "--all", "--format", "json").out)[0]["kept"] is False
    daemon.verify_report["kept"] = True
    assert hybrid("verify", "--all", "-q").code == 0
    assert hybrid("verify").code == 1


def test_image_load_reads_standard_input(
    hybrid: Hybrid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(b"tar")
    assert hybrid("image", "load", "-i", str(tmp_path / "a.tar")).out == "Loaded image: a:latest\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"tar")))
    assert hybrid("image", "load").out == "Loaded image: a:latest\n"
    done = hybrid("image", "load", "-i", str(tmp_path / "none.tar"))
    assert (done.code, done.err) == (
        1,
        f"hybrid: cannot read the archive {tmp_path}/none.tar: No such file or directory\n",
    )


def test_every_command_has_help_with_examples(hybrid: Hybrid) -> None:
    root = command()
    for name in ORDER:
        found = root.get_command(None, name)
        for leaf in [found] if name in VERBS or name == "daemon" else found.commands.values():
            assert leaf.help, name
            assert "Examples:" in (leaf.epilog or ""), f"{name} {leaf.name}"
    done = hybrid("--help")
    assert done.code == 0
    assert all(f"\n  {name} " in done.out for name in ORDER)
    assert hybrid("run", "--help").code == 0


def test_version_is_the_packages(hybrid: Hybrid, top: Path) -> None:
    from hybrid.cli.version import VERSION

    assert f'\nversion = "{VERSION}"\n' in (top / "pyproject.toml").read_text()
    assert hybrid("--version").out == f"hybrid version {VERSION}\n"


def test_a_console_is_shown_and_a_silent_one_is_said(hybrid: Hybrid, daemon: MemoryDaemon) -> None:
    done = hybrid("machine", "console", "web")
    assert (done.code, done.out) == (0, "")
    assert "web has written nothing on its console" in done.err and "shell web dmesg" in done.err
    daemon.console_log = b"Kernel panic\n"
    done = hybrid("machine", "console", "web")
    assert (done.out, done.err) == ("Kernel panic\n", "")
