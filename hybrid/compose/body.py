"""From a service to the body of ``POST /containers/create``, and the labels that find it again.
Pure."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid.client import ports
from hybrid.client.values import nano_cpus, restart_policy
from hybrid.compose.load import Project, dotenv
from hybrid.compose.model import Healthcheck, Mount, Service
from hybrid.errors import InvalidInput

Json = dict[str, Any]

# docker compose's own labels, so that its tools and ours find each other's containers.
PREFIX = "com.docker.compose"
PROJECT, SERVICE = f"{PREFIX}.project", f"{PREFIX}.service"
NUMBER, ONEOFF, HASH = f"{PREFIX}.container-number", f"{PREFIX}.oneoff", f"{PREFIX}.config-hash"
NETWORK, VOLUME = f"{PREFIX}.network", f"{PREFIX}.volume"
DEPENDS_ON, DIRECTORY = f"{PREFIX}.depends_on", f"{PREFIX}.project.working_dir"
FILES, VERSION = f"{PREFIX}.project.config_files", f"{PREFIX}.version"


def container_name(project: Project, service: str) -> str:
    return project.services[service].container_name or f"{project.name}-{service}-1"


def network_name(project: Project, key: str) -> str:
    """The daemon's name of a network of the file."""
    declared = project.model.networks.get(key)
    if declared and (declared.name or declared.external):
        return declared.name or key
    return f"{project.name}_{key}"


def volume_name(project: Project, key: str) -> str:
    """The daemon's name of a volume of the file."""
    declared = project.model.volumes[key]
    return declared.name or (key if declared.external else f"{project.name}_{key}")


def network_body(project: Project, key: str) -> Json:
    """The body that creates a network of the file."""
    declared = project.model.networks.get(key)
    pools = declared.ipam.config if declared else []
    config = [
        {k: v for k, v in (("Subnet", pool.subnet), ("Gateway", pool.gateway)) if v}
        for pool in pools
    ]
    body: Json = {
        "Name": network_name(project, key),
        "Driver": "bridge",
        "Internal": bool(declared and declared.internal),
        "IPAM": {"Config": config},
    }
    own = {NETWORK: key, PROJECT: project.name, HASH: config_hash(body)}
    return body | {"Labels": _filled(declared.labels if declared else {}) | own}


def volume_body(project: Project, key: str) -> Json:
    """The body that creates a volume of the file."""
    declared = project.model.volumes[key]
    body: Json = {
        "Name": volume_name(project, key),
        "Driver": declared.driver or "local",
        "DriverOpts": _filled(declared.driver_opts),
    }
    own = {VOLUME: key, PROJECT: project.name, HASH: config_hash(body)}
    return body | {"Labels": _filled(declared.labels) | own}


def container_body(project: Project, name: str, image_id: str) -> Json:
    """The body that creates a service's container; its hash label changes whenever it would
    differ."""
    service = project.services[name]
    published = [port.as_published() for port in service.ports]
    exposed = [port.key for text in service.expose for port in ports.parse(text)]
    body: Json = {
        "Image": service.image,
        "Cmd": service.command,
        "Entrypoint": service.entrypoint,
        "Env": _environment(project, service),
        "User": service.user,
        "WorkingDir": service.working_dir,
        "Hostname": service.hostname,
        "Domainname": service.domainname,
        "Tty": service.tty,
        "OpenStdin": service.stdin_open,
        "ExposedPorts": {key: {} for key in (*exposed, *(port.key for port in published))},
        "Volumes": {m.target: {} for m in service.volumes if m.type == "volume" and not m.source},
        "HostConfig": _host_config(project, name, service, ports.bindings(published)),
        "NetworkingConfig": {"EndpointsConfig": _endpoints(project, name, service)},
    }
    if service.stop_signal:
        body["StopSignal"] = service.stop_signal
    if service.stop_grace_period is not None:
        body["StopTimeout"] = -(-service.stop_grace_period // 10**9)
    if service.healthcheck:
        body["Healthcheck"] = _healthcheck(service.healthcheck)
    own = {
        PROJECT: project.name,
        SERVICE: name,
        NUMBER: "1",
        ONEOFF: "False",
        DIRECTORY: str(project.directory),
        FILES: str(project.file),
        VERSION: "2",
        DEPENDS_ON: ",".join(
            f"{other}:{dependency.condition}:false"
            for other, dependency in service.depends_on.items()
        ),
    }
    labels = _filled(service.labels) | own
    labels[HASH] = config_hash({**body, "Labels": labels, "ImageID": image_id})
    return body | {"Labels": labels}


def config_hash(body: Mapping[str, Any]) -> str:
    """The same for the same content, whatever its order."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _host_config(project: Project, name: str, service: Service, bindings: Json) -> Json:
    limits = service.deploy.resources.limits
    cpus = service.cpus or limits.cpus
    body: Json = {
        "Isolation": service.isolation,
        "NetworkMode": _network_mode(project, name),
        "PortBindings": bindings,
        "Binds": [_bind(project, m) for m in service.volumes if _short(m)],
        "Mounts": [_mount(project, m) for m in service.volumes if not _short(m) and _needed(m)],
        "Tmpfs": dict(_tmpfs(text) for text in service.tmpfs),
        "RestartPolicy": restart_policy(service.restart),
        "ReadonlyRootfs": service.read_only,
        "Privileged": service.privileged,
        "CapAdd": service.cap_add,
        "CapDrop": service.cap_drop,
        "SecurityOpt": service.security_opt,
        "GroupAdd": service.group_add,
        "Dns": service.dns,
        "ExtraHosts": [host.replace("=", ":", 1) for host in service.extra_hosts],
        "Sysctls": _filled(service.sysctls),
        "Annotations": _filled(service.annotations),
        "Ulimits": [
            {"Name": key, "Soft": value.soft, "Hard": value.hard}
            for key, value in service.ulimits.items()
        ],
        "Memory": service.mem_limit or limits.memory,
        "NanoCpus": nano_cpus(cpus) if cpus else 0,
        "PidsLimit": service.pids_limit or limits.pids,
        "ShmSize": service.shm_size,
        "Runtime": service.runtime,
        "Init": service.init or None,
    }
    return {key: value for key, value in body.items() if value not in (0, None, "")}


def _network_mode(project: Project, name: str) -> str:
    mode = project.services[name].network_mode
    if mode.startswith("service:"):
        other = mode.removeprefix("service:")
        if other not in project.services:
            raise InvalidInput(f"services.{name}.network_mode: no such service: {other}")
        return f"container:{container_name(project, other)}"
    return mode or network_name(project, project.networks_of(name)[0])


def _endpoints(project: Project, name: str, service: Service) -> Json:
    result: Json = {}
    for key in project.networks_of(name):
        attachment = service.networks.get(key)
        endpoint: Json = {"Aliases": [name, *(attachment.aliases if attachment else ())]}
        if attachment and attachment.ipv4_address:
            endpoint["IPAMConfig"] = {"IPv4Address": attachment.ipv4_address}
        if attachment and attachment.mac_address:
            endpoint["MacAddress"] = attachment.mac_address
        result[network_name(project, key)] = endpoint
    return result


def _short(mount: Mount) -> bool:
    """True for what ``Binds`` can say, which needs no ``Mounts`` entry."""
    plain = not (mount.volume.subpath or mount.bind.propagation)
    return mount.type != "tmpfs" and bool(mount.source) and plain


def _needed(mount: Mount) -> bool:
    """Anonymous volumes are in ``Volumes``."""
    return mount.type != "volume" or bool(mount.source)


def _bind(project: Project, mount: Mount) -> str:
    options = [
        *(["ro"] if mount.read_only else []),
        *(["nocopy"] if mount.volume.nocopy else []),
    ]
    parts = [_source(project, mount), mount.target, ",".join(options)]
    return ":".join(part for part in parts if part)


def _mount(project: Project, mount: Mount) -> Json:
    body: Json = {
        "Type": mount.type,
        "Target": mount.target,
        "ReadOnly": mount.read_only,
    }
    if mount.type != "tmpfs":
        body["Source"] = _source(project, mount)
    if mount.type == "volume":
        body["VolumeOptions"] = {"NoCopy": mount.volume.nocopy, "Subpath": mount.volume.subpath}
    if mount.type == "bind" and mount.bind.propagation:
        body["BindOptions"] = {"Propagation": mount.bind.propagation}
    if mount.type == "tmpfs":
        body["TmpfsOptions"] = {"SizeBytes": mount.tmpfs.size, "Mode": mount.tmpfs.mode}
    return body


def _source(project: Project, mount: Mount) -> str:
    if mount.type == "volume":
        return volume_name(project, mount.source)
    return os.path.normpath(project.directory / Path(mount.source).expanduser())


def _tmpfs(text: str) -> tuple[str, str]:
    target, _, options = text.partition(":")
    return target, options


def _environment(project: Project, service: Service) -> list[str]:
    values: dict[str, str] = {}
    for item in service.env_file:
        path = project.directory / item.path
        if item.required and not path.exists():
            raise InvalidInput(f"env_file {item.path}: no such file in {project.directory}")
        values |= dotenv(path)
    for name, value in service.environment.items():
        if value is not None:
            values[name] = value
        elif name in project.environment:
            values[name] = project.environment[name]
    return [f"{name}={value}" for name, value in values.items()]


def _healthcheck(check: Healthcheck) -> Json:
    if check.disable:
        return {"Test": ["NONE"]}
    body: Json = {
        "Test": check.test,
        "Interval": check.interval,
        "Timeout": check.timeout,
        "Retries": check.retries,
        "StartPeriod": check.start_period,
        "StartInterval": check.start_interval,
    }
    return {key: value for key, value in body.items() if value}


def _filled(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value or "" for name, value in values.items()}
