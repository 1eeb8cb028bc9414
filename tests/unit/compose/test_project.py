from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid.client.address import UnixAddress
from hybrid.client.engine import Engine
from hybrid.compose.body import HASH, container_body
from hybrid.compose.load import Project, load
from hybrid.compose.project import Up, down, removal_order
from hybrid.errors import Conflict, NotFound, Unavailable
from tests.unit.memorydaemon import MemoryDaemon

STACK: dict[str, Any] = {
    "name": "p",
    "services": {
        "front": {"image": "busybox", "depends_on": ["app"], "networks": ["out"]},
        "app": {
            "image": "busybox",
            "depends_on": {"db": {"condition": "service_healthy"}},
            "networks": ["out", "back"],
        },
        "db": {
            "image": "busybox",
            "networks": {"back": {"aliases": ["sql"]}},
            "volumes": ["data:/d"],
            "healthcheck": {"test": "true"},
            "isolation": "vm",
        },
    },
    "networks": {"out": None, "back": {"internal": True}},
    "volumes": {"data": None},
}


class Stack:
    """A project file in a directory, and the in-memory daemon that it is brought up on."""

    def __init__(self, directory: Path, daemon: MemoryDaemon) -> None:
        self.directory = directory
        self.daemon = daemon
        self.client = Engine(UnixAddress(daemon.http.path))
        self.reports: list[str] = []
        self.raw = yaml.safe_load(yaml.safe_dump(STACK))

    def project(self) -> Project:
        (self.directory / "compose.yaml").write_text(yaml.safe_dump(self.raw))
        return load(None, None, {}, self.directory)

    def up(self, *services: str, **options: Any) -> list[str]:
        self.daemon.order.clear()
        self.reports.clear()
        orphans = options.pop("remove_orphans", False)
        task = Up(self.client, self.project(), self.reports.append, timeout=5, **options)
        return [
            item["Name"].lstrip("/") for item in task.run(list(services), remove_orphans=orphans)
        ]

    def down(self, **options: Any) -> None:
        self.daemon.order.clear()
        down(self.client, self.project(), self.reports.append, **options)


@pytest.fixture
def stack(tmp_path: Path, daemon: MemoryDaemon) -> Stack:
    (tmp_path / "project").mkdir()
    return Stack(tmp_path / "project", daemon)


def test_up_starts_in_dependency_order_and_waits_for_health(stack: Stack) -> None:
    stack.daemon.healthy_after = 3
    assert stack.up() == ["p-db-1", "p-app-1", "p-front-1"]
    assert stack.daemon.order == ["start p-db-1", "start p-app-1", "start p-front-1"]
    database = stack.daemon.find("p-db-1")
    assert database is not None and database.looks >= 3
    assert set(stack.daemon.networks) == {"p_out", "p_back"}
    assert stack.daemon.networks["p_back"]["Internal"] is True
    assert set(stack.daemon.volumes) == {"p_data"}


def test_names_on_networks_and_volumes(stack: Stack) -> None:
    stack.up()
    made = stack.daemon.find("p-db-1")
    assert made is not None
    assert made.body["NetworkingConfig"]["EndpointsConfig"] == {
        "p_back": {"Aliases": ["db", "sql"]}
    }
    assert made.body["HostConfig"]["NetworkMode"] == "p_back"
    assert made.body["HostConfig"]["Binds"] == ["p_data:/d"]
    assert made.body["HostConfig"]["Isolation"] == "vm"


def test_a_second_up_does_nothing(stack: Stack) -> None:
    stack.up()
    created = len([call for call in stack.daemon.calls if call[0] == "POST"])
    stack.up()
    assert stack.daemon.order == []
    assert len([call for call in stack.daemon.calls if call[0] == "POST"]) == created
    assert "Container p-db-1  Running" in stack.reports


def test_what_was_stopped_is_started_and_what_changed_is_recreated(stack: Stack) -> None:
    stack.up()
    front = stack.daemon.find("p-front-1")
    assert front is not None
    stack.daemon.finish(front, 0)
    stack.raw["services"]["app"]["environment"] = {"A": "1"}
    stack.up()
    assert stack.daemon.order == ["remove p-app-1", "start p-app-1", "start p-front-1"]


def test_a_new_image_recreates(stack: Stack) -> None:
    stack.up()
    stack.daemon.images["busybox:latest"] = "sha256:" + "c" * 64
    stack.up("db")
    assert stack.daemon.order == ["remove p-db-1", "start p-db-1"]


def test_the_hash_covers_the_whole_request(stack: Stack) -> None:
    before = container_body(stack.project(), "db", "i")["Labels"][HASH]
    assert before == container_body(stack.project(), "db", "i")["Labels"][HASH]
    stack.raw["services"]["db"]["mem_limit"] = "64m"
    assert before != container_body(stack.project(), "db", "i")["Labels"][HASH]


def test_only_what_is_asked_for_and_what_it_needs(stack: Stack) -> None:
    assert stack.up("app") == ["p-db-1", "p-app-1"]


def test_an_unhealthy_dependency_stops_it_all(stack: Stack) -> None:
    stack.daemon.unhealthy.add("p-db-1")
    with pytest.raises(Unavailable, match="service db is unhealthy: its check says 'no answer'"):
        stack.up()
    assert stack.daemon.order == ["start p-db-1"]


def test_a_service_that_fails_to_start_is_named(stack: Stack) -> None:
    stack.daemon.start_error = (503, "not enough memory")
    with pytest.raises(Unavailable, match="service db: not enough memory"):
        stack.up()


def test_an_unknown_image_changes_nothing(stack: Stack) -> None:
    stack.raw["services"]["front"]["image"] = "nope"
    with pytest.raises(NotFound, match="No such image: nope:latest"):
        stack.up()
    assert not stack.daemon.containers and not stack.daemon.networks


def test_orphans_are_told_of_and_removed_on_demand(stack: Stack) -> None:
    stack.up()
    del stack.raw["services"]["front"]
    stack.up()
    assert any("--remove-orphans" in line for line in stack.reports)
    stack.up(remove_orphans=True)
    assert stack.daemon.find("p-front-1") is None


def test_down_goes_backwards_and_keeps_the_data(stack: Stack) -> None:
    stack.up()
    stack.down()
    assert stack.daemon.order == ["remove p-front-1", "remove p-app-1", "remove p-db-1"]
    assert not stack.daemon.networks
    assert set(stack.daemon.volumes) == {"p_data"}
    stack.up()
    stack.down(volumes=True)
    assert not stack.daemon.volumes


def test_down_twice_is_fine(stack: Stack) -> None:
    stack.up()
    stack.down()
    stack.down()


def test_foreign_and_external_things_are_left_alone(stack: Stack) -> None:
    stack.client.create_network({"Name": "p_out"})
    with pytest.raises(Conflict, match="network p_out exists and is not of project p"):
        stack.up()
    stack.raw["networks"]["out"] = {"external": True, "name": "elsewhere"}
    with pytest.raises(NotFound, match="external network elsewhere does not exist"):
        stack.up()
    stack.client.create_network({"Name": "elsewhere"})
    stack.up()
    stack.down(volumes=True)
    assert set(stack.daemon.networks) == {"p_out", "elsewhere"}


def test_a_changed_network_is_said(stack: Stack) -> None:
    stack.up()
    stack.raw["networks"]["out"] = {"internal": True}
    with pytest.raises(Conflict, match="network p_out has changed in the file"):
        stack.up()


def test_removal_order_survives_cycles() -> None:
    def item(name: str, needs: str) -> dict[str, Any]:
        labels = {
            "com.docker.compose.service": name,
            "com.docker.compose.depends_on": f"{needs}:service_started:false",
        }
        return {"Id": name, "Labels": labels}

    levels = removal_order([item("a", "b"), item("b", "a"), item("c", "a")])
    assert [[entry["Id"] for entry in level] for level in levels] == [["c"], ["a", "b"]]
