"""From a compose file on disk to a checked ``Project``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hybrid.compose.interpolate import interpolate
from hybrid.compose.model import ComposeFile, Service
from hybrid.errors import InvalidInput, NotFound

NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
FILE_MAX = 1 << 20
DEFAULT_NETWORK = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SERVICE_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")


@dataclass(frozen=True)
class Project:
    """A checked compose file and where it came from."""

    name: str
    directory: Path
    file: Path
    model: ComposeFile
    environment: Mapping[str, str] = field(repr=False)

    @property
    def services(self) -> dict[str, Service]:
        return self.model.services

    def networks_of(self, service: str) -> list[str]:
        """Keys of the networks that a service joins."""
        own = self.services[service]
        return [] if own.network_mode else list(own.networks) or [DEFAULT_NETWORK]

    def order(self) -> list[str]:
        """Service names, dependencies first."""
        done: dict[str, None] = {}

        def visit(name: str) -> None:
            for dependency in self.services[name].depends_on:
                visit(dependency)
            done[name] = None

        for name in self.services:
            visit(name)
        return list(done)

    def with_dependencies(self, names: list[str]) -> list[str]:
        """``names`` and all that they depend on, in order; all services for none."""
        wanted: set[str] = set()

        def visit(name: str) -> None:
            if name not in self.services:
                raise NotFound(f"no such service: {name} (in {self.file})")
            wanted.add(name)
            for dependency in self.services[name].depends_on:
                visit(dependency)

        for name in names or self.services:
            visit(name)
        return [name for name in self.order() if name in wanted]


def load(
    file: Path | None, name: str | None, environment: Mapping[str, str], directory: Path
) -> Project:
    """Reads the file (or the one found in ``directory``); InvalidInput names file and key."""
    path = (directory / file) if file else find(directory)
    home = path.parent.resolve()
    variables = {**dotenv(home / ".env"), **environment}
    raw = _read(path)
    model = parse(raw, variables, str(file or path.name))
    return Project(
        project_name(name or environment.get("COMPOSE_PROJECT_NAME") or model.name, home),
        home,
        path.resolve(),
        model,
        variables,
    )


def find(directory: Path) -> Path:
    """The compose file of ``directory`` or of the nearest parent that has one."""
    for place in (directory, *directory.resolve().parents):
        for name in NAMES:
            if (place / name).is_file():
                return place / name
    raise NotFound(f"no compose file: none of {', '.join(NAMES)} here or above; name one with -f")


def project_name(wanted: str, directory: Path) -> str:
    """The given name, checked; or the directory's, made to fit."""
    if wanted:
        if not _NAME.fullmatch(wanted):
            raise InvalidInput(
                f"invalid project name {wanted!r}: lower-case letters, digits, - and _ only"
            )
        return wanted
    fitted = re.sub(r"[^a-z0-9_-]", "", directory.name.lower()).lstrip("_-")
    if not fitted:
        raise InvalidInput(f"no project name can be made from {directory.name!r}: use -p NAME")
    return fitted


def parse(raw: Any, environment: Mapping[str, str], source: str) -> ComposeFile:
    """Checks what YAML held: interpolated, known keys only, references resolved, no cycle."""
    if not isinstance(raw, dict):
        raise InvalidInput(f"{source}: a compose file is a mapping with the key 'services'")
    try:
        model = ComposeFile.model_validate(interpolate(raw, environment))
    except ValidationError as error:
        raise InvalidInput(f"{source}: {'; '.join(_explain(error))}") from error
    for problem in _problems(model):
        raise InvalidInput(f"{source}: {problem}")
    return model


def _explain(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        match item["type"]:
            case "extra_forbidden":
                yield f"{path}: this key is not supported"
            case "missing":
                yield f"{path}: is required"
            case "value_error":
                yield f"{path}: {item['ctx']['error']}"
            case _:
                yield f"{path}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _problems(model: ComposeFile) -> Iterator[str]:
    """What the shape alone does not show, first things first."""
    for name, service in model.services.items():
        here = f"services.{name}"
        if not _SERVICE_NAME.fullmatch(name):
            yield f"{here}: not a valid service name"
        for network in service.networks:
            if network != DEFAULT_NETWORK and network not in model.networks:
                yield f"{here}.networks: network {network!r} is not defined under 'networks'"
        if service.network_mode and service.networks:
            yield f"{here}: network_mode and networks exclude each other"
        for mount in service.volumes:
            if mount.type == "volume" and mount.source and mount.source not in model.volumes:
                yield f"{here}.volumes: volume {mount.source!r} is not defined under 'volumes'"
            if mount.type == "bind" and not mount.source:
                yield f"{here}.volumes: a bind mount needs a source"
        for dependency in service.depends_on:
            if dependency not in model.services:
                yield f"{here}.depends_on: no such service: {dependency}"
        limits = service.deploy.resources.limits
        if (limits.memory and service.mem_limit) or (limits.cpus and service.cpus):
            yield f"{here}: limits both directly and under deploy"
    if cycle := find_cycle({n: list(s.depends_on) for n, s in model.services.items()}):
        yield f"services depend on each other in a cycle: {' -> '.join(cycle)}"


def find_cycle(graph: Mapping[str, list[str]]) -> list[str]:
    """A cycle as a path that ends where it begins; empty when there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for following in graph.get(name, ()):
            if cycle := visit(following, [*path, name]):
                return cycle
        done.add(name)
        return []

    for name in graph:
        if cycle := visit(name, []):
            return cycle
    return []


def dotenv(path: Path) -> dict[str, str]:
    """NAME=VALUE lines of an env file; quotes are taken off, a missing file is empty."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error
    result = {}
    for line in lines:
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        else:
            value = value.partition(" #")[0].rstrip()
        if equals:
            result[name.strip()] = value
    return result


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML would silently take the last."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    # Before merge keys (<<) are flattened: an own key may override a merged one.
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {key!r}", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > FILE_MAX:
            raise InvalidInput(f"{path}: larger than {FILE_MAX} bytes")
        with path.open("rb") as source:
            return yaml.load(source, _Loader)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise NotFound(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
