from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hybrid.cli.flags import Surroundings, create_body, environment
from hybrid.cli.options import ContainerOptions
from hybrid.errors import InvalidInput

HERE = Surroundings({"HOME": "/h", "SET": "1"}, "/here")


def body(**flags: Any) -> dict[str, Any]:
    return create_body(ContainerOptions(**flags), "img", ["a"], HERE, attached=True)


def host(**flags: Any) -> Any:
    return body(**flags)["HostConfig"]


# One example a flag: flag value -> (path in the body, expected value). A flag that is missing
# here fails below.
EXAMPLES: dict[str, tuple[Any, str, Any]] = {
    "isolation": ("vm:apps", "HostConfig.Isolation", "vm:apps"),
    "runtime": ("hybrid-vm", "HostConfig.Runtime", "hybrid-vm"),
    "remove": (True, "HostConfig.AutoRemove", True),
    "restart": (
        "on-failure:2",
        "HostConfig.RestartPolicy",
        {"Name": "on-failure", "MaximumRetryCount": 2},
    ),
    "interactive": (True, "StdinOnce", True),
    "tty": (True, "Tty", True),
    "env": (["A=1", "SET", "UNSET"], "Env", ["A=1", "SET=1"]),
    "user": ("1:2", "User", "1:2"),
    "group_add": (["adm"], "HostConfig.GroupAdd", ["adm"]),
    "workdir": ("/w", "WorkingDir", "/w"),
    "entrypoint": ("/e", "Entrypoint", ["/e"]),
    "hostname": ("h", "Hostname", "h"),
    "domainname": ("d", "Domainname", "d"),
    "init": (True, "HostConfig.Init", True),
    "label": (["a=b", "c"], "Labels", {"a": "b", "c": ""}),
    "annotation": (["a=b"], "HostConfig.Annotations", {"a": "b"}),
    "stop_signal": ("INT", "StopSignal", "INT"),
    "stop_timeout": (0, "StopTimeout", 0),
    "volume": (["n:/t:ro", "/a"], "HostConfig.Binds", ["n:/t:ro"]),
    "mount": (
        ["type=tmpfs,target=/t"],
        "HostConfig.Mounts",
        [{"Type": "tmpfs", "Target": "/t"}],
    ),
    "tmpfs": (["/t:size=1m"], "HostConfig.Tmpfs", {"/t": "size=1m"}),
    "read_only": (True, "HostConfig.ReadonlyRootfs", True),
    "storage_opt": (["size=1g"], "HostConfig.StorageOpt", {"size": "1g"}),
    "publish": (
        ["127.0.0.1:1:2"],
        "HostConfig.PortBindings",
        {"2/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}]},
    ),
    "publish_all": (True, "HostConfig.PublishAllPorts", True),
    "expose": (["80-81"], "ExposedPorts", {"80/tcp": {}, "81/tcp": {}}),
    "network": (["back"], "HostConfig.NetworkMode", "back"),
    "network_alias": (
        ["x"],
        "NetworkingConfig.EndpointsConfig",
        {"default": {"Aliases": ["x"]}},
    ),
    "ip": (
        "10.0.0.9",
        "NetworkingConfig.EndpointsConfig",
        {"default": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}}},
    ),
    "mac_address": (
        "02:00:00:00:00:01",
        "NetworkingConfig.EndpointsConfig",
        {"default": {"MacAddress": "02:00:00:00:00:01"}},
    ),
    "dns": (["9.9.9.9"], "HostConfig.Dns", ["9.9.9.9"]),
    "dns_search": (["x"], "HostConfig.DnsSearch", ["x"]),
    "dns_option": (["ndots:1"], "HostConfig.DnsOptions", ["ndots:1"]),
    "add_host": (["a:1.2.3.4"], "HostConfig.ExtraHosts", ["a:1.2.3.4"]),
    "memory": ("64m", "HostConfig.Memory", 64 << 20),
    "memory_reservation": ("32m", "HostConfig.MemoryReservation", 32 << 20),
    "memory_swap": ("-1", "HostConfig.MemorySwap", -1),
    "cpus": ("0.5", "HostConfig.NanoCpus", 500_000_000),
    "cpu_shares": (512, "HostConfig.CpuShares", 512),
    "cpu_period": (1000, "HostConfig.CpuPeriod", 1000),
    "cpu_quota": (1000, "HostConfig.CpuQuota", 1000),
    "cpuset_cpus": ("0-1", "HostConfig.CpusetCpus", "0-1"),
    "pids_limit": (50, "HostConfig.PidsLimit", 50),
    "blkio_weight": (100, "HostConfig.BlkioWeight", 100),
    "device_read_bps": (
        "/dev/root:1m",
        "HostConfig.BlkioDeviceReadBps",
        [{"Path": "/dev/root", "Rate": 1 << 20}],
    ),
    "device_write_bps": (
        "/dev/root:1m",
        "HostConfig.BlkioDeviceWriteBps",
        [{"Path": "/dev/root", "Rate": 1 << 20}],
    ),
    "device_read_iops": (
        "/dev/root:9",
        "HostConfig.BlkioDeviceReadIOps",
        [{"Path": "/dev/root", "Rate": 9}],
    ),
    "device_write_iops": (
        "/dev/root:9",
        "HostConfig.BlkioDeviceWriteIOps",
        [{"Path": "/dev/root", "Rate": 9}],
    ),
    "shm_size": ("1m", "HostConfig.ShmSize", 1 << 20),
    "ulimit": (
        ["nofile=1:2"],
        "HostConfig.Ulimits",
        [{"Name": "nofile", "Soft": 1, "Hard": 2}],
    ),
    "oom_score_adj": (500, "HostConfig.OomScoreAdj", 500),
    "cap_add": (["NET_RAW"], "HostConfig.CapAdd", ["NET_RAW"]),
    "cap_drop": (["ALL"], "HostConfig.CapDrop", ["ALL"]),
    "security_opt": (["no-new-privileges"], "HostConfig.SecurityOpt", ["no-new-privileges"]),
    "privileged": (True, "HostConfig.Privileged", True),
    "userns": ("host", "HostConfig.UsernsMode", "host"),
    "pid": ("host", "HostConfig.PidMode", "host"),
    "ipc": ("private", "HostConfig.IpcMode", "private"),
    "cgroupns": ("private", "HostConfig.CgroupnsMode", "private"),
    "device": (
        ["/dev/fuse"],
        "HostConfig.Devices",
        [
            {
                "PathOnHost": "/dev/fuse",
                "PathInContainer": "/dev/fuse",
                "CgroupPermissions": "rwm",
            }
        ],
    ),
    "sysctl": (["a=b"], "HostConfig.Sysctls", {"a": "b"}),
    "health_cmd": ("true", "Healthcheck", {"Test": ["CMD-SHELL", "true"]}),
    "health_interval": ("1s", "Healthcheck", {"Interval": 10**9}),
    "health_timeout": ("1s", "Healthcheck", {"Timeout": 10**9}),
    "health_retries": (3, "Healthcheck", {"Retries": 3}),
    "health_start_period": ("1s", "Healthcheck", {"StartPeriod": 10**9}),
    "health_start_interval": ("1s", "Healthcheck", {"StartInterval": 10**9}),
    "no_healthcheck": (True, "Healthcheck", {"Test": ["NONE"]}),
}
# Not fields of the body: the name and platform are query parameters, files have their own tests.
ELSEWHERE = {"name", "platform", "env_file", "label_file"}


@pytest.mark.parametrize("flag", EXAMPLES)
def test_every_flag_reaches_its_field(flag: str) -> None:
    value, path, expected = EXAMPLES[flag]
    found: Any = body(**{flag: value})
    for part in path.split("."):
        found = found[part]
    assert found == expected


def test_no_flag_is_without_a_test() -> None:
    assert {field.name for field in fields(ContainerOptions)} == EXAMPLES.keys() | ELSEWHERE


def test_nothing_asked_for_means_the_image_decides() -> None:
    plain = create_body(ContainerOptions(), "img", None, HERE, attached=False)
    assert plain["Cmd"] is None
    assert plain["Entrypoint"] is None
    assert "Healthcheck" not in plain
    assert "StopSignal" not in plain
    assert plain["HostConfig"]["NetworkMode"] == "default"
    assert plain["HostConfig"]["Isolation"] == ""
    assert "Memory" not in plain["HostConfig"]


def test_stdin_ends_with_its_only_client() -> None:
    flags = ContainerOptions(interactive=True)
    attached = create_body(flags, "img", None, HERE, attached=True)
    detached = create_body(flags, "img", None, HERE, attached=False)
    assert (attached["OpenStdin"], attached["StdinOnce"]) == (True, True)
    assert (detached["OpenStdin"], detached["StdinOnce"]) == (True, False)


def test_published_ports_are_exposed_and_anonymous_volumes_are_not_binds() -> None:
    made = body(publish=["1:2/udp"], volume=["/anonymous", "./x:/y"])
    assert made["ExposedPorts"] == {"2/udp": {}}
    assert made["Volumes"] == {"/anonymous": {}}
    assert made["HostConfig"]["Binds"] == ["/here/x:/y"]


def test_several_networks_each_with_its_own() -> None:
    made = body(network=["a,alias=x,ip=10.0.0.2", "name=b"])
    assert made["HostConfig"]["NetworkMode"] == "a"
    assert made["NetworkingConfig"]["EndpointsConfig"] == {
        "a": {"Aliases": ["x"], "IPAMConfig": {"IPv4Address": "10.0.0.2"}},
        "b": {},
    }


def test_env_files_come_first_so_that_flags_win(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\n\nA=file\n  B=b c\nSET\nUNSET\n")
    assert environment(["A=flag"], [str(tmp_path / "env")], HERE) == [
        "A=file",
        "B=b c",
        "SET=1",
        "A=flag",
    ]


def test_a_seccomp_profile_travels_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"x":1}')
    here = Surroundings({}, str(tmp_path))
    options = ContainerOptions(security_opt=["seccomp=p.json", "seccomp=unconfined"])
    made = create_body(options, "img", None, here, attached=True)
    assert made["HostConfig"]["SecurityOpt"] == ['seccomp={"x":1}', "seccomp=unconfined"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"memory": "lots"}, "--memory: invalid size"),
        ({"health_interval": "often"}, "--health-interval: invalid duration"),
        ({"env": ["=x"]}, "no name"),
        ({"env_file": ["/nonexistent"]}, "cannot read the env file"),
        ({"network": ["a,colour=red"]}, "unknown key 'colour'"),
        ({"no_healthcheck": True, "health_cmd": "x"}, "conflicts"),
        ({"security_opt": ["seccomp=/nonexistent"]}, "cannot read the seccomp profile"),
        ({"sysctl": ["x"]}, "expected NAME=VALUE"),
    ],
)
def test_bad_values_are_one_clear_error(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        body(**flags)
