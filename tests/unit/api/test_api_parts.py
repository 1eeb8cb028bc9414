"""The API's pure parts: versions, queries, bodies in and out, times, streams."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.api import parse, query, render, status, times, versions
from hybrid.api.detach import DetachKeys
from hybrid.api.fields import Fields
from hybrid.api.routes.archives import go_mode
from hybrid.api.routes.streams import Lines
from hybrid.api.routes.system import event_json, matches
from hybrid.api.stream import Front, frame
from hybrid.engine.container import Endpoint, Mount, Port, PublishedPort, Record, Spec
from hybrid.engine.events import Event
from hybrid.errors import KINDS, InvalidInput, Unsupported
from hybrid.wire.journal import DROPPED, STDERR, STDOUT
from hybrid.wire.journal import Record as Line

CALLER = (1000, 1000)


def test_every_kind_of_error_has_a_status() -> None:
    assert {kind: status.of(cls("x")) for kind, cls in KINDS.items()} == status.STATUS


def test_versions_between_the_oldest_and_the_newest() -> None:
    assert versions.parse("v1.43") == (1, 43)
    for word in ("v1.23", "v1.52", "v2.0", "v1.9999999"):
        with pytest.raises(InvalidInput):
            versions.parse(word)


# --- query ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", False), ("0", False), ("No", False), (" none ", False), ("1", True), ("yes", True)],
)
def test_flags(text: str, expected: bool) -> None:
    assert query.flag({"x": text}, "x") is expected


def test_filters_in_both_shapes() -> None:
    assert query.filters({"filters": '{"label":["a=b"]}'}, ["label"]) == {"label": ["a=b"]}
    assert query.filters({"filters": '{"label":{"a=b":true,"c":false}}'}, ["label"]) == {
        "label": ["a=b"]
    }
    for bad in ("x", "[]", '{"label":1}', '{"label":[1]}', '{"other":["x"]}', "[" * 5000):
        with pytest.raises(InvalidInput, match="invalid filter"):
            query.filters({"filters": bad}, ["label"])


def test_labels_match_by_key_and_value_and_by_absence() -> None:
    labels = {"a": "1", "b": ""}
    assert query.labels_match({"label": ["a", "a=1", "b="]}, labels)
    assert not query.labels_match({"label": ["a=2"]}, labels)
    assert not query.labels_match({"label!": ["a"]}, labels)
    assert query.labels_match({"label!": ["a=2"]}, labels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("0", None),
        ("1.5", 1_500_000_000),
        ("1700000000.000000001", 1_700_000_000_000_000_001),
    ],
)
def test_seconds(text: str, expected: int | None) -> None:
    assert query.seconds(text) == expected


def test_names_are_regular_expressions_or_plain() -> None:
    assert (
        query.name_matches("^we", "web")
        and query.name_matches("eb", "web")
        and not query.name_matches("^eb", "web")
    )
    assert query.name_matches("[", "a[b")


# --- bodies ---


def test_nothing_is_silently_ignored() -> None:
    fields = Fields({"A": 1, "B": None, "C": [], "D": {"x": 0}, "E": ""}, "HostConfig.")
    fields.integer("A")
    fields.finish()
    fields = Fields({"Devices": [{"PathOnHost": "/dev/x"}]}, "HostConfig.")
    with pytest.raises(Unsupported, match=r"HostConfig\.Devices is not supported"):
        fields.finish()


WRONG = {
    "text": [1],
    "integer": ["1", True],
    "flag": [1],
    "strings": [[1], {}],
    "table": [{"a": 1}],
    "object": [[]],
    "inner": [[]],
    "items": [{}],
}


@pytest.mark.parametrize(
    ("method", "value"), [(method, value) for method, values in WRONG.items() for value in values]
)
def test_wrong_types_name_the_field(method: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match="X"):
        getattr(Fields({"X": value}), method)("X")


# What the docker CLI 28 sends for `docker run busybox`.
CLI_HOST_CONFIG = {
    "Binds": None, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}}, "NetworkMode": "default",
    "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": False,
    "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [0, 0], "CapAdd": None, "CapDrop": None,
    "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": None, "GroupAdd": None,
    "IpcMode": "", "Cgroup": "", "Links": None, "OomScoreAdj": 0, "PidMode": "", "Privileged": False,
    "PublishAllPorts": False, "ReadonlyRootfs": False, "SecurityOpt": None, "UTSMode": "", "UsernsMode": "",
    "ShmSize": 0, "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0,
    "BlkioWeightDevice": [], "BlkioDeviceReadBps": [], "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0,
    "CpusetCpus": "", "CpusetMems": "", "Devices": [], "DeviceCgroupRules": None, "DeviceRequests": None,
    "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": -1, "OomKillDisable": False, "PidsLimit": 0,
    "Ulimits": [], "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0, "MaskedPaths": None, "ReadonlyPaths": None,
}  # fmt: skip


def test_what_the_docker_cli_sends_by_default_is_taken() -> None:
    body = {
        "Image": "busybox",
        "Cmd": ["true"],
        "Env": None,
        "Entrypoint": None,
        "OnBuild": None,
        "Labels": {},
    }
    networking = {
        "EndpointsConfig": {"default": {"IPAMConfig": None, "Links": None, "Aliases": None}}
    }
    spec = parse.container_spec(
        {**body, "HostConfig": CLI_HOST_CONFIG, "NetworkingConfig": networking}, CALLER
    )
    assert (spec.image, spec.command, spec.network_mode, spec.isolation) == (
        "busybox",
        ["true"],
        "default",
        "",
    )
    assert list(spec.networks_asked) == ["bridge"]


def host(**fields: Any) -> Spec:
    return parse.container_spec({"Image": "x", "HostConfig": fields}, CALLER)


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("/a:/b", Mount("bind", "/a", "/b", create_source=True, uid=1000, gid=1000)),
        (
            "/a:/b:ro",
            Mount("bind", "/a", "/b", read_only=True, create_source=True, uid=1000, gid=1000),
        ),
        ("data:/b:nocopy", Mount("volume", "data", "/b", copy=False, uid=1000, gid=1000)),
        ("/b", Mount("volume", "", "/b", anonymous=True)),
    ],
)
def test_binds(bind: str, expected: Mount) -> None:
    assert host(Binds=[bind]).mounts == [expected]


@pytest.mark.parametrize("bad", ["a:b:c:d", ":/x", "/a:/b:shiny"])
def test_bad_binds(bad: str) -> None:
    with pytest.raises(InvalidInput):
        host(Binds=[bad])


def test_one_target_is_mounted_once() -> None:
    with pytest.raises(InvalidInput, match="Duplicate mount point: /b"):
        host(Binds=["/a:/b"], Tmpfs={"/b": ""})


def test_ports() -> None:
    bindings = {
        "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostPort": ""}],
        "53/udp": None,
    }
    assert host(PortBindings=bindings).ports == [
        Port(80, "tcp", "127.0.0.1", 8080),
        Port(80, "tcp", "", 0),
        Port(53, "udp", "", 0),
    ]
    for bad in ({"x/tcp": []}, {"80": [{"HostPort": "1-9"}]}, {"80": [{"HostPort": "99999"}]}):
        with pytest.raises(InvalidInput):
            host(PortBindings=bad)
    with pytest.raises(Unsupported, match="IPv6"):
        host(PortBindings={"80": [{"HostIp": "::1"}]})


def test_isolation_comes_from_either_word() -> None:
    assert host(Isolation="vm:apps").isolation == "vm:apps"
    assert host(Runtime="hybrid-container").isolation == "container"
    assert host().isolation == ""
    for bad in (
        {"Runtime": "runc"},
        {"Isolation": "hyperv"},
        {"Runtime": "hybrid-vm", "Isolation": "container"},
    ):
        with pytest.raises(InvalidInput):
            host(**bad)


def test_unmasked_paths_are_a_security_option() -> None:
    assert host(MaskedPaths=[], ReadonlyPaths=[]).security_options == ["systempaths=unconfined"]


@pytest.mark.parametrize(
    "fields",
    [
        {"Devices": [{"PathOnHost": "/dev/x"}]},
        {"VolumesFrom": ["x"]},
        {"Init": True},
        {"UTSMode": "host"},
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(Unsupported, match=f"HostConfig.{name}"):
        host(**fields)


def test_a_specification_survives_the_way_out_and_in_again() -> None:
    fields = {
        "Binds": ["/a:/b:ro", "data:/c"], "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
        "CapAdd": ["NET_ADMIN"], "Memory": 1 << 26, "PidsLimit": 7, "Isolation": "vm:x", "AutoRemove": True,
        "Tmpfs": {"/t": "size=1m"}, "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}], "ShmSize": 1 << 20,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "ReadonlyRootfs": True, "Dns": ["1.1.1.1"],
    }  # fmt: skip
    first = host(**fields)
    shown = render.host_config(first)
    assert {name: shown[name] for name in fields} == fields
    shown.pop("Runtime")
    assert parse.container_spec({"Image": "x", "HostConfig": shown}, CALLER).limits == first.limits


# --- rendering ---


def made(**fields: Any) -> Record:
    return Record(
        "a" * 64, "one", 1, "sha256:1", Spec("busybox", exposed=["80/tcp", "81"]), **fields
    )


def test_ports_are_shown_while_it_runs() -> None:
    published = [PublishedPort("127.0.0.1", 8080, 80, "tcp")]
    shown = render.network_settings(made(status="running", published=published))["Ports"]
    assert shown == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}], "81/tcp": None}
    assert render.network_settings(made(status="exited"))["Ports"] == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"status": "created"}, "Created"),
        ({"status": "running", "started_ns": 1}, "Up"),
        ({"status": "paused", "started_ns": 1}, "(Paused)"),
        ({"status": "exited", "exit_code": 3, "finished_ns": 1}, "Exited (3)"),
        ({"status": "restarting", "exit_code": 1, "finished_ns": 1}, "Restarting (1)"),
        ({"status": "removing"}, "Removal In Progress"),
    ],
)
def test_status_words(fields: dict[str, Any], expected: str) -> None:
    assert expected in render.status_text(made(**fields))


def test_an_inspected_container_has_hybrids_own_object() -> None:
    record = made(
        status="running",
        requested_ns=10**9,
        ready_ns=3 * 10**9,
        endpoints={"bridge": Endpoint("n", ip="10.0.0.2")},
    )
    shown = render.inspect(record, "guest", [], Path("/root/containers/x"), "linux")
    assert shown["Hybrid"]["ReadyAfter"] == 2.0 and shown["Hybrid"]["Machine"] == "guest"
    assert shown["NetworkSettings"]["IPAddress"] == "10.0.0.2" and shown["Config"]["Labels"] == {}


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (0, "0001-01-01T00:00:00Z"),
        (10**9, "1970-01-01T00:00:01Z"),
        (1_500_000_001, "1970-01-01T00:00:01.500000001Z"),
    ],
)
def test_times(nanoseconds: int, expected: str) -> None:
    assert times.rfc3339(nanoseconds) == expected
    assert times.fixed(nanoseconds).endswith("Z") and len(times.fixed(nanoseconds)) == 30


def test_file_modes_are_gos() -> None:
    assert go_mode(0o100644) == 0o644
    assert go_mode(0o40755) == 0o755 | 1 << 31
    assert go_mode(0o120777) == 0o777 | 1 << 27
    assert go_mode(0o104755) == 0o755 | 1 << 23


# --- events ---


def test_events_are_filtered_as_dockers() -> None:
    event = Event(
        "container",
        "exec_start: ls",
        "abc",
        {"image": "busybox", "name": "web", "tier": "db"},
        1_000_000_001,
    )
    for good in (
        {"event": ["exec_start"]},
        {"container": ["web"]},
        {"container": ["ab"]},
        {"image": ["busybox"]},
    ):
        assert matches(event, good)
    for bad in (
        {"event": ["exec"]},
        {"container": ["x"]},
        {"type": ["network"]},
        {"label": ["tier=x"]},
        {"volume": ["v"]},
    ):
        assert not matches(event, bad)
    assert event_json(event, (1, 43))["status"] == "exec_start: ls"


# --- streams ---


def test_frames() -> None:
    assert frame(Line(0, STDERR, b"ab"), tty=False) == b"\x02\0\0\0\0\0\0\x02ab"
    assert frame(Line(0, STDOUT, b"ab"), tty=True) == b"ab"
    assert b"1000 bytes of output were dropped" in frame(Line(0, DROPPED, b"1000"), tty=False)


def test_lines_are_stamped_once() -> None:
    lines = Lines(True, False)
    text = b"".join(
        lines.stamp(Line(n * 10**9, 1, data)).data
        for n, data in ((1, b"a\nb"), (2, b"c\n"), (3, b"d\n"))
    )
    assert text == (
        b"1970-01-01T00:00:01.000000000Z a\n1970-01-01T00:00:01.000000000Z bc\n1970-01-01T00:00:03.000000000Z d\n"
    )


@given(st.lists(st.binary(max_size=5), max_size=6))
def test_detach_keys_pass_all_else(parts: list[bytes]) -> None:
    clean = [part.replace(b"\x10", b"p") for part in parts]
    keys = DetachKeys.parse("")
    assert b"".join(keys.feed(part)[0] for part in clean) == b"".join(clean)


def test_detach_keys_are_found_across_reads_and_kept_from_the_process() -> None:
    keys = DetachKeys.parse("ctrl-p,ctrl-q")
    assert keys.feed(b"ab\x10") == (b"ab", False)
    assert keys.feed(b"\x11cd") == (b"", True)
    assert DetachKeys.parse("a,a,b").feed(b"aaab") == (b"a", True)
    with pytest.raises(InvalidInput, match="Invalid detach keys"):
        DetachKeys.parse("ctrl-1")


class Inner(asyncio.Protocol):
    """aiohttp's place: remembers what it was given."""

    def __init__(self) -> None:
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data


PLAIN = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"POST /containers/create HTTP/1.1\r\nContent-Length: 5\r\n\r\nab\r\nc"
CHUNKED = b"POST /images/load HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
ATTACH = b"POST /v1.45/containers/abc/attach?stream=1 HTTP/1.1\r\nHost: x\r\n\r\n"
EXEC = b"POST /exec/abc/start HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("hijacker", [ATTACH, EXEC])
async def test_what_follows_a_hijacking_request_is_kept_for_the_hijacker(
    hijacker: bytes, size: int
) -> None:
    inner = Inner()
    front = Front(inner)
    data = PLAIN + BODY + hijacker + b"stdin bytes"
    for start in range(0, len(data), size):
        front.data_received(data[start : start + size])
    assert inner.received == PLAIN + BODY + hijacker
    assert await front.read() == b"stdin bytes"
    front.eof_received()
    assert await front.read() == b""


def test_a_request_that_was_not_hijacked_after_all_is_followed_by_others() -> None:
    inner = Inner()
    front = Front(inner)
    front.data_received(EXEC + PLAIN + ATTACH)
    assert inner.received == EXEC
    front.release()
    assert inner.received == EXEC + PLAIN + ATTACH


def test_bodies_in_chunks_go_through_untouched() -> None:
    inner = Inner()
    front = Front(inner)
    for start in range(0, len(CHUNKED), 9):
        front.data_received(CHUNKED[start : start + 9])
    assert inner.received == CHUNKED


def test_a_head_without_end_is_not_kept_for_ever() -> None:
    inner = Inner()
    front = Front(inner)
    for _ in range(200):
        front.data_received(b"x" * 1024)
    assert len(inner.received) > 100_000
