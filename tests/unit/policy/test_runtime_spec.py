"""Golden files: ``HYBRID_REGENERATE=1 pytest tests/unit/policy`` rewrites them; review them as a
diff.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import Forbidden, HybridError, InvalidInput, Unsupported
from hybrid.policy import profile
from hybrid.policy.isolation import Isolation
from hybrid.policy.mounts import MountRequest, destination, tmpfs_options
from hybrid.policy.process import Rlimit
from hybrid.policy.resources import ResourceRequest
from hybrid.policy.runtime_spec import SpecRequest, build, uses_user_namespace, warnings

GOLDEN = Path(__file__).parent / "golden"
REGENERATE = bool(os.environ.get("HYBRID_REGENERATE"))
CONTAINER = "0123456789ab" + "c" * 52


def request(**changes: Any) -> SpecRequest:
    name = changes.pop("policy", "default")
    base = SpecRequest(container=CONTAINER, profile=profile.load(name), args=["/bin/true"])
    return dataclasses.replace(base, **changes)


CASES = {
    "plain": request(),
    "full": request(
        args=["/entry", "serve"],
        env=["A=1", "PATH=/opt/bin"],
        user="app:staff",
        group_add=["27", "audio"],
        cwd="/srv",
        hostname="web",
        domainname="example.test",
        terminal=True,
        rows=24,
        columns=80,
        cap_add=["NET_ADMIN"],
        cap_drop=["MKNOD"],
        security_opt=["no-new-privileges=false"],
        resources=ResourceRequest(memory=64 << 20, nano_cpus=500_000_000, pids=50),
        rlimits=[Rlimit("nofile", 100, 200), Rlimit("nproc", 10, 10)],
        sysctls={"net.core.somaxconn": "1024"},
        oom_score_adj=100,
        shm_size=1 << 20,
        read_only=True,
        mounts=[
            MountRequest("share", "/srv/data/deep", share=1, read_only=True),
            MountRequest("share", "/srv/", share=0),
            MountRequest("tmpfs", "/tmp", options="size=1m,mode=1777,exec"),
        ],
        masked_paths=[*profile.load().masked_paths, "/proc/uptime"],
        annotations={"hybrid.container": CONTAINER},
    ),
    "strict": request(policy="strict", network="none", cgroup="v1"),
    "host-ids": request(userns="host", security_opt=["seccomp=unconfined"], ipc="none"),
    "privileged": request(policy="privileged", privileged=True, pid="host", network="host"),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    config = build(CASES[name])
    config["linux"].get("seccomp", {}).pop("syscalls", None)  # test_seccomp has them
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{name}.json"
    if REGENERATE:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(CASES)


def test_both_walls_are_on_by_default() -> None:
    config = build(request())
    process, linux = config["process"], config["linux"]
    assert process["noNewPrivileges"] is True
    assert process["capabilities"]["ambient"] == process["capabilities"]["inheritable"] == []
    assert {item["type"] for item in linux["namespaces"]} == {
        "pid", "ipc", "uts", "mount", "cgroup", "network", "user",
    }  # fmt: skip
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert linux["resources"]["pids"] == {"limit": 4096}
    assert warnings(request()) == []


def test_hostname_defaults_to_the_short_id() -> None:
    config = build(request())
    assert config["hostname"] == "0123456789ab"
    assert "HOSTNAME=0123456789ab" in config["process"]["env"]


def test_a_mount_for_shm_takes_the_place_of_the_default() -> None:
    config = build(request(mounts=[MountRequest("share", "/dev/shm", share=0)]))
    shm = [mount for mount in config["mounts"] if mount["destination"] == "/dev/shm"]
    assert [mount["type"] for mount in shm] == ["hybrid-share"]


def test_ping_groups_stay_inside_the_user_namespace() -> None:
    sysctl = build(request())["linux"]["sysctl"]
    assert sysctl["net.ipv4.ping_group_range"] == "0 65535"
    sysctl = build(request(userns="host"))["linux"]["sysctl"]
    assert sysctl["net.ipv4.ping_group_range"] == "0 2147483647"


def test_systempaths_unconfined_needs_permission() -> None:
    options = ["systempaths=unconfined"]
    with pytest.raises(Forbidden, match=r"may\.unmask_paths"):
        build(request(security_opt=options))
    assert build(request(policy="privileged", security_opt=options))["linux"]["maskedPaths"] == []


def test_a_custom_filter_is_taken() -> None:
    text = '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}'
    config = build(request(security_opt=["seccomp=" + text]))
    assert config["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW"


def test_relaxed_guards_are_loud() -> None:
    relaxed = request(
        security_opt=["seccomp=unconfined", "no-new-privileges:false"],
        userns="host",
        isolation=Isolation("container"),
    )
    assert len(warnings(relaxed)) == 4
    assert "--privileged" in warnings(request(policy="privileged", privileged=True))[0]


def test_user_namespace_is_off_only_where_the_policy_lets_it() -> None:
    assert uses_user_namespace(profile.load(), "", False)
    assert not uses_user_namespace(profile.load(), "host", False)
    assert not uses_user_namespace(profile.load("privileged"), "", True)
    with pytest.raises(Forbidden, match="disable_user_namespace"):
        uses_user_namespace(profile.load("strict"), "host", False)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"privileged": True}, Forbidden),
        (
            {"policy": "privileged", "privileged": True, "isolation": Isolation("container")},
            Forbidden,
        ),
        (
            {"userns": "host", "cap_add": ["SYS_ADMIN"], "isolation": Isolation("container")},
            Forbidden,
        ),
        ({"pid": "host"}, Forbidden),
        ({"ipc": "host"}, Forbidden),
        ({"uts": "host"}, Forbidden),
        ({"cgroupns": "host"}, Forbidden),
        ({"pid": "service:x"}, InvalidInput),
        ({"uts": "container:x"}, InvalidInput),
        ({"userns": "container:x"}, InvalidInput),
        ({"cap_add": ["NOPE"]}, InvalidInput),
        ({"policy": "strict", "cap_add": ["SYS_ADMIN"]}, Forbidden),
        ({"policy": "strict", "security_opt": ["seccomp=unconfined"]}, Forbidden),
        ({"policy": "strict", "security_opt": ["no-new-privileges=false"]}, Forbidden),
        ({"security_opt": ["apparmor=mine"]}, Unsupported),
        ({"security_opt": ["label=type:x"]}, Unsupported),
        ({"security_opt": ["no-new-privileges=maybe"]}, InvalidInput),
        ({"security_opt": ["magic=on"]}, InvalidInput),
        ({"hostname": "-x"}, InvalidInput),
        ({"domainname": "a b"}, InvalidInput),
        ({"oom_score_adj": 1001}, InvalidInput),
        ({"sysctls": {"kernel.core_pattern": "x"}}, InvalidInput),
        ({"sysctls": {"net.core.somaxconn": "1"}, "network": "host"}, InvalidInput),
        ({"sysctls": {"kernel.msgmax": "1"}, "ipc": "container:x"}, InvalidInput),
        (
            {"mounts": [MountRequest("share", "/a", share=0), MountRequest("tmpfs", "/a/")]},
            InvalidInput,
        ),
        ({"mounts": [MountRequest("share", "/a")]}, InvalidInput),
        ({"mounts": [MountRequest("share", "/a", share=0, propagation="rshared")]}, Unsupported),
        ({"masked_paths": []}, Forbidden),
        ({"readonly_paths": ["/proc/bus"]}, Forbidden),
        ({"masked_paths": [*profile.load().masked_paths, "relative"]}, InvalidInput),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(
    changes: dict[str, Any], kind: type[HybridError]
) -> None:
    with pytest.raises(kind):
        build(request(**changes))


@pytest.mark.parametrize("text", ["relative", "/", "//", "/proc", "/a/../proc/sys", "/x\0"])
def test_bad_mount_points_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        destination(text)


def test_tmpfs_options_are_dockers() -> None:
    assert tmpfs_options("") == ["nosuid", "nodev", "noexec"]
    assert tmpfs_options("ro,exec,size=64k,uid=5", read_only=False) == [
        "nosuid", "nodev", "exec", "ro", "size=65536", "uid=5",
    ]  # fmt: skip
    for bad in ("context=x", "size=much", "mode=999", "uid=a", "remount"):
        with pytest.raises(InvalidInput, match="tmpfs option"):
            tmpfs_options(bad)


def test_capabilities_on_this_host_need_a_user_namespace() -> None:
    here = Isolation("container")
    build(request(isolation=here, cap_add=["SYS_ADMIN"]))  # counts inside its user namespace only
    build(request(isolation=here, userns="host"))  # as Docker's containers are
    build(request(userns="host", cap_add=["SYS_ADMIN"]))  # root of its guest
    with pytest.raises(Forbidden, match=r"CAP_SYS_ADMIN .* would be root of this host"):
        build(request(isolation=here, userns="host", cap_add=["SYS_ADMIN"]))
