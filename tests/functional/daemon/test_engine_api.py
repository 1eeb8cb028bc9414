"""The Docker Engine API as it is on the wire: heads, hijacked connections, errors in Docker's words."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from typing import Any

import docker
import docker.errors
import pytest

from tests.functional.daemon.conftest import RunningDaemon


def create(daemon: RunningDaemon, *command: str, **more: Any) -> str:
    host = {"Isolation": "container", "NetworkMode": "none", **more.pop("HostConfig", {})}
    body = {"Image": "busybox", "Cmd": list(command), "HostConfig": host, **more}
    answer = daemon.call("POST", "/containers/create", body)
    assert answer.status == 201, answer.body
    identity: str = answer.json["Id"]
    return identity


def connected(daemon: RunningDaemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(daemon.paths.socket))
    return connection


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def demultiplexed(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        stream, size = struct.unpack_from(">BxxxI", data)
        found[stream] = found.get(stream, b"") + data[8 : 8 + size]
        data = data[8 + size :]
    return found


def test_ping_says_the_version_with_and_without_a_body(daemon: RunningDaemon) -> None:
    for method in ("GET", "HEAD"):
        answer = daemon.call(method, "/_ping")
        assert answer.status == 200
        assert answer.headers["Api-Version"] == "1.51" and answer.headers["Ostype"] == "linux"
    assert daemon.call("GET", "/_ping").body == b"OK"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nope", 404, "page not found"),
        (
            "GET",
            "/v1.99/info",
            400,
            "client version 1.99 is too new. Maximum supported API version is 1.51",
        ),
        (
            "GET",
            "/v1.12/info",
            400,
            "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a"
            " newer version",
        ),
        ("GET", "/v1.45/containers/json?filters=garbage", 400, "invalid filter"),
        (
            "GET",
            "/v1.45/containers/json?filters=%7B%22bogus%22:%5B%22x%22%5D%7D",
            400,
            "invalid filter 'bogus'",
        ),
        (
            "GET",
            "/v1.45/containers/json?filters=%7B%22status%22:%5B%22bogus%22%5D%7D",
            400,
            "invalid filter 'status=bogus'",
        ),
        ("POST", "/v1.45/containers/zz/wait?condition=bogus", 400, 'invalid condition: "bogus"'),
        (
            "GET",
            "/v1.45/containers/zz/logs",
            400,
            "Bad parameters: you must choose at least one stream",
        ),
        ("GET", "/v1.45/containers/zz/logs?stdout=1", 404, "No such container: zz"),
        ("GET", "/v1.45/networks/zz", 404, "network zz not found"),
        ("GET", "/v1.45/volumes/zz", 404, "get zz: no such volume"),
        ("GET", "/v1.45/images/zz/json", 404, "No such image: zz:latest"),
    ],
)
def test_errors_are_dockers(
    daemon: RunningDaemon, method: str, path: str, status: int, message: str
) -> None:
    answer = daemon.call(method, path)
    assert (answer.status, answer.json) == (status, {"message": message})
    assert answer.headers["Content-Type"] == "application/json"


def test_swarm_is_refused_as_an_engine_without_swarm_does(daemon: RunningDaemon) -> None:
    answer = daemon.call("GET", "/v1.45/services")
    assert answer.status == 503
    assert answer.json["message"].startswith("This node is not a swarm manager.")


def test_attach_errors_are_plain_text(daemon: RunningDaemon) -> None:
    answer = daemon.call("POST", "/v1.45/containers/zz/attach")
    assert (answer.status, answer.body) == (404, b"No such container: zz\n")


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        ({"Image": "nosuch"}, "application/json", 404, "No such image: nosuch:latest"),
        (
            {},
            "text/plain",
            400,
            "unsupported Content-Type header (text/plain): must be 'application/json'",
        ),
        (
            {"Image": "busybox", "HostConfig": {"CgroupParent": "x"}},
            "application/json",
            501,
            "HostConfig.CgroupParent is not supported by this build: leave it out",
        ),
        (
            {
                "Image": "busybox",
                "HostConfig": {"AutoRemove": True, "RestartPolicy": {"Name": "always"}},
            },
            "application/json",
            400,
            "can't create 'AutoRemove' container with restart policy",
        ),
    ],
)
def test_a_body_that_cannot_be_honoured_is_refused(
    daemon: RunningDaemon, body: Any, content_type: str, status: int, message: str
) -> None:
    answer = daemon.call("POST", "/containers/create", body, **{"Content-Type": content_type})
    assert (answer.status, answer.json["message"]) == (status, message)


def test_a_name_is_given_once(daemon: RunningDaemon) -> None:
    body = {"Image": "busybox"}
    first = daemon.call("POST", "/containers/create?name=taken", body).json["Id"]
    answer = daemon.call("POST", "/containers/create?name=taken", body)
    assert answer.status == 409
    assert answer.json["message"] == (
        f'Conflict. The container name "/taken" is already in use by container "{first}". You have to remove (or'
        " rename) that container to be able to reuse that name."
    )


@pytest.mark.parametrize("upgrade", [True, False])
def test_attach_takes_the_connection_over(daemon: RunningDaemon, upgrade: bool) -> None:
    """With ``Upgrade: tcp``, and without it with input right behind the request."""
    container = create(daemon, "cat", OpenStdin=True, StdinOnce=True)
    headers = "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else ""
    query = "stream=1&stdin=1&stdout=1&stderr=1"
    request = (
        f"POST /v1.45/containers/{container}/attach?{query} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
    )
    with connected(daemon) as connection:
        connection.sendall(request.encode() + b"early ")
        head = connection.recv(4096)
        expected = b"HTTP/1.1 101 UPGRADED\r\n" if upgrade else b"HTTP/1.1 200 OK\r\n"
        assert head.startswith(expected)
        assert b"application/vnd.docker.multiplexed-stream" in head
        assert daemon.call("POST", f"/containers/{container}/start").status == 204
        connection.sendall(b"late\n")
        connection.shutdown(socket.SHUT_WR)
        assert demultiplexed(read_all(connection)) == {1: b"early late\n"}


def test_wait_answers_its_head_before_it_waits(daemon: RunningDaemon) -> None:
    container = create(daemon, "sh", "-c", "exit 4")
    with connected(daemon) as connection:
        connection.sendall(
            f"POST /containers/{container}/wait?condition=next-exit HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert daemon.call("POST", f"/containers/{container}/start").status == 204
        assert b'{"StatusCode":4}' in connection.recv(4096)


def test_events_answer_their_head_at_once(daemon: RunningDaemon) -> None:
    with connected(daemon) as connection:
        connection.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        create(daemon, "true")
        assert b'"Action":"create"' in connection.recv(4096)


def test_all_output_comes_before_the_attachment_ends(daemon: RunningDaemon) -> None:
    size = 3_000_000
    container = create(daemon, "sh", "-c", f"head -c {size} /dev/zero; echo end >&2")
    request = f"POST /v1.45/containers/{container}/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(daemon) as connection:
        connection.sendall(request.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        daemon.call("POST", f"/containers/{container}/start")
        streams = demultiplexed(read_all(connection))
    assert streams == {1: bytes(size), 2: b"end\n"}


def test_a_client_that_does_not_read_slows_nobody(daemon: RunningDaemon) -> None:
    container = create(daemon, "sh", "-c", "head -c 20000000 /dev/zero")
    request = f"POST /containers/{container}/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(daemon) as connection:
        connection.sendall(request.encode())
        connection.recv(10)
        daemon.call("POST", f"/containers/{container}/start")
        assert daemon.call("POST", f"/containers/{container}/wait").json == {"StatusCode": 0}


def test_a_second_start_changes_nothing(daemon: RunningDaemon) -> None:
    container = create(daemon, "sleep", "100")
    assert daemon.call("POST", f"/containers/{container}/start").status == 204
    assert daemon.call("POST", f"/containers/{container}/start").status == 304
    assert daemon.call("POST", f"/containers/{container}/kill").status == 204
    daemon.call("POST", f"/containers/{container}/wait")
    assert daemon.call("POST", f"/containers/{container}/kill").status == 409


def test_docker_py_runs_and_inspects(daemon: RunningDaemon) -> None:
    client = docker.DockerClient(base_url=daemon.host)
    try:
        assert (
            client.containers.run("busybox", ["echo", "hi"], remove=True, isolation="container")
            == b"hi\n"
        )
        container = client.containers.run(
            "busybox", "sleep 100", detach=True, isolation="container"
        )
        done = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 2"], demux=True)
        assert (done.exit_code, done.output) == (2, (b"out\n", b"err\n"))
        stream = container.exec_run("cat", stdin=True, socket=True).output
        raw = stream._sock
        raw.sendall(b"abc")
        raw.shutdown(socket.SHUT_WR)
        assert demultiplexed(read_all(raw)) == {1: b"abc"}
        stream._response.close()
        raw.close()
        assert container.stats(stream=False)["pids_stats"]["current"] >= 1
        container.reload()
        assert container.attrs["Hybrid"]["Isolation"] == "container"
        with pytest.raises(docker.errors.ImageNotFound):
            client.images.get("nosuch")
    finally:
        client.close()


def test_a_container_that_is_removed_tells_who_waits(daemon: RunningDaemon) -> None:
    container = create(daemon, "sh", "-c", "sleep 0.5; exit 9", HostConfig={"AutoRemove": True})
    answers: list[Any] = []
    waiter = threading.Thread(
        target=lambda: answers.append(
            daemon.call("POST", f"/containers/{container}/wait?condition=removed").json
        )
    )
    waiter.start()
    time.sleep(0.2)
    daemon.call("POST", f"/containers/{container}/start")
    waiter.join(20)
    assert answers == [{"StatusCode": 9}]
    assert daemon.call("GET", f"/containers/{container}/json").status == 404


def test_many_requests_on_one_connection(daemon: RunningDaemon) -> None:
    with connected(daemon) as connection:
        for _ in range(3):
            connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).endswith(b"OK")
        body = json.dumps({"Detach": True}).encode()
        connection.sendall(
            b"POST /exec/nosuch/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert b"404" in connection.recv(4096)
        connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).endswith(b"OK")
