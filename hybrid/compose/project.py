"""Brings a project up and takes it down, through the Engine API alone.

Everything is found again by docker compose's labels, so both are idempotent and either may be
interrupted: the next
``up`` goes on from what is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from hybrid.client.engine import Engine
from hybrid.compose.body import (
    DEPENDS_ON,
    HASH,
    PROJECT,
    SERVICE,
    container_body,
    container_name,
    network_body,
    volume_body,
    volume_name,
)
from hybrid.compose.load import Project
from hybrid.errors import Conflict, HybridError, NotFound, Unavailable

Json = dict[str, Any]
Report = Callable[[str], None]
WORKERS = 8
POLL = 0.2  # seconds between two looks at a container's health


class Up:
    """One ``up`` of one project."""

    def __init__(
        self,
        client: Engine,
        project: Project,
        report: Report,
        *,
        timeout: float = 180.0,
        recreate: bool = False,
    ) -> None:
        self._client = client
        self._project = project
        self._report = report
        self._timeout = timeout
        self._recreate = recreate
        self._failed = False

    def __repr__(self) -> str:
        return f"<Up {self._project.name}>"

    def run(self, services: list[str], *, remove_orphans: bool = False) -> list[Json]:
        """Brings the services up; their containers as inspected, once all are running and
        healthy."""
        names = self._project.with_dependencies(services)
        images = {name: self._image(name) for name in names}
        self._networks(names)
        self._volumes(names)
        existing = self._existing()
        self._orphans(existing, remove_orphans)
        with ThreadPoolExecutor(max(WORKERS, len(names))) as pool:
            pending: dict[str, Future[str]] = {}
            for name in names:
                # Dependencies come first in `names`, so their futures exist.
                needed = {
                    other: pending[other] for other in self._project.services[name].depends_on
                }
                found = existing.get(name)
                pending[name] = pool.submit(self._service, name, images[name], found, needed)
            first = _first_error(pending.values())
        if first:
            raise first
        identities = [future.result() for future in pending.values()]
        return [self._client.container(identity) for identity in identities]

    def _image(self, name: str) -> str:
        return str(self._client.image(self._project.services[name].image)["Id"])

    def _networks(self, names: Iterable[str]) -> None:
        keys = dict.fromkeys(key for name in names for key in self._project.networks_of(name))
        for key in keys:
            declared = self._project.model.networks.get(key)
            body = network_body(self._project, key)
            try:
                found = self._client.network(body["Name"])
            except NotFound:
                if declared and declared.external:
                    raise NotFound(f"external network {body['Name']} does not exist") from None
                self._client.create_network(body)
                self._report(f"Network {body['Name']}  Created")
                continue
            if not (declared and declared.external):
                _check_owner("network", self._project, body, found)

    def _volumes(self, names: Iterable[str]) -> None:
        used = {
            mount.source
            for name in names
            for mount in self._project.services[name].volumes
            if mount.type == "volume" and mount.source
        }
        for key in self._project.model.volumes:
            if key not in used:
                continue
            body = volume_body(self._project, key)
            try:
                found = self._client.volume(volume_name(self._project, key))
            except NotFound:
                if self._project.model.volumes[key].external:
                    raise NotFound(f"external volume {body['Name']} does not exist") from None
                self._client.create_volume(body)
                self._report(f"Volume {body['Name']}  Created")
                continue
            if not self._project.model.volumes[key].external:
                _check_owner("volume", self._project, body, found)

    def _existing(self) -> dict[str, Json]:
        listed = project_containers(self._client, self._project.name)
        return {str(item["Labels"].get(SERVICE)): item for item in listed}

    def _orphans(self, existing: dict[str, Json], remove: bool) -> None:
        for name in [n for n in existing if n not in self._project.services]:
            container = existing.pop(name)
            if remove:
                self._client.stop(container["Id"])
                self._client.remove(container["Id"], force=True)
                self._report(f"Container {_name(container)}  Removed (orphan)")
            else:
                self._report(
                    f"Container {_name(container)}  is of no service in the file: "
                    "--remove-orphans removes it"
                )

    def _service(
        self, name: str, image: str, found: Json | None, needed: dict[str, Future[str]]
    ) -> str:
        """Waits for what the service needs, then makes it so; its container's id."""
        try:
            for other, future in needed.items():
                condition = self._project.services[name].depends_on[other].condition
                self._wait_for(other, future.result(), condition)
            if self._failed:
                raise Unavailable(f"service {name} was not started: another one failed")
            identity = self._converge(name, image, found)
            if self._project.services[name].healthcheck:
                self._wait_for(name, identity, "service_healthy")
        except BaseException:
            self._failed = True
            raise
        return identity

    def _converge(self, name: str, image: str, found: Json | None) -> str:
        body = container_body(self._project, name, image)
        called = container_name(self._project, name)
        if found:
            same = found["Labels"].get(HASH) == body["Labels"][HASH] and not self._recreate
            if same and found.get("State") == "running":
                self._report(f"Container {called}  Running")
                return str(found["Id"])
            if same:
                self._client.start(found["Id"])
                self._report(f"Container {called}  Started")
                return str(found["Id"])
            self._client.stop(found["Id"])
            self._client.remove(found["Id"], force=True)
        try:
            identity = str(self._client.create_container(body, called)["Id"])
            self._client.start(identity)
        except HybridError as error:
            raise type(error)(f"service {name}: {error.message}") from error
        self._report(f"Container {called}  {'Recreated' if found else 'Started'}")
        return identity

    def _wait_for(self, name: str, identity: str, condition: str) -> None:
        deadline = time.monotonic() + self._timeout
        while not self._is(name, identity, condition):
            if self._failed:
                raise Unavailable(f"service {name} was not waited for: another one failed")
            if time.monotonic() > deadline:
                raise Unavailable(f"service {name} is not ready after {self._timeout:.0f} s")
            time.sleep(POLL)

    def _is(self, name: str, identity: str, condition: str) -> bool:
        state = self._client.container(identity)["State"]
        running, code = bool(state.get("Running")), state.get("ExitCode")
        if condition == "service_completed_successfully":
            if not running and code:
                raise Unavailable(f"service {name} exited with {code}: see 'hybrid logs {name}'")
            return not running and state.get("Status") == "exited"
        if not running and not state.get("Restarting"):
            raise Unavailable(f"service {name} exited with {code}: see its logs")
        if condition == "service_started":
            return running
        health = (state.get("Health") or {}).get("Status", "none")
        if health == "none":
            raise Conflict(f"service {name} has no health check to wait for")
        if health == "unhealthy":
            raise Unavailable(f"service {name} is unhealthy{_last_check(state)}")
        return bool(running and health == "healthy")


def down(
    client: Engine,
    project: Project,
    report: Report,
    *,
    volumes: bool = False,
    remove_orphans: bool = False,
    timeout: int | None = None,
) -> None:
    """Stops and removes the project's containers and networks, and with ``volumes`` its volumes."""
    listed = project_containers(client, project.name)
    ours = [
        item for item in listed if remove_orphans or item["Labels"].get(SERVICE) in project.services
    ]
    for level in removal_order(ours):
        with ThreadPoolExecutor(WORKERS) as pool:
            removals = [pool.submit(_remove, client, item, report, timeout) for item in level]
        if error := _first_error(removals):
            raise error
    for network in client.networks({"label": [f"{PROJECT}={project.name}"]}):
        client.remove_network(network["Id"])
        report(f"Network {network['Name']}  Removed")
    if not volumes:
        return
    for volume in client.volumes({"label": [f"{PROJECT}={project.name}"]}):
        client.remove_volume(volume["Name"])
        report(f"Volume {volume['Name']}  Removed")


def project_containers(client: Engine, project: str) -> list[Json]:
    """All containers of a project, running or not."""
    return client.containers(all=True, filters={"label": [f"{PROJECT}={project}"]})


def removal_order(containers: list[Json]) -> list[list[Json]]:
    """Levels that can go in parallel: nothing goes before what depends on it. Cycles go last."""
    by_service = {str(item["Labels"].get(SERVICE)): item for item in containers}
    dependents: dict[str, set[str]] = {name: set() for name in by_service}
    for name, item in by_service.items():
        for entry in filter(None, str(item["Labels"].get(DEPENDS_ON, "")).split(",")):
            dependents.setdefault(entry.split(":")[0], set()).add(name)
    levels: list[list[Json]] = []
    left = dict(by_service)
    while left:
        free = [name for name in left if not dependents[name] & left.keys()] or list(left)
        levels.append([left.pop(name) for name in free])
    return levels


def _remove(client: Engine, item: Json, report: Report, timeout: int | None) -> None:
    client.stop(item["Id"], timeout=timeout)
    client.remove(item["Id"], force=True, volumes=True)
    report(f"Container {_name(item)}  Removed")


def _name(container: Json) -> str:
    return str((container.get("Names") or [container["Id"][:12]])[0]).lstrip("/")


def _check_owner(kind: str, project: Project, body: Json, found: Json) -> None:
    labels = found.get("Labels") or {}
    if labels.get(PROJECT) != project.name:
        raise Conflict(
            f"{kind} {body['Name']} exists and is not of project {project.name}: "
            f"declare it 'external: true', or remove it"
        )
    if labels.get(HASH) not in (None, body["Labels"][HASH]):
        raise Conflict(f"{kind} {body['Name']} has changed in the file: run 'hybrid down' first")


def _last_check(state: Json) -> str:
    log = (state.get("Health") or {}).get("Log") or []
    output = " ".join(str(log[-1].get("Output", "")).split()) if log else ""
    return f": its check says {output[:200]!r}" if output else ""


def _first_error(futures: Iterable[Future[Any]]) -> BaseException | None:
    """The error that came first in cause: not one that only tells of another's failure."""
    errors = [error for future in futures if (error := future.exception())]
    causes = [error for error in errors if "another one failed" not in str(error)]
    return next(iter(causes or errors), None)
