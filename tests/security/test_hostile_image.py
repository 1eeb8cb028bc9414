"""Images whose files were made to lead out of the container; on this host's kernel, the only wall there."""

from __future__ import annotations

import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import archives
from tests.functional.daemon.conftest import busybox_image
from tests.security.conftest import RunningDaemon

pytestmark = pytest.mark.root
APPLETS = ("sh", "cat", "ls", "id", "head", "touch", "true")
MARK = "only-the-host-has-this"


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory of the host that no container may see or touch."""
    directory = Path(tempfile.mkdtemp(prefix="hybrid-outside-", dir="/var/tmp"))
    directory.chmod(0o777)
    (directory / "mark").write_text(MARK)
    yield directory
    left = {path.name: path.read_text() for path in directory.iterdir()}
    shutil.rmtree(directory)
    assert left == {"mark": MARK}, "the host's files were touched"


def _load(
    daemon: RunningDaemon, members: list[Any], without: tuple[str, ...] = (), **config: Any
) -> str:
    """Busybox with these members on top; ``without`` some of its directories."""
    image = f"hostile{secrets.token_hex(4)}:latest"
    program = Path(str(shutil.which("busybox"))).resolve().read_bytes()
    directories = [
        d for d in ("bin", "etc", "proc", "sys", "dev", "tmp", "root") if d not in without
    ]
    base = [*(archives.directory(f"{d}/") for d in directories),
            archives.member("bin/busybox", program, mode=0o755),
            *(archives.symlink(f"bin/{name}", "busybox") for name in APPLETS)]  # fmt: skip
    made = archives.ImageMade(
        [archives.tar(base), archives.tar(members)], [image], {"Cmd": ["sh"], **config}
    )
    answer = daemon.call(
        "POST", "/images/load", made.docker_archive(), **{"Content-Type": "application/x-tar"}
    )
    assert b"error" not in answer.body, answer.body
    return image


def _mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.mark.parametrize(
    "name", ["etc", "proc", "sys", "dev", "etc/hosts", "etc/resolv.conf", "dev/shm"]
)
@pytest.mark.parametrize("up", ["", "../../../../../../.."])
def test_mount_targets_that_are_symlinks_stay_inside(
    daemon: RunningDaemon, outside: Path, name: str, up: str
) -> None:
    target = f"{up}{outside}" + ("/mark" if name in ("etc/hosts", "etc/resolv.conf") else "")
    image = _load(daemon, [archives.symlink(name, target)], without=(name,))
    before = _mounts()
    done = daemon.run("--rm", image, "sh", "-c", f"ls -R {outside}; cat {outside}/mark; touch {outside}/new",
                      check=False)  # fmt: skip
    assert MARK.encode() not in done.stdout
    assert _mounts() == before


@pytest.mark.parametrize(
    "directory", ["../../../..", "/link", "/link/..", "/proc/self/cwd", "/proc/1/root/.."]
)
def test_a_working_directory_stays_inside(
    daemon: RunningDaemon, outside: Path, directory: str
) -> None:
    image = _load(daemon, [archives.symlink("link", f"../../../..{outside}")], WorkingDir=directory)
    done = daemon.run("--rm", image, "sh", "-c", "pwd; ls -la; cat mark", check=False)
    assert MARK.encode() not in done.stdout and b"hybrid-outside" not in done.stdout.replace(
        str(outside).encode(), b""
    )


def test_no_descriptor_of_the_runtime_can_be_the_working_directory(daemon: RunningDaemon) -> None:
    """As in CVE-2024-21626: /proc/self/fd/N of a runtime that forgot to close a directory of the host."""
    daemon.run("-d", "--name", "descriptors", "busybox", "sleep", "100")
    for number in range(3, 16):
        done = daemon.docker("exec", "-w", f"/proc/self/fd/{number}", "descriptors", "ls", "-a", "../../..",
                             check=False)  # fmt: skip
        assert done.returncode != 0, done.stdout


def test_a_volume_is_filled_from_the_image_only(daemon: RunningDaemon, outside: Path) -> None:
    image = _load(daemon, [archives.symlink("data", f"../../../..{outside}"),
                           archives.directory("more/"), archives.symlink("more/link", str(outside))])  # fmt: skip
    for target in ("/data", "/more", "/more/link"):
        done = daemon.run("--rm", "-v", f"v{secrets.token_hex(4)}:{target}", image, "cat", f"{target}/mark",
                          f"{target}/link/mark", check=False)  # fmt: skip
        assert MARK.encode() not in done.stdout


@pytest.mark.parametrize("path", ["/proc", "/", "/proc/sys", "/../proc"])
def test_an_image_asks_for_no_volume_over_the_kernels_files(
    daemon: RunningDaemon, path: str
) -> None:
    done = daemon.run("--rm", _load(daemon, [], Volumes={path: {}}), "true", check=False)
    assert done.returncode == 125 and (b"mount" in done.stderr or b"invalid" in done.stderr)


@pytest.mark.parametrize(
    "passwd",
    [
        archives.member("etc/passwd", type=b"6"),
        archives.member("etc/passwd", type=b"3", devmajor=1, devminor=5),
        archives.member("etc/passwd", b"x:" * (4 << 20)),
        archives.directory("etc/passwd/"),
        archives.symlink("etc/passwd", "passwd"),
        archives.symlink("etc/passwd", "../../../../../../etc/passwd"),
        archives.symlink("etc/passwd", "/proc/1/environ"),
        archives.member("etc/passwd", b"ann:x:99999999999999999999:-5::/:/bin/sh\n" * 1000),
    ],
    ids=["fifo", "device", "huge", "directory", "loop", "outside", "proc", "numbers"],
)
def test_a_strange_user_database_names_nobody(daemon: RunningDaemon, passwd: Any) -> None:
    image = _load(daemon, [passwd])
    refused = daemon.run("--rm", "-u", "daemon", image, "id", check=False)
    assert refused.returncode != 0 and b"uid" not in refused.stdout
    numbered = daemon.run("--rm", "-u", "1000", image, "cat", "/proc/self/status", check=False)
    if b"is larger than" not in numbered.stderr:
        assert b"Uid:\t1000\t1000\t1000\t1000" in numbered.stdout, numbered.stderr


def test_set_user_id_programs_and_device_nodes_of_layers_give_nothing(
    daemon: RunningDaemon,
) -> None:
    program = Path(str(shutil.which("busybox"))).resolve().read_bytes()
    image = _load(daemon, [
        archives.member("suid/id", program, mode=0o6755),
        archives.member("mem", type=b"3", devmajor=1, devminor=1, mode=0o666),
        archives.member("disk", type=b"4", devmajor=8, devminor=0, mode=0o666),
        archives.member("kmsg", type=b"3", devmajor=1, devminor=11, mode=0o666),
    ])  # fmt: skip
    done = daemon.run("--rm", "-u", "1000", image, "/suid/id", "-u")
    assert done.stdout == b"1000\n"
    for user in ("0", "1000"):
        for node in ("/mem", "/disk", "/kmsg"):
            done = daemon.run("--rm", "-u", user, image, "head", "-c1", node, check=False)
            assert done.returncode != 0 and done.stdout == b"", node


def test_a_programs_path_does_not_lead_out(daemon: RunningDaemon, outside: Path) -> None:
    image = _load(daemon, [archives.symlink("run", f"../../../..{outside}/mark")],
                  Entrypoint=[f"../../../../..{outside}/mark"])  # fmt: skip
    assert daemon.run("--rm", image, check=False).returncode in (126, 127)
    assert daemon.run("--rm", "--entrypoint", "/run", image, check=False).returncode in (126, 127)


def test_what_a_container_writes_gives_the_hosts_users_nothing(daemon: RunningDaemon) -> None:
    """A set-user-id program in a volume: no user of the host gets to it, and it is not root's."""
    daemon.docker("load", stdin=busybox_image())
    daemon.run(
        "--rm", "-v", "traps:/v", "busybox", "sh", "-c", "cp /bin/busybox /v/sh; chmod 6777 /v/sh"
    )
    program = daemon.paths.volume("traps") / "_data" / "sh"
    assert program.stat().st_mode & stat.S_ISUID
    done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(program), "id"],
                          capture_output=True, cwd="/")  # fmt: skip
    assert done.returncode != 0 and b"uid" not in done.stdout


@pytest.mark.parametrize(
    "config",
    [
        {"Env": ["A=b"] * 20_000},
        {"Labels": {f"l{n}": "x" for n in range(20_000)}},
        {"Labels": {"a": 5}},
        {"Env": "A=b"},
        {"Env": ["A\0=b"]},
        {"Cmd": {"a": 1}},
        {"User": 5},
        {"ExposedPorts": {"x" * 100_000: {}}},
        {"WorkingDir": "x" * 100_000},
        {"User": "\x1b[2J"},
    ],
    ids=str,
)
def test_a_strange_config_is_refused_or_harmless(
    daemon: RunningDaemon, config: dict[str, Any]
) -> None:
    name = f"odd{secrets.token_hex(4)}:latest"
    made = archives.ImageMade([archives.tree({"f": b""})], [name], {"Cmd": ["x"], **config})
    daemon.call(
        "POST", "/images/load", made.docker_archive(), **{"Content-Type": "application/x-tar"}
    )
    answer = daemon.call("POST", "/containers/create", {"Image": name, "Cmd": ["true"]})
    assert answer.status == 201 or 400 <= answer.status < 500, answer.body
    assert daemon.call("GET", "/containers/json?all=1").status == 200
    assert daemon.call("GET", "/images/json").status == 200
