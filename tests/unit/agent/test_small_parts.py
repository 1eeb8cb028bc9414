"""Options, exit codes, crun's failures, ps columns, limits, archives' names."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.agent import (
    archives,
    cgroups,
    devices,
    limits,
    options,
    reaper,
    runtime,
    stats,
    syscalls,
    top,
)
from hybrid.errors import HybridError, Internal, InvalidInput, Unsupported


def test_options_are_one_of_three_ways_to_listen() -> None:
    given = options.Options.parse(["--serial", "hybrid.agent", "--guest"])
    assert (given.serial, given.guest, given.features) == ("hybrid.agent", True, ["guest"])
    given = options.Options.parse(["--unix", "/run/x", "--state", "/run/y", "--probe", "/p"])
    assert (given.unix, str(given.state), str(given.probe)) == ("/run/x", "/run/y", "/p")
    assert options.Options.parse(["--vsock", "1024", "--peer", "1"]).peer == 1
    assert options.Options.parse(["--unix", "/run/x", "--group", "hybrid-1a"]).group == "hybrid-1a"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--unix"],
        ["--unix", "a", "--group", "../x"],
        ["--unix", "a", "--serial", "b"],
        ["--vsock", "x"],
        ["--other"],
        ["--guest"],
    ],
)
def test_other_options_show_the_usage(arguments: list[str]) -> None:
    with pytest.raises(InvalidInput, match="usage:"):
        options.Options.parse(arguments)


def test_exit_codes_are_dockers() -> None:
    assert reaper.exit_code(3 << 8) == 3
    assert reaper.exit_code(9) == 137


async def test_a_program_is_started_with_fixed_addresses_where_asked(tmp_path: Path) -> None:
    starter = reaper.Reaper()
    starter.install()
    for inheriting, personality in (
        (syscalls.fixed_addresses(), "00040000"),
        (None, "00000000"),
    ):
        with (tmp_path / "out").open("w+") as out:
            stdio = (os.open(os.devnull, os.O_RDONLY), out.fileno(), 2)
            argv = ["cat", "/proc/self/personality"]
            assert await starter.run(argv, os.environ, stdio, inheriting=inheriting) == 0
            os.close(stdio[0])
        assert (tmp_path / "out").read_text() == f"{personality}\n"
    assert Path("/proc/self/personality").read_text() == "00000000\n"


@pytest.mark.parametrize(
    ("log", "program", "message"),
    [
        (
            "2026-01-01T00:00:00.0Z: executable file `x` not found in $PATH: No such file or directory",
            "x",
            'exec: "x": executable file not found in $PATH',
        ),
        (
            "executable file `/x` not found in $PATH: No such file or directory",
            "/x",
            'exec: "/x": no such file or directory',
        ),
        ("open executable: Permission denied", "/x", 'exec: "/x": permission denied'),
        (
            "the path `/x` exists but it is not executable: Operation not permitted",
            "/x",
            'exec: "/x": permission denied',
        ),
        (
            "the path `/x` is not a regular file: Operation not permitted",
            "/x",
            'exec: "/x": is a directory: permission denied',
        ),
    ],
)
def test_start_failures_are_told_in_dockers_words(log: str, program: str, message: str) -> None:
    error = runtime.failure("create", log, program)
    assert isinstance(error, InvalidInput)
    assert error.message == message


def test_other_failures_keep_the_runtimes_words() -> None:
    error: HybridError = runtime.failure(
        "create", "2026-01-01T00:00:00.0Z: mount `proc`: denied\n", "x"
    )
    assert isinstance(error, Internal)
    assert error.message == "crun create: mount `proc`: denied"


def test_ps_arguments_choose_columns() -> None:
    assert top.columns("-ef")[0] == "uid"
    assert top.columns("aux")[0] == "user"
    assert list(top.columns("-eo pid,%cpu,command")) == ["pid", "pcpu", "args"]
    for arguments in ("--forest", "-o nosuch", "-ejH"):
        with pytest.raises(Unsupported):
            top.columns(arguments)


def test_the_table_shows_this_process() -> None:
    table = top.table([os.getpid(), 2**22 - 1], "-o pid,comm")
    assert table.titles == ["PID", "COMMAND"]
    assert [row[0] for row in table.rows] == [str(os.getpid())]


def test_a_limit_no_higher_than_ours_needs_nothing() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits.allow({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": min(hard, 10)}]})
    with pytest.raises(InvalidInput):
        limits.allow({"rlimits": [{"type": "NOFILE", "soft": 1, "hard": 1}]})


def test_io_figures_are_parsed_in_both_layouts() -> None:
    v2 = stats._io_v2("8:0 rbytes=10 wbytes=20 rios=1\n7:1 odd\n")
    assert [entry["value"] for entry in v2] == [10, 20]
    v1 = stats._io_v1("8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n")
    assert [(entry["op"], entry["value"]) for entry in v1] == [("read", 10), ("write", 20)]


def test_limits_nobody_asked_for_need_no_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "controllers", lambda: frozenset({"memory", "blkio"}))
    cgroups.refuse_unsupported({"memory": {"limit": 1}, "pids": {"limit": 0}, "cpu": {}})
    cgroups.refuse_unsupported({"blockIO": {"weight": 10}, "devices": [{"allow": False}]})
    for resources in ({"pids": {"limit": 5}}, {"cpu": {"cpus": "0"}}, {"cpu": {"quota": 5}}):
        with pytest.raises(Unsupported, match=r"no '(pids|cpuset|cpu)' cgroup controller"):
            cgroups.refuse_unsupported(resources)


@pytest.mark.parametrize("name", ["../x", "a/../../x", ".."])
def test_archive_members_stay_inside(name: str) -> None:
    with pytest.raises(InvalidInput):
        archives._inside(name)


def test_archive_names_are_cleaned() -> None:
    assert archives._inside("/a//b/./c") == "a/b/c"
    assert archives._inside("./") == "."


def test_the_agent_loads_little_before_its_hello() -> None:
    """What is loaded first decides how soon a guest answers."""
    code = "import sys, hybrid.agent.main; print(*sys.modules)"
    found = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(_TOP)!r}); {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(found.stdout.split())
    assert "hybrid.agent.server" in loaded
    assert not loaded & {"ctypes", "tarfile", "argparse", "hybrid.agent.service"}


_TOP = Path(__file__).parents[3]


def test_only_controllers_that_groups_below_get_can_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the kernel may refuse to hand controllers down; here a directory refuses the write."""
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("pids\n")
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    cgroups.controllers.cache_clear()
    with monkeypatch.context() as refusing:
        refusing.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(OSError(16, "busy")))
        assert cgroups.controllers() == {"pids"}
        with pytest.raises(
            Unsupported, match=r"no 'memory' .* for containers \(see .*subtree_control"
        ):
            cgroups.refuse_unsupported({"memory": {"limit": 1 << 26}})
    cgroups.controllers.cache_clear()
    assert cgroups.controllers() == {"memory", "pids"}
    cgroups.controllers.cache_clear()


def test_a_disk_is_asked_for_its_serial_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_SYS", tmp_path)
    disk = tmp_path / "vdz"
    disk.mkdir()
    assert devices._serial_of("vdz") == ""
    (disk / "diskseq").write_text("7\n")
    assert devices._serial_of("vdz") == ""
    (disk / "serial").write_text("first")
    assert devices._serial_of("vdz") == "first"
    (disk / "serial").write_text("second")
    assert devices._serial_of("vdz") == "first"
    # Another disk took its name.
    (disk / "diskseq").write_text("8\n")
    assert devices._serial_of("vdz") == "second"
    (tmp_path / "sdz" / "device").mkdir(parents=True)
    (tmp_path / "sdz" / "device" / "vpd_pg80").write_bytes(b"\0\x80\0\x05third\0")
    assert devices._serial_of("sdz") == "third"
