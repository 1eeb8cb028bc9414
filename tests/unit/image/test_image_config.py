from __future__ import annotations

import json

import pytest

from hybrid.errors import InvalidInput
from hybrid.image.config import ImageConfig
from hybrid.image.manifest import MAX_DOCUMENT, Index, Manifest, parse

LAYER = "sha256:" + "1" * 64


def config(**changes: object) -> ImageConfig:
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [LAYER]}, **changes}
    return parse(ImageConfig, json.dumps(document).encode(), "config")


def test_a_full_config() -> None:
    read = config(
        created="2024-05-01T00:00:00.5Z",
        author="a",
        config={
            "User": "app",
            "Env": ["A=1"],
            "Entrypoint": ["/e"],
            "Cmd": ["c"],
            "WorkingDir": "/srv",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Volumes": {"/data": {}},
            "Labels": {"k": "v"},
            "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5, "Retries": 2},
            "Shell": ["/bin/bash"],
        },
        history=[{"created_by": "x", "empty_layer": True}],
    )
    assert read.created_ns == 1714521600500000000
    assert (read.user, read.env, read.entrypoint, read.command) == ("app", ["A=1"], ["/e"], ["c"])
    assert (read.working_dir, read.stop_signal, read.shell) == ("/srv", "SIGINT", ["/bin/bash"])
    assert read.exposed_ports == ["53/udp", "80/tcp"]
    assert (read.volumes, read.labels, read.diff_ids) == (["/data"], {"k": "v"}, [LAYER])
    assert read.healthcheck == {
        "test": ["CMD", "x"],
        "interval": 5,
        "timeout": 0,
        "start_period": 0,
        "start_interval": 0,
        "retries": 2,
    }
    assert read.history[0].empty_layer


def test_what_is_absent_or_null_is_empty() -> None:
    for read in (config(), config(config=None, created=None, history=None)):
        assert (read.env, read.entrypoint, read.command, read.user) == ([], None, None, "")
        assert (read.created_ns, read.history, read.healthcheck) == (0, [], None)
    assert config(config={"User": None, "WorkingDir": None, "Env": None}).user == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"rootfs": {"diff_ids": ["sha256:x"]}},
        {"rootfs": {"diff_ids": [LAYER] * 128}},
        {"rootfs": None},
        {"config": {"Env": "A=1"}},
        {"config": {"Env": [1]}},
        {"architecture": 5},
    ],
)
def test_bad_configs_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="config is invalid"):
        config(**changes)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"{", b"\xff", b"[" * 100000])
def test_bad_documents_are_refused(data: bytes) -> None:
    for model in (Manifest, Index, ImageConfig):
        with pytest.raises(InvalidInput, match="the thing is invalid"):
            parse(model, data, "the thing")


def test_documents_are_bounded() -> None:
    with pytest.raises(InvalidInput, match="larger than 4 MiB"):
        parse(Manifest, b" " * (MAX_DOCUMENT + 1), "the thing")
