"""From flags to the body of ``POST /containers/create``: pure but for the env files it is given
to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.client import mounts, ports
from hybrid.client.values import nano_cpus, pairs, restart_policy, ulimit
from hybrid.errors import InvalidInput
from hybrid.units import parse_duration, parse_size

if TYPE_CHECKING:
    from hybrid.cli.options import ContainerOptions

Json = dict[str, Any]


@dataclass(frozen=True)
class Surroundings:
    """What of the caller's process the flags may refer to."""

    environment: Mapping[str, str]
    directory: str

    @classmethod
    def here(cls) -> Surroundings:
        return cls(os.environ, str(Path.cwd()))


def create_body(
    options: ContainerOptions,
    image: str,
    command: list[str] | None,
    surroundings: Surroundings,
    *,
    attached: bool,
) -> Json:
    """The request. ``attached``: the client stays and shows the output; stdin then ends with it."""
    published = [port for text in options.publish for port in ports.parse(text)]
    exposed = [port.key for text in options.expose for port in ports.parse(text)]
    volumes = [mounts.parse_volume(text, surroundings.directory) for text in options.volume]
    body: Json = {
        "Image": image,
        "Cmd": command or None,
        "Entrypoint": None if options.entrypoint is None else [options.entrypoint],
        "Env": environment(options.env, options.env_file, surroundings),
        "Labels": labels(options.label, options.label_file),
        "User": options.user,
        "WorkingDir": options.workdir,
        "Hostname": options.hostname,
        "Domainname": options.domainname,
        "Tty": options.tty,
        "OpenStdin": options.interactive,
        "StdinOnce": options.interactive and attached,
        "AttachStdin": options.interactive and attached,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "ExposedPorts": {key: {} for key in (*exposed, *(port.key for port in published))},
        "Volumes": {volume.target: {} for volume in volumes if volume.anonymous},
        "HostConfig": _host_config(options, volumes, ports.bindings(published), surroundings),
        "NetworkingConfig": {"EndpointsConfig": _endpoints(options)},
    }
    if options.stop_signal:
        body["StopSignal"] = options.stop_signal
    if options.stop_timeout is not None:
        body["StopTimeout"] = options.stop_timeout
    if (health := _healthcheck(options)) is not None:
        body["Healthcheck"] = health
    return body


def _host_config(
    options: ContainerOptions,
    volumes: list[mounts.VolumeFlag],
    bindings: Json,
    surroundings: Surroundings,
) -> Json:
    body: Json = {
        "AutoRemove": options.remove,
        "Isolation": options.isolation,
        "NetworkMode": _network(options),
        "PortBindings": bindings,
        "PublishAllPorts": options.publish_all,
        "Binds": [volume.text() for volume in volumes if not volume.anonymous],
        "Mounts": [mounts.parse_mount(text, surroundings.directory) for text in options.mount],
        "Tmpfs": dict(mounts.parse_tmpfs(text) for text in options.tmpfs),
        "ReadonlyRootfs": options.read_only,
        "Privileged": options.privileged,
        "CapAdd": options.cap_add,
        "CapDrop": options.cap_drop,
        "SecurityOpt": [_security_option(text, surroundings) for text in options.security_opt],
        "RestartPolicy": restart_policy(options.restart),
        "GroupAdd": options.group_add,
        "ExtraHosts": options.add_host,
        "Dns": options.dns,
        "DnsSearch": options.dns_search,
        "DnsOptions": options.dns_option,
        "Sysctls": pairs(options.sysctl, "sysctl"),
        "StorageOpt": pairs(options.storage_opt, "storage option"),
        "Annotations": pairs(options.annotation, "annotation"),
        "Ulimits": [ulimit(text) for text in options.ulimit],
        "Devices": [_device(text) for text in options.device],
        **_limits(options),
    }
    optional: Json = {
        "Runtime": options.runtime,
        "UsernsMode": options.userns,
        "PidMode": options.pid,
        "IpcMode": options.ipc,
        "CgroupnsMode": options.cgroupns,
        "Init": options.init,
    }
    return body | {name: value for name, value in optional.items() if value}


def _limits(options: ContainerOptions) -> Json:
    limits: Json = {
        "Memory": size(options.memory, "--memory"),
        "MemoryReservation": size(options.memory_reservation, "--memory-reservation"),
        "MemorySwap": -1
        if options.memory_swap == "-1"
        else size(options.memory_swap, "--memory-swap"),
        "ShmSize": size(options.shm_size, "--shm-size"),
        "NanoCpus": nano_cpus(options.cpus) if options.cpus else 0,
        "CpuShares": options.cpu_shares,
        "CpuPeriod": options.cpu_period,
        "CpuQuota": options.cpu_quota,
        "CpusetCpus": options.cpuset_cpus,
        "PidsLimit": options.pids_limit,
        "BlkioWeight": options.blkio_weight,
        "BlkioDeviceReadBps": _rate(options.device_read_bps, "--device-read-bps"),
        "BlkioDeviceWriteBps": _rate(options.device_write_bps, "--device-write-bps"),
        "BlkioDeviceReadIOps": _rate(options.device_read_iops, "--device-read-iops"),
        "BlkioDeviceWriteIOps": _rate(options.device_write_iops, "--device-write-iops"),
        "OomScoreAdj": options.oom_score_adj,
    }
    return {name: value for name, value in limits.items() if value}


def _rate(text: str, flag: str) -> list[Json]:
    """``PATH:RATE``, as docker's."""
    if not text:
        return []
    path, colon, rate = text.rpartition(":")
    if not colon or not path:
        raise InvalidInput(f"{flag} {text!r}: PATH:RATE is needed, such as /dev/root:10m")
    return [{"Path": path, "Rate": size(rate, flag)}]


def environment(
    given: Iterable[str], files: Iterable[str], surroundings: Surroundings
) -> list[str]:
    """NAME=VALUE items; files first, so that flags win. A bare NAME is passed on if it is set."""
    items = [line for name in files for line in _read_lines(name, "env file")]
    result = []
    for item in (*items, *given):
        name, equals, _ = item.partition("=")
        if not name:
            raise InvalidInput(f"invalid environment variable {item!r}: it has no name")
        if equals:
            result.append(item)
        elif name in surroundings.environment:
            result.append(f"{name}={surroundings.environment[name]}")
    return result


def labels(given: Iterable[str], files: Iterable[str] = ()) -> dict[str, str]:
    """Labels of files and flags; flags win."""
    result = {}
    for item in (*(line for name in files for line in _read_lines(name, "label file")), *given):
        name, _, value = item.partition("=")
        if not name:
            raise InvalidInput(f"invalid label {item!r}: it has no name")
        result[name] = value
    return result


def _device(text: str) -> Json:
    host, _, rest = text.partition(":")
    inside, _, rights = rest.partition(":")
    return {
        "PathOnHost": host,
        "PathInContainer": inside or host,
        "CgroupPermissions": rights or "rwm",
    }


def _security_option(text: str, surroundings: Surroundings) -> str:
    """A seccomp profile is sent by its contents: the daemon reads no file for a client."""
    name, _, value = text.partition("=")
    if name != "seccomp" or value in ("", "unconfined", "builtin", "default"):
        return text
    path = Path(surroundings.directory) / value
    try:
        return f"seccomp={path.read_text()}"
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read the seccomp profile {path}: {error}") from error


def _network(options: ContainerOptions) -> str:
    return options.network[0].split(",")[0].removeprefix("name=") if options.network else "default"


def _endpoints(options: ContainerOptions) -> Json:
    """Per network what was asked for there; the first one also takes the flags about the
    endpoint."""
    result: Json = {}
    for text in options.network:
        name, *fields = text.split(",")
        endpoint: Json = {}
        for item in fields:
            key, _, value = item.partition("=")
            if key == "alias":
                endpoint.setdefault("Aliases", []).append(value)
            elif key == "ip":
                endpoint["IPAMConfig"] = {"IPv4Address": value}
            elif key == "mac-address":
                endpoint["MacAddress"] = value
            else:
                raise InvalidInput(f"invalid network {text!r}: unknown key {key!r}")
        result[name.removeprefix("name=")] = endpoint
    if options.network_alias or options.ip or options.mac_address:
        first = result.setdefault(_network(options), {})
        if options.network_alias:
            first.setdefault("Aliases", []).extend(options.network_alias)
        if options.ip:
            first["IPAMConfig"] = {"IPv4Address": options.ip}
        if options.mac_address:
            first["MacAddress"] = options.mac_address
    return result


def _healthcheck(options: ContainerOptions) -> Json | None:
    timing: Json = {
        "Interval": _duration(options.health_interval, "--health-interval"),
        "Timeout": _duration(options.health_timeout, "--health-timeout"),
        "StartPeriod": _duration(options.health_start_period, "--health-start-period"),
        "StartInterval": _duration(options.health_start_interval, "--health-start-interval"),
        "Retries": options.health_retries,
    }
    timing = {name: value for name, value in timing.items() if value}
    if options.no_healthcheck:
        if options.health_cmd or timing:
            raise InvalidInput("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if options.health_cmd:
        timing["Test"] = ["CMD-SHELL", options.health_cmd]
    return timing or None


def size(text: str, flag: str) -> int:
    """Bytes; 0 for nothing. InvalidInput names the flag."""
    return _checked(parse_size, text, flag) if text else 0


def _duration(text: str, flag: str) -> int:
    return _checked(parse_duration, text, flag) if text else 0


def _checked(parse: Callable[[str], int], text: str, flag: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidInput(f"{flag}: {error}") from error


def _read_lines(name: str, what: str) -> list[str]:
    try:
        lines = Path(name).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read the {what} {name}: {error}") from error
    return [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
