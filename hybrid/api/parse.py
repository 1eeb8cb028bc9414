"""Docker's container bodies → the engine's ``Spec``. Pure. What cannot be honoured is refused, naming the field."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from hybrid.api.fields import Fields, number_within, one_line
from hybrid.engine.container import OWN_DISK, HealthCheck, Limits, Mount, Port, Restart, Spec
from hybrid.engine.execs import ExecSpec
from hybrid.errors import Forbidden, InvalidInput, Unsupported
from hybrid.policy import isolation

# Members that only carry what a client remembers, or that describe Windows.
_REMEMBERED = ("AttachStdin", "AttachStdout", "AttachStderr", "ArgsEscaped", "OnBuild")
_LOG_DRIVERS = frozenset({"", "json-file", "local", "journald", "none"})
_MOUNT_FLAGS = frozenset(
    {"ro", "rw", "z", "Z", "nocopy", "rprivate", "private", "cached", "delegated", "consistent"}
)


def container_spec(body: Any, caller: tuple[int, int]) -> Spec:
    """``POST /containers/create``. ``caller``: the uid and gid whose rights bind mounts have."""
    fields = Fields(body)
    host = fields.inner("HostConfig")
    spec = Spec(
        image=fields.text("Image"),
        hostname=fields.text("Hostname"),
        domainname=fields.text("Domainname"),
        user=fields.text("User"),
        env=fields.strings("Env") or [],
        entrypoint=fields.strings("Entrypoint"),
        command=fields.strings("Cmd"),
        working_dir=fields.text("WorkingDir"),
        labels=fields.table("Labels"),
        tty=fields.flag("Tty"),
        stdin=fields.flag("OpenStdin"),
        stdin_once=fields.flag("StdinOnce"),
        attach_stdin=fields.flag("AttachStdin"),
        attach_stdout=fields.flag("AttachStdout"),
        attach_stderr=fields.flag("AttachStderr"),
        stop_signal=fields.text("StopSignal"),
        stop_timeout=fields.integer("StopTimeout") if "StopTimeout" in fields else None,
        health=health_check(fields.inner("Healthcheck")) if "Healthcheck" in fields else None,
        exposed=_exposed(fields.object("ExposedPorts")),
        anonymous=sorted(fields.object("Volumes")),
    )
    if not spec.image:
        raise InvalidInput(
            "config cannot be empty in order to create a container: Image is missing"
        )
    fields.ignore(*_REMEMBERED)
    if fields.flag("NetworkDisabled"):
        spec.network_mode = "none"
    mac = fields.text("MacAddress")
    _host_config(host, spec, caller)
    _check_rights(spec, caller)
    spec.networks_asked = _networks(fields.inner("NetworkingConfig"))
    if mac:
        spec.networks_asked.setdefault(_network_name(spec.network_mode), {})["mac"] = mac
    fields.finish()
    return spec


def _check_rights(spec: Spec, caller: tuple[int, int]) -> None:
    """A member of the socket's group is not this host's root, nor a box's, and does not become it."""
    isolated = isolation.parse(spec.isolation).kind in ("vm", "shared")
    if caller[0] != 0 and spec.userns_mode == "host" and not isolated:
        raise Forbidden(
            f"--userns=host with isolation {spec.isolation} is for root only: it would make you root of that"
            " machine; use isolation vm, or leave out --userns"
        )


def _network_name(mode: str) -> str:
    return "bridge" if mode in ("", "default") else mode


def health_check(fields: Fields) -> HealthCheck:
    check = HealthCheck(
        test=fields.strings("Test") or [],
        interval=fields.integer("Interval"),
        timeout=fields.integer("Timeout"),
        start_period=fields.integer("StartPeriod"),
        start_interval=fields.integer("StartInterval"),
        retries=fields.integer("Retries"),
    )
    fields.finish()
    return check


def _host_config(host: Fields, spec: Spec, caller: tuple[int, int]) -> None:
    mode = host.text("NetworkMode")
    if spec.network_mode != "none":
        spec.network_mode = mode or "default"
    spec.isolation = _isolation(host)
    spec.pid_mode, spec.ipc_mode = host.text("PidMode"), host.text("IpcMode")
    spec.cgroupns_mode, spec.userns_mode = host.text("CgroupnsMode"), host.text("UsernsMode")
    if host.text("UTSMode") not in ("", "private"):
        raise Unsupported("HostConfig.UTSMode is not supported by this build: leave it out")
    spec.auto_remove, spec.privileged = host.flag("AutoRemove"), host.flag("Privileged")
    spec.read_only, spec.publish_all = host.flag("ReadonlyRootfs"), host.flag("PublishAllPorts")
    spec.cap_add, spec.cap_drop = host.strings("CapAdd") or [], host.strings("CapDrop") or []
    spec.security_options = host.strings("SecurityOpt") or []
    spec.group_add = host.strings("GroupAdd") or []
    spec.sysctls = {
        name: one_line(value.replace("\t", " "), f"value of sysctl {name}")
        for name, value in host.table("Sysctls").items()
    }
    spec.shm_size = host.integer("ShmSize")
    if spec.shm_size < 0:
        raise InvalidInput("SHM size can not be less than 0")
    spec.oom_score_adj = host.integer("OomScoreAdj")
    spec.extra_hosts = _extra_hosts(host.strings("ExtraHosts") or [])
    spec.dns = [_address(one, "DNS server") for one in host.strings("Dns") or []]
    spec.dns_search = [
        one_line(one, "DNS search domain") for one in host.strings("DnsSearch") or []
    ]
    spec.dns_options = [one_line(one, "DNS option") for one in host.strings("DnsOptions") or []]
    spec.container_id_file = host.text("ContainerIDFile")
    spec.annotations = host.table("Annotations")
    if any(key.startswith("run.oci.") for key in spec.annotations):
        raise Unsupported("HostConfig.Annotations: those of the runtime (run.oci.…) cannot be set")
    spec.console = _console(host.raw("ConsoleSize"))
    spec.restart = restart_policy(host.inner("RestartPolicy"))
    spec.ports = _ports(host.object("PortBindings"))
    spec.ulimits = _ulimits(host)
    spec.limits = limits(host)
    spec.mounts = _mounts(host, caller)
    _paths(host, spec)
    _logging(host.inner("LogConfig"), spec)
    if host.text("VolumeDriver") not in ("", "local"):
        raise Unsupported("HostConfig.VolumeDriver is not supported by this build: only 'local' is")
    if host.raw("MemorySwappiness") not in (None, -1, 0):
        raise Unsupported(
            "HostConfig.MemorySwappiness is not supported by this build: leave it out"
        )
    host.finish()


def _isolation(host: Fields) -> str:
    """Its text, or "" if nobody asked for one."""
    asked, runtime = host.text("Isolation"), host.text("Runtime")
    if runtime in ("runc", "io.containerd.runc.v2"):
        raise InvalidInput(
            f"unknown or invalid runtime name: {runtime}: use hybrid-vm or hybrid-container, or --isolation"
        )
    if not asked and not runtime:
        return ""
    return str(isolation.choose(asked, runtime))


def _console(value: Any) -> list[int]:
    if value is None:
        return [0, 0]
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(one) is int and 0 <= one < 65536 for one in value)
    ):
        raise InvalidInput("invalid request: ConsoleSize must be two small whole numbers")
    return list(value)


def restart_policy(fields: Fields) -> Restart:
    policy = Restart(fields.text("Name") or "no", fields.integer("MaximumRetryCount"))
    fields.finish()
    return policy


def _ports(bindings: dict[str, Any]) -> list[Port]:
    ports = []
    for key, places in bindings.items():
        number, protocol = _port_key(key)
        if not isinstance(places, list | None):
            raise InvalidInput(f"invalid request: PortBindings[{key}] must be a list")
        for place in places or [{}]:
            fields = Fields(place, f"PortBindings[{key}].")
            text = fields.text("HostPort")
            host_port = number_within(text or "0", 0, 65535)
            if host_port is None:
                raise InvalidInput(
                    f"invalid host port: {text[:40]!r} (a number from 0 to 65535; ranges are not supported)"
                )
            host_ip = fields.text("HostIp")
            if ":" in host_ip:
                raise Unsupported(
                    f"publishing on the IPv6 address {host_ip} is not supported: use an IPv4 address"
                )
            if host_ip:
                _address(host_ip, "host address to publish on")
            ports.append(Port(number, protocol, host_ip, host_port))
            fields.finish()
    return ports


def _port_key(key: str) -> tuple[int, str]:
    """``80/tcp``, or ``80``."""
    text, _, protocol = key.partition("/")
    number = number_within(text, 1, 65535)
    if number is None or protocol not in ("", "tcp", "udp"):
        raise InvalidInput(
            f"invalid port specification: {key[:40]!r}: use PORT, PORT/tcp or PORT/udp"
        )
    return number, protocol or "tcp"


def _exposed(keys: Iterable[str]) -> list[str]:
    """``ExposedPorts``: ports, or ranges of them."""
    for key in keys:
        ports, _, protocol = key.partition("/")
        for port in ports.split("-", 1):
            _port_key(f"{port}/{protocol or 'tcp'}")
    return sorted(keys)


def _address(text: str, what: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise InvalidInput(f"invalid {what} {text[:80]!r}: an IP address is needed") from None
    return text


def _extra_hosts(entries: list[str]) -> list[str]:
    """``NAME:ADDRESS`` (or ``NAME=ADDRESS``), as lines of /etc/hosts are made of them."""
    for entry in entries:
        name, _, address = one_line(entry, "extra host").partition("=" if ":" not in entry else ":")
        if not name or any(c.isspace() for c in entry):
            raise InvalidInput(f"bad format for add-host: {entry[:80]!r}")
        if address != "host-gateway":
            _address(address.strip("[]"), "address of an extra host")
    return entries


def _ulimits(host: Fields) -> dict[str, list[int]]:
    found = {}
    for item in host.items("Ulimits"):
        found[item.text("Name")] = [item.integer("Soft"), item.integer("Hard")]
        item.finish()
    return found


def limits(host: Fields) -> Limits:
    """Also the body of ``POST /containers/{id}/update``."""
    swap = host.integer("MemorySwap")
    return Limits(
        memory=host.integer("Memory"),
        memory_swap=swap,
        memory_reservation=host.integer("MemoryReservation"),
        nano_cpus=host.integer("NanoCpus"),
        cpu_shares=host.integer("CpuShares"),
        cpu_period=host.integer("CpuPeriod"),
        cpu_quota=host.integer("CpuQuota"),
        cpuset_cpus=host.text("CpusetCpus"),
        cpuset_mems=host.text("CpusetMems"),
        pids=host.integer("PidsLimit"),
        blkio_weight=host.integer("BlkioWeight"),
        read_bps=_rate(host, "BlkioDeviceReadBps"),
        write_bps=_rate(host, "BlkioDeviceWriteBps"),
        read_iops=_rate(host, "BlkioDeviceReadIOps"),
        write_iops=_rate(host, "BlkioDeviceWriteIOps"),
    )


def _rate(host: Fields, name: str) -> int:
    """Docker names a device of its host, and a container in a guest has none of these: only OWN_DISK is taken."""
    rate = 0
    for item in host.items(name):
        path, rate = item.text("Path"), item.integer("Rate")
        item.finish()
        if path != OWN_DISK:
            raise InvalidInput(
                f"{name}: {path!r} is a device of the host: say '{OWN_DISK}', the disk of the container's own"
                " file system"
            )
    return rate


def _paths(host: Fields, spec: Spec) -> None:
    """The docker CLI says ``systempaths=unconfined`` with two empty lists; null is the default."""
    masked, read_only = host.strings("MaskedPaths"), host.strings("ReadonlyPaths")
    if (masked == [] or read_only == []) and not spec.privileged:
        spec.security_options = [*spec.security_options, "systempaths=unconfined"]
    spec.masked_paths, spec.read_only_paths = masked or None, read_only or None


def _logging(fields: Fields, spec: Spec) -> None:
    driver = fields.text("Type")
    if driver not in _LOG_DRIVERS - {"journald"}:
        raise InvalidInput(
            f"logger: no log driver named '{driver}' is registered: this build has json-file, local and none"
        )
    spec.log_driver = driver or "json-file"
    spec.log_options = fields.table("Config")
    if unknown := sorted(spec.log_options.keys() - {"max-size", "max-file"}):
        raise Unsupported(f"log option {unknown[0]!r} is not supported by this build: leave it out")
    if spec.log_options:
        raise Unsupported(
            "log rotation (max-size, max-file) is not supported by this build: leave it out"
        )


def _mounts(host: Fields, caller: tuple[int, int]) -> list[Mount]:
    found = [_bind(text, caller) for text in host.strings("Binds") or []]
    found += [_mount(fields, caller) for fields in host.items("Mounts")]
    for target, options in host.table("Tmpfs").items():
        found.append(Mount("tmpfs", "", target, options=[one for one in options.split(",") if one]))
    targets = [mount.target.rstrip("/") for mount in found]
    for target in targets:
        if targets.count(target) > 1:
            raise InvalidInput(f"Duplicate mount point: {target}")
    return found


def _bind(text: str, caller: tuple[int, int]) -> Mount:
    """``SOURCE:TARGET[:OPTIONS]``: a path is a bind mount, a name a volume; ``TARGET`` alone an anonymous volume."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidInput(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return Mount("volume", "", parts[0], anonymous=True)
    source, target = parts[0], parts[1]
    options = parts[2].split(",") if len(parts) == 3 else []
    if unknown := [one for one in options if one not in _MOUNT_FLAGS]:
        raise InvalidInput(f"invalid mode: {unknown[0]} (in '{text}')")
    is_path = source.startswith("/")
    return Mount(
        "bind" if is_path else "volume",
        source,
        target,
        read_only="ro" in options,
        create_source=is_path,
        copy="nocopy" not in options,
        uid=caller[0],
        gid=caller[1],
    )


def _mount(fields: Fields, caller: tuple[int, int]) -> Mount:
    kind = fields.text("Type")
    if kind not in ("bind", "volume", "tmpfs"):
        raise InvalidInput(f"mount type {kind!r} unknown: use bind, volume or tmpfs")
    mount = Mount(
        kind,  # type: ignore[arg-type]
        fields.text("Source"),
        fields.text("Target"),
        read_only=fields.flag("ReadOnly"),
        uid=caller[0],
        gid=caller[1],
    )
    fields.ignore("Consistency")
    bind, volume, tmpfs = (fields.inner(f"{name}Options") for name in ("Bind", "Volume", "Tmpfs"))
    mount.propagation = bind.text("Propagation")
    mount.create_source = bind.flag("CreateMountpoint")
    mount.copy = not volume.flag("NoCopy")
    mount.subpath = volume.text("Subpath")
    if mount.subpath.startswith("/") or ".." in mount.subpath.split("/"):
        raise InvalidInput(
            f"subpath {mount.subpath[:80]!r} must be a relative path within the volume"
        )
    volume.ignore("Labels")
    driver = volume.inner("DriverConfig")
    if driver.text("Name") not in ("", "local"):
        raise Unsupported("Mounts: only the volume driver 'local' is supported")
    if size := tmpfs.integer("SizeBytes"):
        mount.options.append(f"size={size}")
    if mode := tmpfs.integer("Mode"):
        mount.options.append(f"mode={mode:o}")
    for one in (bind, volume, driver, tmpfs, fields):
        one.finish()
    if not mount.target:
        raise InvalidInput("invalid mount config: field Target must not be empty")
    if kind == "bind" and not mount.source:
        raise InvalidInput('invalid mount config for type "bind": field Source must not be empty')
    return mount


def _networks(fields: Fields) -> dict[str, dict[str, Any]]:
    found = {}
    for name, value in fields.object("EndpointsConfig").items():
        found[_network_name(name)] = endpoint(Fields(value, f"EndpointsConfig[{name}]."))
    fields.finish()
    return found


def endpoint(fields: Fields) -> dict[str, Any]:
    """One endpoint's settings, as ``Containers`` reads them."""
    addresses = fields.inner("IPAMConfig")
    settings = {
        "aliases": fields.strings("Aliases") or [],
        "ip": addresses.text("IPv4Address"),
        "mac": fields.text("MacAddress"),
        "options": fields.table("DriverOpts"),
    }
    # What an inspected endpoint says about its past; clients send it back.
    fields.ignore("NetworkID", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "DNSNames")
    addresses.finish()
    fields.finish()
    return settings


def exec_spec(body: Any) -> ExecSpec:
    """``POST /containers/{id}/exec``."""
    fields = Fields(body)
    spec = ExecSpec(
        command=fields.strings("Cmd") or [],
        env=fields.strings("Env") or [],
        user=fields.text("User"),
        working_dir=fields.text("WorkingDir"),
        tty=fields.flag("Tty"),
        privileged=fields.flag("Privileged"),
        attach_stdin=fields.flag("AttachStdin"),
        attach_stdout=fields.flag("AttachStdout"),
        attach_stderr=fields.flag("AttachStderr"),
        detach_keys=fields.text("DetachKeys"),
        console=_console(fields.raw("ConsoleSize")),
    )
    fields.ignore("Detach", "Container")
    fields.finish()
    return spec
