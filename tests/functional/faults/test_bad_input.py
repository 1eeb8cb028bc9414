"""Bad input and faults as a user meets them: one clear line, a fitting exit code, nothing half-made left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hybrid.paths import Paths
from tests.leftovers import nothing_left
from tests.livedaemon import BUILT, Done, LiveDaemon, live_daemon, until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

HERE = ("--isolation", "container")
WARNING = "one boundary only"


def said(done: Done) -> str:
    """The one line that a failed command says."""
    lines = [line for line in done.stderr.decode().splitlines() if WARNING not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("hybrid: ")
    return lines[0].removeprefix("hybrid: ")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("run nope true", 125, "No such image: nope:latest"),
        ("run --isolation weird busybox true", 125, "invalid isolation 'weird': use vm, "),
        ("run --isolation machine:nope busybox true", 125, "no such machine: nope"),
        ("run busybox nope", 127, 'exec: "nope": executable file not found in $PATH'),
        ("run busybox /bin/nope", 127, 'exec: "/bin/nope": no such file or directory'),
        ("run busybox /etc/passwd", 126, 'exec: "/etc/passwd": permission denied'),
        ("run -u nope busybox true", 125, "unable to find user nope"),
        ("run -u 0:nope busybox true", 125, "unable to find group nope"),
        ("run -w here busybox true", 125, "working directory 'here' is invalid"),
        ("run -w /etc/passwd busybox true", 125, "/etc/passwd is not a directory"),
        ("run --mount type=bind,src=/nope,dst=/x busybox true", 125, "does not exist: /nope"),
        ("run --network nope busybox true", 125, "network nope not found"),
        ("run -p 99999:80 busybox true", 125, "invalid port '99999:80'"),
        ("run --cap-add NOPE busybox true", 125, 'unknown capability "NOPE"'),
        ("run --isolation vm busybox true", 125, "no guest image: run 'hybrid guest build'"),
        ("run --nope busybox true", 125, "No such option: --nope"),
        ("machine create odd", 1, "no guest image: run 'hybrid guest build'"),
        ("machine create --profile nope odd", 1, "No such machine profile: nope"),
        ("machine rm nope", 1, "No such machine: nope"),
        ("network rm nope", 1, "network nope not found"),
        ("network rm bridge", 1, "pre-defined"),
        ("network create --subnet 1.2.3.4/99 odd", 1, "invalid subnet '1.2.3.4/99'"),
        ("volume rm nope", 1, "no such volume"),
        ("image rm nope", 1, "No such image: nope:latest"),
        ("image load -i /nope.tar", 1, "cannot read the archive /nope.tar"),
        ("start nope", 1, "No such container: nope"),
        ("exec nope true", 1, "No such container: nope"),
        ("logs nope", 1, "No such container: nope"),
    ],
)
def test_refused(live: LiveDaemon, arguments: str, code: int, text: str) -> None:
    words = arguments.split()
    if words[0] == "run":
        words[1:1] = ["--rm", *(() if "--isolation" in words else HERE)]
    done = live.run(*words)
    assert done.returncode == code
    assert text in said(done)
    assert live.out("ps", "-aq") == ""


def test_a_container_that_exits_at_once(live: LiveDaemon) -> None:
    live.out("run", "-d", "--name", "brief", *HERE, "busybox", "sh", "-c", "echo gone; exit 9")
    until(lambda: not live.inspect("brief")["State"]["Running"])
    assert live.inspect("brief")["State"]["ExitCode"] == 9
    assert live.out("logs", "brief") == "gone\n"
    assert "is not running" in said(live.run("exec", "brief", "true"))


def test_names_and_ports_in_use(live: LiveDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        flags = ("run", "--rm", *HERE, "-p", f"127.0.0.1:{port}:80", "busybox", "true")
        done = live.run(*flags)
        assert (done.returncode, "already allocated" in said(done)) == (125, True)
        everywhere = live.run("run", "--rm", *HERE, "-p", f"{port}:80", "busybox", "true")
        assert "already allocated" in said(everywhere)
    live.out("run", "-d", "--name", "holder", *HERE, "-p", f"127.0.0.1:{port}:80", "busybox",
             "sleep", "1000")  # fmt: skip
    done = live.run(*flags)
    assert (done.returncode, "already allocated" in said(done)) == (125, True)
    done = live.run("run", "--rm", "--name", "holder", *HERE, "busybox", "true")
    assert (done.returncode, '"/holder" is already in use' in said(done)) == (125, True)
    assert "running" in said(live.run("rm", "holder"))


@pytest.fixture
def archive() -> Path:
    return BUILT.root / "archives" / "busybox.tar"


def load(live: LiveDaemon, data: bytes) -> Done:
    return live.run("image", "load", stdin=data)


def test_damaged_archives(live: LiveDaemon, archive: Path, tmp_path: Path) -> None:
    live.out("image", "rm", "busybox")
    good = archive.read_bytes()
    with tarfile.open(archive) as members:
        largest = max(members, key=lambda member: member.size)
    flipped = bytearray(good)
    flipped[largest.offset_data + 5000] ^= 1
    outside = tmp_path / "outside.tar"
    with tarfile.open(outside, "w") as made:
        made.addfile(tarfile.TarInfo("../../evil"))
    for data, text in (
        (b"", "empty"),
        (b"hello\n", "truncated"),
        (os.urandom(4096), "not a tar archive"),
        (good[: len(good) // 2], "truncated"),
        (bytes(flipped), "wrong digest"),
        (outside.read_bytes(), "leaves its root directory"),
    ):
        done = load(live, data)
        assert (done.returncode, text in said(done)) == (1, True), (text, done.stderr)
        assert live.out("image", "ls", "-q") == ""
        nothing_left(live)
    assert load(live, good).returncode == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("services: {a: {image: busybox, nope: 1}}", "services.a.nope: this key is not supported"),
        ("services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}", "a -> b -> a"),
        ("services: [", "not valid YAML"),
        ("services: {a: {image: busybox, isolation: weird}}", "invalid isolation 'weird'"),
        ("services: {a: {image: nope, isolation: container}}", "No such image: nope:latest"),
        ("services: {a: {image: busybox, depends_on: [z]}}", "no such service: z"),
    ],
)  # fmt: skip
def test_bad_compose_files(live: LiveDaemon, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    done = live.run("up", "-d", cwd=tmp_path)
    assert (done.returncode, says in said(done)) == (1, True), done.stderr
    assert live.out("ps", "-aq") == ""


@pytest.fixture
def as_nobody(live: LiveDaemon) -> Iterator[list[str]]:
    """A command line run by a user without rights, with an interpreter that everybody may run."""
    site = sysconfig.get_paths()["purelib"]
    here = str(Path(__file__).resolve().parents[3])
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        copy = Path(name)
        copy.chmod(0o755)
        for source in (f"{here}/hybrid", f"{site}/typer"):
            subprocess.run(["cp", "-rL", source, name], check=True)
        subprocess.run(["chmod", "-R", "a+rX", name], check=True)
        python = f"/usr/bin/python3.{sys.version_info.minor}"
        if not Path(python).exists():
            pytest.skip(f"needs {python}")
        packages = [name, site]
        yield [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/"),
            f"PYTHONPATH={':'.join(packages)}",
            *(python, "-m", "hybrid.cli.main"),
        ]


def test_without_permission_on_the_socket(live: LiveDaemon, as_nobody: list[str]) -> None:
    root = str(live.paths.root)
    for words, code, text in (
        (["--root", root, "ps"], 1, f"no permission on the daemon's socket {live.paths.socket}"),
        (["--root", root, "run", "busybox", "true"], 125, "no permission on the daemon's socket"),
        (["--root", "/var/tmp/nope", "ps"], 1, "no daemon listens on unix://"),
        (["daemon", "--root", "/var/tmp/nope"], 1, "the daemon needs root"),
    ):
        done = subprocess.run([*as_nobody, *words], capture_output=True, check=False)
        assert (done.returncode, text in said(done)) == (code, True), done.stderr


def test_a_daemon_configuration_with_an_unknown_key(live: LiveDaemon) -> None:
    live.paths.config.write_text("nope: 1\n")
    try:
        live.kill()
        text = said(live.run("ps"))
    finally:
        live.paths.config.unlink()
    assert "daemon.yaml: unknown key 'nope'; there are: accelerator, " in text


@contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A file system of that size."""
    with tempfile.TemporaryDirectory(prefix="hybrid-", dir="/var/tmp") as name:
        options = f"size={size},mode=711"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


def test_a_disk_without_room_for_an_image(archive: Path) -> None:
    with small_disk("24m") as root, live_daemon(root=root) as live:
        done = live.run("image", "load", "-i", str(archive))
        assert (done.returncode, "no space left" in said(done)) == (1, True)
        nothing_left(live)


def test_a_disk_that_fills_up(archive: Path) -> None:
    """What runs runs on, ends are seen, new things are refused; with room again all goes on."""
    with small_disk("110m") as root, live_daemon(root=root) as live:
        live.out("image", "load", "-q", "-i", str(archive))
        command = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); usleep 20000; done"
        live.out("run", "-d", "--name", "talker", *HERE, "busybox", "sh", "-c", command)
        live.out("run", "-d", "--name", "sleeper", *HERE, "busybox", "sleep", "1000")
        filler = root / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        done = live.run("run", "--rm", *HERE, "busybox", "true")
        assert done.returncode == 125 and "full" in said(done)
        live.out("stop", "-t", "0", "sleeper")
        assert live.inspect("sleeper")["State"]["Status"] == "exited"
        filler.unlink()
        assert live.out("wait", "talker") == "0\n"
        assert live.out("logs", "talker") == "".join(f"line {number}\n" for number in range(200))
        live.out("start", "sleeper")
        ever = live.out("ps", "-aq", "--no-trunc").split()
        live.out("rm", "-f", *ever)
        nothing_left(live, ever)


def test_two_daemons_do_not_see_each_other(live: LiveDaemon) -> None:
    """Neither one's containers, networks and rules are touched when the other comes, goes or is killed."""
    serve = ("sh", "-c", "mkdir /w; echo mine > /w/index.html; httpd -f -h /w -p 80")
    live.out("run", "-d", "--name", "same", "-p", "127.0.0.1::80", *HERE, "busybox", *serve)
    port = live.inspect("same")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]

    def served() -> bytes:
        return subprocess.run(
            ["curl", "-s", "-m", "5", f"http://127.0.0.1:{port}/"], capture_output=True, check=True
        ).stdout

    with live_daemon() as other:
        other.load("busybox")
        assert other.out("ps", "-aq") == ""
        other.out("run", "-d", "--name", "same", *HERE, "busybox", "sleep", "1000")
        subnets = {
            one.inspect("same")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].rsplit(".", 1)[0]
            for one in (live, other)
        }  # fmt: skip
        assert len(subnets) == 2
        done = other.run("run", "--rm", *HERE, "-p", f"127.0.0.1:{port}:80", "busybox", "true")
        assert "already allocated" in said(done)
        for kill in (other.kill, live.kill):
            kill()
            assert served() == b"mine\n"
            assert other.out("exec", "same", "echo", "runs") == "runs\n"
            assert live.out("exec", "same", "echo", "runs") == "runs\n"
        other_paths: Paths = other.paths
    assert served() == b"mine\n"
    assert not [
        one for one in Path("/sys/class/net").iterdir() if other_paths.instance[:4] in one.name
    ]
