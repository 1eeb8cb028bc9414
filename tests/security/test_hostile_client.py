"""Whoever may use the socket cannot make the daemon fail, forget itself or exceed the client's own rights."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.security.conftest import RunningDaemon

pytestmark = pytest.mark.root
NOBODY = 65534
BIG = "x" * (1 << 20)
STRANGE_NAMES = ["a%00b", "..%2f..%2fetc", "%2e%2e", "a%0ab", "%ff%fe", "x" * 4000, "%1b%5b2J"]
BODIES: list[dict[str, Any]] = [
    *({field: value} for field in ("User", "Hostname", "WorkingDir", "Image", "StopSignal")
      for value in (BIG + "x", "a\0b", "\ud800", 5, [1], {})),
    *({"Env": value} for value in ([BIG + "x"], ["a\0b"], ["\ud800"], [1], ["A"] * 20_000)),
    *({"Cmd": value} for value in (["\ud800"], ["a\0b"], [1], {"a": 1})),
    *({"Labels": value} for value in ({"a": BIG + "y"}, {"a\0": ""}, {"\ud800": ""}, {"a": 1},
                                      {str(n): "" for n in range(20_000)})),
    *({"Volumes": {path: {}}} for path in ("/proc", "/", "/proc/self", "x", "/x/../..", "/../..")),
    *({"ExposedPorts": {port: {}}} for port in ("9" * 5000 + "/tcp", "x", "0/tcp", "80/xyz")),
    *({"HostConfig": {"Binds": [bind]}} for bind in (
        "/:/x", "/proc:/x", "/proc/1/root:/x", "/sys:/x", "/dev/mem:/x", "/boot/..:/x", "/run:/x",
        "/run/hybrid:/x", "/var/run:/x", "/var/../:/x", "/a\0b:/x", "/" + "a" * 5000 + ":/x", "../x:/x",
        "/tmp:/proc/self", "/tmp:/", "/tmp:/x/../../proc", "a/../b:/x")),
    *({"HostConfig": {"Mounts": [mount]}} for mount in (
        {"Type": "volume", "Source": "../x", "Target": "/x"}, 5,
        {"Type": "volume", "Source": "v", "Target": "/x", "VolumeOptions": {"Subpath": "../.."}},
        {"Type": "bind", "Source": "x", "Target": "/x"})),
    *({"HostConfig": {"PortBindings": ports}} for ports in (
        {"9" * 5000: [{}]}, {"80/tcp": [{"HostPort": "9" * 5000}]}, {"80/tcp": [{"HostPort": "٣"}]},
        {"80/tcp": [{"HostIp": "999.1.1.1"}]}, {"80/tcp": 5}, {"80/xyz": [{}]})),
    *({"HostConfig": fields} for fields in (
        {"ExtraHosts": ["a\nb:1.2.3.4"]}, {"ExtraHosts": ["h:1.2.3.4\n6.6.6.6 example.org"]},
        {"Dns": ["1.1.1.1\nsearch x"]}, {"DnsSearch": ["a\nnameserver 6.6.6.6"]}, {"DnsOptions": ["x\ny"]},
        {"Sysctls": {"net.ipv4.ip_forward": "1\n"}}, {"Sysctls": {"kernel/../x": "1"}},
        {"Annotations": {"run.oci.hooks.stdin": "x"}}, {"ShmSize": -1}, {"Memory": -1},
        {"Isolation": "vm:../x"}, {"Isolation": "machine:a/b"}, {"SecurityOpt": ["seccomp=" + "[" * 9000]},
        {"NetworkMode": "../x"}, {"PidMode": "host"}, {"Privileged": True, "Isolation": "container"},
        {"Devices": [{"PathOnHost": "/dev/sda"}]}, {"Tmpfs": {"/": ""}}, {"UTSMode": "host"})),
]  # fmt: skip
CONFUSED: list[Any] = [
    5,
    -5,
    "x",
    True,
    [5],
    ["x"],
    [[]],
    [{}],
    {"a": 5},
    {"a": {}},
    {"a": [5]},
    [{"a": 5}],
    1.5,
]
HOST_FIELDS = """Binds Mounts Tmpfs PortBindings RestartPolicy LogConfig Ulimits Sysctls ExtraHosts Dns DnsSearch
    DnsOptions CapAdd CapDrop SecurityOpt GroupAdd ConsoleSize MaskedPaths ReadonlyPaths Annotations NetworkMode
    Isolation Runtime PidMode IpcMode UsernsMode CgroupnsMode UTSMode Memory NanoCpus CpusetCpus PidsLimit Devices
    DeviceRequests VolumesFrom Links CgroupParent StorageOpt ShmSize Init BlkioDeviceReadBps AutoRemove""".split()
FIELDS = """Env Cmd Entrypoint Labels Volumes ExposedPorts Healthcheck HostConfig NetworkingConfig User Tty Shell
    OnBuild StopTimeout MacAddress Hostname WorkingDir""".split()
DEEP = b'{"Image":"busybox","X":' + b'{"a":' * 600 + b"1" + b"}" * 602
RAW = [
    DEEP,
    b"[" * 100_000,
    b"\xff\xfe",
    b"[]",
    b'{"Image": NaN}',
    b'{"Image":"busybox","HostConfig":{"Memory":' + b"9" * 5000 + b"}}",
    b'{"Image":"busybox","HostConfig":{"Memory":1e400}}',
    b'{"Image":"' + b"x" * (5 << 20) + b'"}',
]
QUERIES = [
    "/containers/json?limit=" + "9" * 4000,
    "/containers/json?all=1&filters=%5B",
    "/containers/json?all=1&filters=" + "%5B" * 2000,
    "/containers/json?all=1&filters=%7B%22name%22:[%22(a%2B)%2B$%22]%7D",
    "/containers/json?all=1&filters=%7B%22name%22:[%22.*.*.*.*.*.*x%22]%7D",
    "/containers/json?all=1&filters=%7B%22name%22:[%22\\ud800%22]%7D",
    "/events?since=x",
    "/events?until=1&since=1e400",
    "/hybrid/verify?container=%00",
    "/v9.99/info",
]


def _resident(daemon: RunningDaemon) -> int:
    pid = int(daemon.paths.pid_file.read_text())
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _refused(status: int) -> bool:
    return 400 <= status < 500 or status == 501


def test_strange_names_find_nothing(daemon: RunningDaemon) -> None:
    for name in STRANGE_NAMES:
        for path in (
            "containers/%s/json",
            "images/%s/json",
            "volumes/%s",
            "networks/%s",
            "exec/%s/json",
        ):
            assert _refused(daemon.call("GET", "/" + path % name).status), path % name
        assert _refused(daemon.call("GET", f"/hybrid/machines/{name}").status)
        body = {"Image": "busybox"}
        assert _refused(daemon.call("POST", f"/containers/create?name={name}", body).status)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", ".", "..", "-x", "a\nb", "a\0b", "\ud800", "x" * 300]
)
def test_nothing_gets_a_name_that_is_a_path_or_steers_a_terminal(
    daemon: RunningDaemon, name: str
) -> None:
    for route in ("/volumes/create", "/networks/create", "/hybrid/machines"):
        answer = daemon.call("POST", route, {"Name": name})
        assert _refused(answer.status), (route, answer.body)


def test_what_cannot_be_honoured_or_stored_is_refused(daemon: RunningDaemon) -> None:
    before = _resident(daemon)
    for body in BODIES:
        answer = daemon.call(
            "POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"], **body}
        )
        assert _refused(answer.status), (str(body)[:200], answer.status, answer.body[:200])
    for raw in RAW:
        answer = daemon.call("POST", "/containers/create", raw)
        assert _refused(answer.status), (raw[:80], answer.status, answer.body[:200])
    assert daemon.call("GET", "/containers/json?all=1").json == []
    assert _resident(daemon) - before < 96 << 20


def test_members_of_the_wrong_kind_are_never_a_failure_of_the_daemon(daemon: RunningDaemon) -> None:
    for name in (*FIELDS, *HOST_FIELDS):
        for value in CONFUSED:
            body = {"Image": "busybox", "Cmd": ["true"]}
            body |= {name: value} if name in FIELDS else {"HostConfig": {name: value}}
            answer = daemon.call("POST", "/containers/create", body)
            assert answer.status == 201 or _refused(answer.status), (name, value, answer.body)
    for name in ("IPAM", "Labels", "Options", "Driver", "Internal", "ConfigFrom"):
        for value in CONFUSED:
            answer = daemon.call("POST", "/networks/create", {"Name": "odd", name: value})
            assert answer.status == 201 or _refused(answer.status), (name, value, answer.body)
            daemon.call("DELETE", "/networks/odd")


def test_queries_are_answered_or_refused_at_once(daemon: RunningDaemon) -> None:
    created = daemon.call(
        "POST", "/containers/create?name=" + "a" * 100, {"Image": "busybox", "Cmd": ["true"]}
    )
    assert created.status == 201
    for query in QUERIES:
        begin = time.monotonic()
        assert _refused(daemon.call("GET", query).status), query[:80]
        assert time.monotonic() - begin < 3
    assert _refused(daemon.call("POST", "/hybrid/machines/host/stop?t=" + "9" * 400).status)


def test_the_daemon_starts_again_after_all_this(daemon: RunningDaemon) -> None:
    """Whatever it took into its store it can read."""
    body = {"Image": "busybox", "Cmd": ["x" * 1000] * 100, "Env": ["A=" + "é" * 20_000] * 8,
            "Labels": {f"label {n}": "\x1b[2J\n" for n in range(10_000)}}  # fmt: skip
    assert daemon.call("POST", "/containers/create?name=large", body).status == 201
    daemon.end()
    daemon.start()
    assert len(daemon.inspect("large")["Config"]["Labels"]) == 10_000


def test_half_requests_and_floods_of_headers_cost_little(daemon: RunningDaemon) -> None:
    before, held = _resident(daemon), []
    for _ in range(50):
        slow = socket.socket(socket.AF_UNIX)
        slow.connect(str(daemon.paths.socket))
        slow.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\nX-A: " + b"y" * 4000)
        held.append(slow)
    flood = socket.socket(socket.AF_UNIX)
    flood.settimeout(20)
    flood.connect(str(daemon.paths.socket))
    try:
        for _ in range(2000):
            flood.sendall(b"X-Header: " + b"z" * 8000 + b"\r\n")
        answer = flood.recv(100)
    except OSError:  # cut off in the middle
        answer = b""
    assert answer == b"" or b" 400 " in answer
    assert daemon.call("GET", "/_ping").status == 200
    assert _resident(daemon) - before < 64 << 20
    for one in (*held, flood):
        one.close()


def test_a_symlink_to_what_is_refused_is_refused(daemon: RunningDaemon, tmp_path: Path) -> None:
    for number, target in enumerate(
        ("/", "/proc", daemon.paths.root, daemon.paths.run, "/run", "/dev", daemon.paths.socket)
    ):
        link = tmp_path / f"link{number}"
        link.symlink_to(target)
        body = {"Image": "busybox", "HostConfig": {"Binds": [f"{link}:/x"]}}
        answer = daemon.call("POST", "/containers/create", body)
        assert answer.status == 403, (target, answer.body)


def test_a_source_replaced_by_a_symlink_after_the_check_is_not_served(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    """The mount policy looked at a directory; what is mounted at the start must be the same."""
    source = tmp_path / "data"
    source.mkdir()
    daemon.docker("create", "--name", "swapped", "--isolation", "container", "-v", f"{source}:/x",
                  "busybox", "ls", "/x")  # fmt: skip
    source.rename(tmp_path / "moved")
    source.symlink_to("/etc")
    done = daemon.docker("start", "-a", "swapped", check=False)
    assert done.returncode != 0 and b"symbolic link" in done.stderr
    assert b"passwd" not in done.stdout


# --- another user of the host, member of the socket's group ---

CLIENT = """
import http.client, json, socket, sys
connection = http.client.HTTPConnection("x")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request(sys.argv[2], sys.argv[3], sys.argv[4] or None, {"Content-Type": "application/json"})
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read().decode()]))
"""


def _as_nobody(daemon: RunningDaemon, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """A request by uid 65534, whom the socket's group lets in."""
    os.chown(daemon.paths.socket, 0, NOBODY)
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "/usr/bin/python3",
               "-c", CLIENT, str(daemon.paths.socket), method, path,
               "" if body is None else json.dumps(body)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, cwd="/")
    status, text = json.loads(done.stdout)
    return status, text


def _create(**fields: Any) -> dict[str, Any]:
    return {"Image": "busybox", "Cmd": ["true"], "HostConfig": fields}


def test_a_member_of_the_group_does_not_become_root_of_the_host(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    for method, path, body in (
        ("POST", "/hybrid/machines/host/exec", {"Cmd": ["id"]}),
        ("POST", "/hybrid/machines/host/stop", None),
        ("DELETE", "/hybrid/machines/host?force=1", None),
        ("POST", "/hybrid/machines", {"Name": "box", "Address": "ssh://root@127.0.0.1"}),
        ("POST", "/containers/create", _create(Isolation="container", UsernsMode="host")),
        ("POST", "/containers/create", _create(Isolation="machine:host", UsernsMode="host")),
    ):
        status, text = _as_nobody(daemon, method, path, body)
        assert status == 403, (path, status, text)


def test_a_member_of_the_group_gets_no_directory_made(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    wanted = tmp_path / "made" / "by" / "root"
    status, text = _as_nobody(daemon, "POST", "/containers/create", _create(Binds=[f"{wanted}:/x"]))
    assert status == 400 and "does not exist" in text
    assert not wanted.parent.parent.exists()


def test_on_this_kernel_a_member_of_the_group_gets_no_bind_mount(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    """There the agent, which is root, would mount it; in a guest the file server has the caller's rights."""
    status, text = _as_nobody(
        daemon, "POST", "/containers/create?name=bound",
        _create(Isolation="container", Binds=[f"{tmp_path}:/x"]),
    )  # fmt: skip
    if status == 201:
        status, text = _as_nobody(daemon, "POST", "/containers/bound/start")
    assert status == 403 and "isolation container" in text


def test_who_is_not_in_the_group_is_kept_out(daemon: RunningDaemon) -> None:
    os.chown(daemon.paths.socket, 0, 0)
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "/usr/bin/python3",
               "-c", CLIENT, str(daemon.paths.socket), "GET", "/_ping", ""]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=60, cwd="/")
    assert b"PermissionError" in done.stderr


# --- secrets and modes ---


def test_secrets_are_in_no_command_line_log_or_readable_file(daemon: RunningDaemon) -> None:
    secret = "s3cr3t" + os.urandom(8).hex()
    daemon.run("-d", "--name", "secretive", "-e", f"PASSWORD={secret}", "busybox", "sleep", "100")
    daemon.docker("exec", "-e", f"OTHER={secret}", "secretive", "true")
    daemon.docker(
        "run", "--isolation", "container", "-e", f"A={secret}", "busybox", "nonsense", check=False
    )
    inside = {str(_pid(daemon, "secretive"))}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"docker" not in line and process.name not in inside:
            assert secret.encode() not in line, line
    assert secret not in daemon.log.read_text()
    for found in _readable_by_others(daemon.paths.root, daemon.paths.run):
        assert secret.encode() not in found.read_bytes(), found


def _pid(daemon: RunningDaemon, name: str) -> int:
    return int(daemon.inspect(name)["State"]["Pid"])


def _readable_by_others(*tops: Path) -> list[Path]:
    """What uid 65534 can read below, by the modes on the way."""
    found = []
    for top in tops:
        if not top.stat().st_mode & stat.S_IXOTH:
            continue
        for directory, names, files in os.walk(top):
            names[:] = [n for n in names if (Path(directory) / n).stat().st_mode & stat.S_IXOTH]
            for name in files:
                path = Path(directory) / name
                mode = path.lstat().st_mode
                if stat.S_ISREG(mode) and mode & stat.S_IROTH and path.stat().st_size < 8 << 20:
                    found.append(path)
    return found


def test_state_is_closed_to_other_users(daemon: RunningDaemon) -> None:
    root, run = daemon.paths.root, daemon.paths.run
    for directory in (
        root,
        run,
        root / "images",
        root / "layers",
        root / "volumes",
        root / "containers",
    ):
        assert not directory.stat().st_mode & 0o066, (
            f"{directory} can be listed or written by others"
        )
    for closed in (root / "images", root / "volumes"):
        assert not closed.stat().st_mode & 0o077
    for file in (*root.glob("hybrid.db*"), *root.glob("containers/*/log")):
        assert not file.stat().st_mode & 0o077, file
    for path in run.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISSOCK(mode):
            assert not mode & 0o007, f"{path}: a socket that everybody may use"
        elif not stat.S_ISLNK(mode):
            assert not mode & stat.S_IWOTH, path


def test_the_log_holds_one_plain_line_for_what_clients_send(daemon: RunningDaemon) -> None:
    daemon.call("POST", "/containers/create?name=%0aforged%1b%5b31m", {"Image": "none"})
    daemon.call("GET", "/networks/%0a2026-01-01%20ERROR%20forged")
    text = daemon.log.read_text()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert not re.search(r"^2026-01-01 ERROR forged", text, re.MULTILINE)
    assert "Traceback" not in text


def test_the_helpers_of_the_network_are_not_root(daemon: RunningDaemon) -> None:
    daemon.run("-d", "--name", "resolving", "busybox", "sleep", "100")
    found = [
        process
        for process in Path("/proc").glob("[0-9]*")
        if b"dnsmasq" in _command(process) and str(daemon.paths.run).encode() in _command(process)
    ]
    assert found
    for process in found:
        status = (process / "status").read_text()
        uid = int(re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE)[0])
        assert uid != 0, f"dnsmasq runs as {pwd.getpwuid(uid).pw_name}"


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_errors_reach_a_terminal_without_control_characters(daemon: RunningDaemon) -> None:
    command = [
        sys.executable,
        "-m",
        "hybrid.cli.main",
        "--host",
        daemon.host,
        "inspect",
        "a\x1b[2J\x07\nb",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "\x1b" not in done.stderr and "\x07" not in done.stderr
