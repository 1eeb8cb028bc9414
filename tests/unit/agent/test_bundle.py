"""What the agent makes of the host's OCI config."""

from __future__ import annotations

from typing import Any

import pytest

from hybrid.agent import bundle
from hybrid.agent.users import User
from hybrid.errors import InvalidInput, Unsupported
from hybrid.wire.messages import IdMap

ANN = User(1000, 1001, [1001], "/home/ann")


def config(**changes: Any) -> dict[str, Any]:
    linux = {"namespaces": [{"type": kind} for kind in ("pid", "mount", "network", "ipc")]}
    return {"ociVersion": "1.0.2", "process": {"args": ["true"]}, "linux": linux} | changes


def filled(given: dict[str, Any], **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "root": "/state/c/1/rootfs",
        "cgroup": "/hybrid/c1",
        "user": ANN,
        "id_map": IdMap(100000),
        "namespaces": {"user": "", "network": ""},
    }
    return bundle.fill(given, bundle.Filling(**(fields | changes)))


def test_a_config_gets_what_only_the_machine_knows() -> None:
    result = filled(config(root={"readonly": True, "path": "/etc"}))
    assert result["root"] == {"path": "/state/c/1/rootfs", "readonly": True}
    assert result["linux"]["cgroupsPath"] == "/hybrid/c1"
    assert result["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert {"type": "user"} in result["linux"]["namespaces"]
    process = result["process"]
    assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [1001]}
    assert process["env"] == ["HOME=/home/ann"]
    assert (process["cwd"], process["terminal"], process["oomScoreAdj"]) == ("/", False, 0)


def test_the_hosts_config_is_not_changed() -> None:
    given = config()
    filled(given)
    assert given == config()


def test_namespaces_are_joined_or_left_out_as_told() -> None:
    result = filled(
        config(), namespaces={"user": None, "network": None, "pid": "/proc/9/fd/7"}, id_map=None
    )
    kinds = {entry["type"]: entry.get("path") for entry in result["linux"]["namespaces"]}
    assert kinds == {"pid": "/proc/9/fd/7", "mount": None, "ipc": None}
    assert "uidMappings" not in result["linux"]


def test_a_joined_user_namespace_has_its_map_already() -> None:
    result = filled(config(), namespaces={"user": "/proc/9/fd/8", "network": ""})
    assert "uidMappings" not in result["linux"]


def test_shares_and_files_become_bind_mounts() -> None:
    mount = {"destination": "/data", "type": "hybrid-share", "source": "0", "options": ["ro"]}
    result = filled(
        config(mounts=[mount]), shares=["/state/s/0"], files={"/etc/hosts": "/state/f/0"}
    )
    assert result["mounts"] == [
        {
            "destination": "/data",
            "type": "bind",
            "source": "/state/s/0",
            "options": ["rbind", "ro"],
        },
        {
            "destination": "/etc/hosts",
            "type": "bind",
            "source": "/state/f/0",
            "options": ["rbind", "rw", "rprivate"],
        },
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"hooks": {"prestart": []}},
        {"solaris": {}},
        {"annotations": {"run.oci.hooks.stdout": "/x"}},
        {"mounts": [{"destination": "/x", "type": "bind", "source": "/"}]},
        {"mounts": [{"destination": "/x", "source": "/", "options": ["bind"]}]},
        {"mounts": [{"destination": "x", "type": "tmpfs"}]},
        {"mounts": [{"destination": "/a/../../x", "type": "tmpfs"}]},
        {"mounts": [{"destination": "/x", "type": "hybrid-share", "source": "1"}]},
        {"mounts": [{"destination": "/x", "type": "hybrid-share", "source": "-1"}]},
        {"process": {}},
        {"process": {"args": "true"}},
        {"process": {"args": ["true"], "cwd": "relative"}},
        {"linux": {"namespaces": [{"type": "mount"}, {"type": "net"}]}},
        {"linux": {"namespaces": [{"type": "mount", "path": "/proc/1/ns/mnt"}]}},
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        filled(config(**changes), shares=["/state/s/0"])


def test_a_mount_namespace_is_a_must() -> None:
    with pytest.raises(Unsupported):
        filled(config(linux={"namespaces": [{"type": "pid"}]}))
