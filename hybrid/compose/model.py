"""The part of the compose specification that hybrid honours. What is not here is refused by name.

Each class accepts the specification's short and long forms and holds one normal form.
"""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from hybrid.client import mounts, ports
from hybrid.errors import HybridError
from hybrid.units import parse_duration, parse_size

_ISOLATION = re.compile(r"(default|vm|container|(vm|machine):[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62})?")


class Strict(BaseModel):
    """Unknown keys are errors, but for the specification's ``x-`` extensions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_extensions(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if not str(key).startswith("x-")}
        return data


def _words(value: Any) -> Any:
    return shlex.split(value) if isinstance(value, str) else value


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


def _isolation(value: Any) -> Any:
    """Before anything is made: the daemon, which knows the machines, looks closer."""
    if not isinstance(value, str) or not _ISOLATION.fullmatch(value):
        raise ValueError(f"invalid isolation {value!r}: use vm, vm:NAME, container or machine:NAME")
    return value


def _scalar(value: Any) -> Any:
    """YAML's numbers and booleans where the specification wants text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _mapping(value: Any) -> Any:
    """``["A=1", "B"]`` or ``{A: 1, B: null}`` as a mapping; None means: from the environment."""
    if isinstance(value, list):
        split = [str(item).partition("=") for item in value]
        return {name: text if equals else None for name, equals, text in split}
    if isinstance(value, dict):
        return {name: _scalar(item) for name, item in value.items()}
    return value


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def _duration(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


Words = Annotated[list[str], BeforeValidator(_words)]
Texts = Annotated[list[str], BeforeValidator(_one_or_many)]
Text = Annotated[str, BeforeValidator(_scalar)]
Mapping = Annotated[dict[str, str | None], BeforeValidator(_mapping)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Nanoseconds = Annotated[int, BeforeValidator(_duration), Field(ge=0)]


class Port(Strict):
    """One published port."""

    target: int = Field(ge=1, le=65535)
    published: Text = ""
    host_ip: str = ""
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"

    def as_published(self) -> ports.Published:
        return ports.Published(self.target, self.protocol, self.host_ip, self.published)


class BindOptions(Strict):
    create_host_path: bool = False
    propagation: str = ""


class VolumeOptions(Strict):
    nocopy: bool = False
    subpath: str = ""


class TmpfsOptions(Strict):
    size: Size = 0
    mode: int = 0


class Mount(Strict):
    """One entry of ``volumes``: the short form is read into this."""

    type: Literal["volume", "bind", "tmpfs"]
    target: str = Field(pattern="^/")
    source: str = ""
    read_only: bool = False
    bind: BindOptions = BindOptions()
    volume: VolumeOptions = VolumeOptions()
    tmpfs: TmpfsOptions = TmpfsOptions()


class Dependency(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"] = (
        "service_started"
    )
    required: Literal[True] = True


class Attachment(Strict):
    """A service's place on a network."""

    aliases: list[str] = []
    ipv4_address: str = ""
    mac_address: str = ""


class Healthcheck(Strict):
    test: list[str] = []
    interval: Nanoseconds = 0
    timeout: Nanoseconds = 0
    retries: int = Field(0, ge=0)
    start_period: Nanoseconds = 0
    start_interval: Nanoseconds = 0
    disable: bool = False

    @field_validator("test", mode="before")
    @classmethod
    def _shell_form(cls, value: Any) -> Any:
        return ["CMD-SHELL", value] if isinstance(value, str) else value

    @field_validator("test")
    @classmethod
    def _known_form(cls, value: list[str]) -> list[str]:
        if value and value[0] not in ("NONE", "CMD", "CMD-SHELL"):
            raise ValueError("a list must begin with NONE, CMD or CMD-SHELL")
        return value


class EnvFile(Strict):
    path: str
    required: bool = True


class Ulimit(Strict):
    soft: int
    hard: int


class Limits(Strict):
    cpus: Text = ""
    memory: Size = 0
    pids: int = 0


class Resources(Strict):
    limits: Limits = Limits()


class Deploy(Strict):
    """Only limits: one container a service, on this host."""

    resources: Resources = Resources()


class Service(Strict):
    image: str = Field(min_length=1)
    command: Words | None = None
    entrypoint: Words | None = None
    environment: Mapping = {}
    env_file: list[EnvFile] = []
    ports: list[Port] = []
    expose: Annotated[list[Text], BeforeValidator(_one_or_many)] = []
    volumes: list[Mount] = []
    tmpfs: Texts = []
    networks: dict[str, Attachment] = {}
    network_mode: str = ""
    depends_on: dict[str, Dependency] = {}
    healthcheck: Healthcheck | None = None
    isolation: Annotated[str, BeforeValidator(_isolation)] = ""
    runtime: str = ""
    container_name: str = ""
    restart: Text = "no"
    user: Text = ""
    group_add: list[Text] = []
    working_dir: str = ""
    hostname: str = ""
    domainname: str = ""
    read_only: bool = False
    privileged: bool = False
    init: bool = False
    cap_add: list[str] = []
    cap_drop: list[str] = []
    security_opt: list[str] = []
    mem_limit: Size = 0
    cpus: Text = ""
    pids_limit: int = 0
    shm_size: Size = 0
    ulimits: dict[str, Ulimit] = {}
    sysctls: Mapping = {}
    dns: Texts = []
    extra_hosts: list[str] = []
    labels: Mapping = {}
    annotations: Mapping = {}
    stop_signal: str = ""
    stop_grace_period: Nanoseconds | None = None
    stdin_open: bool = False
    tty: bool = False
    platform: str = ""
    deploy: Deploy = Deploy()

    @field_validator("ports", mode="before")
    @classmethod
    def _short_ports(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [port for item in value for port in _port(item)]

    @field_validator("volumes", mode="before")
    @classmethod
    def _short_volumes(cls, value: Any) -> Any:
        return [_mount(item) for item in value] if isinstance(value, list) else value

    @field_validator("networks", "depends_on", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {str(name): {} for name in value}
        if isinstance(value, dict):
            return {name: {} if item is None else item for name, item in value.items()}
        return value

    @field_validator("env_file", mode="before")
    @classmethod
    def _short_env_file(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str | dict) else value
        if not isinstance(items, list):
            return value
        return [{"path": item} if isinstance(item, str) else item for item in items]

    @field_validator("ulimits", mode="before")
    @classmethod
    def _short_ulimits(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: {"soft": item, "hard": item} if isinstance(item, int) else item
            for name, item in value.items()
        }

    @field_validator("extra_hosts", mode="before")
    @classmethod
    def _host_list(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return [f"{name}:{address}" for name, address in value.items()]
        return value


class Network(Strict):
    name: str = ""
    external: bool = False
    internal: bool = False
    driver: Literal["", "bridge"] = ""
    labels: Mapping = {}
    ipam: Ipam = Field(default_factory=lambda: Ipam())


class Pool(Strict):
    subnet: str = ""
    gateway: str = ""


class Ipam(Strict):
    driver: Literal["", "default"] = ""
    config: list[Pool] = []


class Volume(Strict):
    name: str = ""
    external: bool = False
    driver: Text = ""
    driver_opts: Mapping = {}
    labels: Mapping = {}


class ComposeFile(Strict):
    """A whole file. ``version`` is informative only, as the specification says."""

    version: Text = ""
    name: str = ""
    services: dict[str, Service] = Field(min_length=1)
    networks: dict[str, Network] = {}
    volumes: dict[str, Volume] = {}

    @field_validator("networks", "volumes", mode="before")
    @classmethod
    def _empty_entries(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, dict):
            return {name: {} if item is None else item for name, item in value.items()}
        return value


def _port(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [item]
    try:
        parsed = ports.parse(str(item))
    except HybridError as error:
        raise ValueError(error.message) from error
    return [
        {
            "target": port.container_port,
            "published": port.host_port,
            "host_ip": port.host_ip,
            "protocol": port.protocol,
        }
        for port in parsed
    ]


def _mount(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    try:
        # Relative sources are made absolute later, against the project's directory.
        volume = mounts.parse_volume(item, ".")
    except HybridError as error:
        raise ValueError(error.message) from error
    source, options = item.partition(":")[0] if not volume.anonymous else "", volume.options
    unknown = set(filter(None, options.split(","))) - {"ro", "rw", "nocopy"}
    if unknown:
        raise ValueError(f"volume {item!r}: option {options!r} is not supported (ro, rw, nocopy)")
    return {
        "type": "bind" if source.startswith((".", "~", "/")) else "volume",
        "source": source,
        "target": volume.target,
        "read_only": "ro" in options.split(","),
        "volume": {"nocopy": "nocopy" in options.split(",")},
    }


Network.model_rebuild()
