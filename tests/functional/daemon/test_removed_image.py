"""A container outlives the forced removal of its image."""

from __future__ import annotations

from tests.functional.daemon.conftest import RunningDaemon, busybox_image


def test_a_stopped_container_starts_again_and_its_layers_go_with_it(daemon: RunningDaemon) -> None:
    daemon.run("--name", "one", "busybox", "sh", "-c", "cat /etc/motd; sleep 0.1")
    before = set(daemon.paths.layers.glob("*.squashfs"))
    try:
        daemon.docker("rmi", "-f", "busybox")
        assert set(daemon.paths.layers.glob("*.squashfs")) == before
        assert daemon.docker("start", "-a", "one").stdout == b"hello\n"
        daemon.docker("rm", "one")
        assert set(daemon.paths.layers.glob("*.squashfs")) < before
    finally:
        daemon.call(
            "POST", "/images/load", busybox_image(), **{"Content-Type": "application/x-tar"}
        )
    assert set(daemon.paths.layers.glob("*.squashfs")) == before
