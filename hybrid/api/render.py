"""The engine's containers → Docker's JSON. Pure."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hybrid.api import times
from hybrid.engine.container import OWN_DISK, Endpoint, HealthCheck, Mount, Port, Record, Spec
from hybrid.engine.machine import GuestOrigin
from hybrid.units import human_duration

DRIVER = "hybrid"
SHM_DEFAULT = 64 << 20


def docker_status(record: Record) -> str:
    return "created" if record.status == "starting" else record.status


def health_json(check: HealthCheck | None) -> dict[str, Any] | None:
    if check is None:
        return None
    full = {
        "Test": check.test,
        "Interval": check.interval,
        "Timeout": check.timeout,
        "StartPeriod": check.start_period,
        "StartInterval": check.start_interval,
        "Retries": check.retries,
    }
    return {name: value for name, value in full.items() if value}


def status_text(record: Record) -> str:
    """The STATUS column of ``ps``."""
    now = time.time_ns()
    ended = human_duration((now - record.finished_ns) / 1e9) if record.finished_ns else ""
    if record.status in ("running", "paused"):
        text = f"Up {human_duration((now - record.started_ns) / 1e9)}"
        if record.status == "paused":
            return f"{text} (Paused)"
        if record.health is not None:
            word = (
                "health: starting" if record.health.status == "starting" else record.health.status
            )
            return f"{text} ({word})"
        return text
    if record.status == "restarting":
        return f"Restarting ({record.exit_code}) {ended} ago"
    if record.status == "removing":
        return "Removal In Progress"
    if record.status == "dead":
        return "Dead"
    if record.status == "exited":
        return f"Exited ({record.exit_code}) {ended} ago"
    return "Created"


def origin_json(origin: GuestOrigin | None) -> dict[str, Any] | None:
    """How a guest came to be; None where that is not known (a box, this host)."""
    if origin is None:
        return None
    if origin.kind != "clone":
        return {"Kind": origin.kind, "Reason": origin.reason}
    return {
        "Kind": origin.kind,
        "Template": origin.template,
        "TemplateCreated": times.rfc3339(origin.template_made * 1_000_000_000),
        "TemplateAge": max(0, int(time.time()) - origin.template_made),
        "Created": times.rfc3339(origin.made * 1_000_000_000),
        "Memory": origin.memory,
        "Taken": times.rfc3339(origin.taken * 1_000_000_000) if origin.taken else "",
        "Reseeded": origin.reseeded,
    }


def hybrid_json(record: Record, machine: str, origin: GuestOrigin | None = None) -> dict[str, Any]:
    """hybrid's own object in an inspected container."""
    return {
        "Isolation": record.spec.isolation or "vm",
        "Machine": machine,
        "Kernel": record.kernel,
        "ReadyAfter": record.ready_after,
        "Provider": record.provider,
        "Addresses": {name: one.ip for name, one in record.endpoints.items() if one.ip},
        "Origin": origin_json(origin),
    }


def inspect(
    record: Record,
    machine: str,
    execs: list[str],
    root: Path,
    platform: str,
    origin: GuestOrigin | None = None,
) -> dict[str, Any]:
    spec = record.spec
    return {
        "Id": record.id,
        "Created": times.rfc3339(record.created_ns),
        "Path": record.path,
        "Args": record.args,
        "State": _state(record),
        "Image": record.image,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": str(root / "log"),
        "Name": f"/{record.name}",
        "RestartCount": record.restart_count,
        "Driver": DRIVER,
        "Platform": platform,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": execs or None,
        "HostConfig": host_config(spec),
        "GraphDriver": {"Name": DRIVER, "Data": None},
        "Mounts": [mount_json(mount, root) for mount in spec.mounts if mount.kind != "tmpfs"],
        "Config": _config(spec),
        "NetworkSettings": network_settings(record),
        "Hybrid": hybrid_json(record, machine, origin),
    }


def _state(record: Record) -> dict[str, Any]:
    state: dict[str, Any] = {
        "Status": docker_status(record),
        "Running": record.status in ("running", "paused", "restarting"),
        "Paused": record.status == "paused",
        "Restarting": record.status == "restarting",
        "OOMKilled": record.oom_killed,
        "Dead": record.status == "dead",
        "Pid": record.pid,
        "ExitCode": record.exit_code,
        "Error": record.error,
        "StartedAt": times.rfc3339(record.started_ns),
        "FinishedAt": times.rfc3339(record.finished_ns),
    }
    if record.health is not None:
        state["Health"] = {
            "Status": record.health.status,
            "FailingStreak": record.health.failing,
            "Log": [
                {
                    "Start": times.rfc3339(probe.start_ns),
                    "End": times.rfc3339(probe.end_ns),
                    "ExitCode": probe.exit_code,
                    "Output": probe.output,
                }
                for probe in record.health.log
            ],
        }
    return state


def _config(spec: Spec) -> dict[str, Any]:
    config: dict[str, Any] = {
        "Hostname": spec.hostname,
        "Domainname": spec.domainname,
        "User": spec.user,
        "AttachStdin": spec.attach_stdin,
        "AttachStdout": spec.attach_stdout,
        "AttachStderr": spec.attach_stderr,
        "Tty": spec.tty,
        "OpenStdin": spec.stdin,
        "StdinOnce": spec.stdin_once,
        "Env": spec.env,
        "Cmd": spec.command,
        "Image": spec.image,
        "Volumes": {target: {} for target in spec.anonymous} or None,
        "WorkingDir": spec.working_dir,
        "Entrypoint": spec.entrypoint,
        "OnBuild": None,
        "Labels": spec.labels,
    }
    if spec.exposed or spec.ports:
        published = {f"{port.container_port}/{port.protocol}" for port in spec.ports}
        config["ExposedPorts"] = {
            port: {} for port in sorted({*map(_port, spec.exposed), *published})
        }
    if spec.health is not None:
        config["Healthcheck"] = health_json(spec.health)
    if spec.stop_signal:
        config["StopSignal"] = spec.stop_signal
    if spec.stop_timeout is not None:
        config["StopTimeout"] = spec.stop_timeout
    return config


def _port(text: str) -> str:
    return text if "/" in text else f"{text}/tcp"


def host_config(spec: Spec) -> dict[str, Any]:
    limits = spec.limits
    return {
        "Binds": [
            _bind_text(mount) for mount in spec.mounts if mount.kind == "bind" or mount.source
        ]
        or None,
        "ContainerIDFile": spec.container_id_file,
        "LogConfig": {"Type": spec.log_driver, "Config": spec.log_options},
        "NetworkMode": spec.network_mode,
        "PortBindings": port_bindings(spec.ports),
        "RestartPolicy": {"Name": spec.restart.name, "MaximumRetryCount": spec.restart.maximum},
        "AutoRemove": spec.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": None,
        "ConsoleSize": spec.console,
        "CapAdd": spec.cap_add or None,
        "CapDrop": spec.cap_drop or None,
        "CgroupnsMode": spec.cgroupns_mode or "private",
        "Dns": spec.dns,
        "DnsOptions": spec.dns_options,
        "DnsSearch": spec.dns_search,
        "ExtraHosts": spec.extra_hosts or None,
        "GroupAdd": spec.group_add or None,
        "IpcMode": spec.ipc_mode or "private",
        "Cgroup": "",
        "Links": None,
        "OomScoreAdj": spec.oom_score_adj,
        "PidMode": spec.pid_mode,
        "Privileged": spec.privileged,
        "PublishAllPorts": spec.publish_all,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": spec.security_options or None,
        "UTSMode": "",
        "UsernsMode": spec.userns_mode,
        "ShmSize": spec.shm_size or SHM_DEFAULT,
        "Sysctls": spec.sysctls or None,
        "Runtime": "hybrid-container" if spec.isolation == "container" else "hybrid-vm",
        "Isolation": spec.isolation,
        "CpuShares": limits.cpu_shares,
        "Memory": limits.memory,
        "NanoCpus": limits.nano_cpus,
        "CgroupParent": "",
        "BlkioWeight": limits.blkio_weight,
        "BlkioWeightDevice": [],
        "BlkioDeviceReadBps": _rate(limits.read_bps),
        "BlkioDeviceWriteBps": _rate(limits.write_bps),
        "BlkioDeviceReadIOps": _rate(limits.read_iops),
        "BlkioDeviceWriteIOps": _rate(limits.write_iops),
        "CpuPeriod": limits.cpu_period,
        "CpuQuota": limits.cpu_quota,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "Devices": [],
        "DeviceCgroupRules": None,
        "DeviceRequests": None,
        "MemoryReservation": limits.memory_reservation,
        "MemorySwap": limits.memory_swap,
        "MemorySwappiness": None,
        "OomKillDisable": None,
        "PidsLimit": limits.pids or None,
        "Ulimits": [{"Name": n, "Soft": s, "Hard": h} for n, (s, h) in spec.ulimits.items()],
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
        "Mounts": None,
        "Tmpfs": {m.target: ",".join(m.options) for m in spec.mounts if m.kind == "tmpfs"} or None,
        "MaskedPaths": spec.masked_paths,
        "ReadonlyPaths": spec.read_only_paths,
        "Annotations": spec.annotations or None,
    }


def _bind_text(mount: Mount) -> str:
    text = f"{mount.source}:{mount.target}"
    return f"{text}:ro" if mount.read_only else text


def mount_json(mount: Mount, root: Path) -> dict[str, Any]:
    base = {
        "Type": mount.kind,
        "Source": mount.source,
        "Destination": mount.target,
        "Mode": "ro" if mount.read_only else "",
        "RW": not mount.read_only,
        "Propagation": mount.propagation or ("rprivate" if mount.kind == "bind" else ""),
    }
    if mount.kind == "volume":
        base["Name"], base["Driver"] = mount.source, "local"
        base["Source"] = str(root.parents[1] / "volumes" / mount.source / "_data")
    return base


def port_bindings(ports: list[Port]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        found.setdefault(f"{port.container_port}/{port.protocol}", []).append(
            {"HostIp": port.host_ip, "HostPort": str(port.host_port) if port.host_port else ""}
        )
    return found


def _open_ports(record: Record) -> dict[str, list[dict[str, str]] | None]:
    if not record.live:
        return {}
    found: dict[str, list[dict[str, str]] | None] = {
        _port(text): None for text in record.spec.exposed
    }
    for one in record.published:
        key = f"{one.container_port}/{one.protocol}"
        places = found.get(key) or []
        found[key] = [*places, {"HostIp": one.host_ip, "HostPort": str(one.host_port)}]
    return found


def endpoint_json(record: Record, name: str, endpoint: Endpoint) -> dict[str, Any]:
    asked = {"IPv4Address": endpoint.wanted_ip} if endpoint.wanted_ip else None
    own = list(
        dict.fromkeys([record.name, *endpoint.aliases, record.short_id, record.spec.hostname])
    )
    return {
        "IPAMConfig": asked,
        "Links": None,
        "Aliases": endpoint.aliases or None,
        "MacAddress": endpoint.mac or endpoint.wanted_mac,
        "DriverOpts": endpoint.driver_options or None,
        "GwPriority": 0,
        "NetworkID": endpoint.network,
        "EndpointID": endpoint.endpoint_id,
        "Gateway": endpoint.gateway,
        "IPAddress": endpoint.ip,
        "IPPrefixLen": endpoint.prefix,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": own if name != "bridge" else None,
    }


def network_settings(record: Record) -> dict[str, Any]:
    first = record.endpoints.get("bridge", Endpoint(""))
    return {
        "Bridge": "",
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": _open_ports(record),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": first.endpoint_id,
        "Gateway": first.gateway,
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": first.ip,
        "IPPrefixLen": first.prefix,
        "IPv6Gateway": "",
        "MacAddress": first.mac,
        "Networks": {
            name: endpoint_json(record, name, one) for name, one in _endpoints(record).items()
        },
    }


def _endpoints(record: Record) -> dict[str, Endpoint]:
    if record.endpoints:
        return record.endpoints
    mode = record.spec.network_mode
    return {mode: Endpoint("")} if mode in ("none", "host") else {}


def listed(record: Record, machine: str, root: Path) -> dict[str, Any]:
    """One entry of ``GET /containers/json``."""
    command = " ".join([record.path, *record.args])
    ports: list[dict[str, Any]] = []
    for key, places in _open_ports(record).items():
        number, _, protocol = key.partition("/")
        if places is None:
            ports.append({"PrivatePort": int(number), "Type": protocol})
        for place in places or []:
            ports.append(
                {
                    "IP": place["HostIp"],
                    "PrivatePort": int(number),
                    "PublicPort": int(place["HostPort"]),
                    "Type": protocol,
                }
            )
    return {
        "Id": record.id,
        "Names": [f"/{record.name}"],
        "Image": record.spec.image,
        "ImageID": record.image,
        "Command": command,
        "Created": record.created_ns // 1_000_000_000,
        "Ports": ports,
        "Labels": record.spec.labels,
        "State": docker_status(record),
        "Status": status_text(record),
        "HostConfig": {"NetworkMode": record.spec.network_mode},
        "NetworkSettings": {
            "Networks": {
                name: endpoint_json(record, name, one) for name, one in _endpoints(record).items()
            }
        },
        "Mounts": [
            mount_json(mount, root) for mount in record.spec.mounts if mount.kind != "tmpfs"
        ],
        "Hybrid": {
            "Isolation": record.spec.isolation or "vm",
            "Machine": machine,
            "Kernel": record.kernel,
            "ReadyAfter": record.ready_after,
        },
    }


def _rate(rate: int) -> list[dict[str, Any]]:
    return [{"Path": OWN_DISK, "Rate": rate}] if rate else []
