"""docker-py: the hijack without an upgrade, and bodies as a strict client reads them."""

from __future__ import annotations

import socket

import docker
import pytest
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound

pytestmark = pytest.mark.root
HERE = {"isolation": "container"}


def test_run_returns_the_output(docker_py: docker.DockerClient) -> None:
    output = docker_py.containers.run("busybox", ["echo", "hello"], remove=True, **HERE)
    assert output == b"hello\n"


def test_a_failing_command_raises(docker_py: docker.DockerClient) -> None:
    with pytest.raises(ContainerError) as caught:
        docker_py.containers.run("busybox", ["sh", "-c", "exit 9"], remove=True, **HERE)
    assert caught.value.exit_status == 9


def test_a_life(docker_py: docker.DockerClient) -> None:
    container = docker_py.containers.run("busybox", ["sleep", "60"], detach=True, **HERE)
    try:
        container.reload()
        assert container.status == "running"
        assert container.exec_run(["sh", "-c", "echo in; exit 2"]) == (2, b"in\n")
        container.stop(timeout=1)
        assert container.wait()["StatusCode"] == 137
        assert container.logs() == b""
    finally:
        container.remove(force=True)


def test_attached_stdin(docker_py: docker.DockerClient) -> None:
    container = docker_py.containers.create("busybox", ["cat"], stdin_open=True, **HERE)
    try:
        attached = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        container.start()
        connection = attached._sock
        connection.sendall(b"typed\n")
        connection.shutdown(socket.SHUT_WR)
        container.wait(timeout=30)
        assert container.logs() == b"typed\n"
        attached.close()
        connection.close()
    finally:
        container.remove(force=True)


def test_errors_are_the_kinds_that_it_knows(docker_py: docker.DockerClient) -> None:
    with pytest.raises(ImageNotFound):
        docker_py.containers.create("nope-nope", **HERE)
    with pytest.raises(NotFound):
        docker_py.containers.get("nope")
    container = docker_py.containers.create("busybox", name="taken-name", **HERE)
    try:
        with pytest.raises(APIError, match="is already in use"):
            docker_py.containers.create("busybox", name="taken-name", **HERE)
    finally:
        container.remove()


def test_lists(docker_py: docker.DockerClient) -> None:
    assert [tag for image in docker_py.images.list() for tag in image.tags] == ["busybox:latest"]
    assert {"bridge", "host", "none"} <= {network.name for network in docker_py.networks.list()}
    assert docker_py.volumes.list() == []
    assert docker_py.ping() is True
    assert docker_py.version()["ApiVersion"]
