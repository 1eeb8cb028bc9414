"""From a container's record to what the machine is told: the runtime spec's request, shares and small files.

Pure, but for the question whether a bind source is a directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from hybrid.engine.container import Mount, Record, Spec
from hybrid.engine.machine import ShareUse
from hybrid.engine.networks import Joined
from hybrid.errors import Forbidden
from hybrid.policy import isolation as isolations
from hybrid.policy.mounts import MountRequest
from hybrid.policy.process import Rlimit
from hybrid.policy.profile import Profile
from hybrid.policy.resources import ResourceRequest
from hybrid.policy.runtime_spec import SpecRequest
from hybrid.wire.messages import MachineFacts, Share, Source

NetworkKind = Literal["none", "own", "host", "container"]
# hosts(5) of every container, as Docker writes it.
HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
HOST_GATEWAY = "host-gateway"


@dataclass
class Mounts:
    """The container's mounts, as the policy, the agent and the machine want them."""

    requests: list[MountRequest] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    uses: list[ShareUse] = field(default_factory=list)


def network_kind(spec: Spec) -> tuple[NetworkKind, str]:
    """How the container is connected, and the container whose network it joins."""
    mode = spec.network_mode
    if mode in ("none", "host"):
        return ("none" if mode == "none" else "host"), ""
    if mode.startswith("container:"):
        return "container", mode.partition(":")[2]
    return "own", ""


def joined_containers(spec: Spec) -> list[str]:
    """References to the containers whose namespaces it joins."""
    modes = (spec.network_mode, spec.pid_mode, spec.ipc_mode)
    return [mode.partition(":")[2] for mode in modes if mode.startswith("container:")]


def mounts(wanted: Sequence[Mount], directories: dict[str, Path], *, by_share: bool) -> Mounts:
    """``directories``: where the volumes are. ``by_share``: through a file server, else as directories of this host."""
    found = Mounts()
    for mount in wanted:
        if mount.kind == "tmpfs":
            found.requests.append(
                MountRequest(
                    "tmpfs", mount.target, mount.read_only, options=",".join(mount.options)
                )
            )
            continue
        source, subpath, use = _source(mount, directories, by_share)
        if use is not None and use.tag not in {one.tag for one in found.uses}:
            found.uses.append(use)
        found.requests.append(
            MountRequest(
                "share",
                mount.target,
                mount.read_only,
                share=len(found.shares),
                propagation=mount.propagation,
            )
        )
        populate = mount.kind == "volume" and mount.copy
        found.shares.append(Share(source, subpath, populate=populate))
    return found


def _source(
    mount: Mount, directories: dict[str, Path], by_share: bool
) -> tuple[Source, str, ShareUse | None]:
    volume = mount.kind == "volume"
    directory = directories[mount.source] if volume else Path(mount.source)
    if not by_share:
        if not volume and mount.uid != 0:
            raise Forbidden(
                f"bind mount of {directory}: with isolation container the kernel would grant it root's rights, not"
                " yours; use isolation vm, or a volume"
            )
        return Source("directory", str(directory)), mount.subpath, None
    # The share of a single file is a directory that holds just that file.
    subpath = mount.subpath if directory.is_dir() else directory.name
    owner = None if volume else (mount.uid, mount.gid)
    # A volume may be written through one mount and read through another: one server for both.
    read_only = mount.read_only and not volume
    mark = f"{directory}\0{owner}\0{read_only}"
    tag = f"s{hashlib.sha256(mark.encode()).hexdigest()[:16]}"
    return Source("tag", tag), subpath, ShareUse(tag, directory, owner, read_only)


def spec_request(
    record: Record,
    profile: Profile,
    facts: MachineFacts | None,
    requests: Sequence[MountRequest],
    *,
    id_base: int,
) -> SpecRequest:
    """``facts`` None: for checking the request before there is a machine."""
    spec = record.spec
    kind, _ = network_kind(spec)
    more = {"architecture": facts.architecture, "kernel": facts.kernel} if facts else {}
    return SpecRequest(
        container=record.id,
        profile=profile,
        args=[record.path, *record.args],
        isolation=isolations.parse(spec.isolation),
        cgroup=facts.cgroup if facts else "v2",
        id_map=(id_base, 65536),
        env=spec.env,
        user=spec.user,
        group_add=spec.group_add,
        cwd=spec.working_dir,
        hostname=spec.hostname,
        domainname=spec.domainname,
        terminal=spec.tty,
        rows=spec.console[0],
        columns=spec.console[1],
        cap_add=spec.cap_add,
        cap_drop=spec.cap_drop,
        security_opt=spec.security_options,
        privileged=spec.privileged,
        network=kind,
        pid=spec.pid_mode,
        ipc=spec.ipc_mode,
        cgroupns=spec.cgroupns_mode,
        userns=spec.userns_mode,
        resources=ResourceRequest(**asdict(spec.limits)),
        rlimits=[Rlimit(name, soft, hard) for name, (soft, hard) in spec.ulimits.items()],
        sysctls=spec.sysctls,
        oom_score_adj=spec.oom_score_adj,
        shm_size=spec.shm_size,
        read_only=spec.read_only,
        mounts=requests,
        masked_paths=spec.masked_paths,
        readonly_paths=spec.read_only_paths,
        annotations=spec.annotations,
        **more,
    )


def files(
    record: Record, joined: Sequence[Joined], host_resolv_conf: str, host_hosts: str
) -> dict[str, str]:
    """``/etc/hosts``, ``/etc/hostname`` and ``/etc/resolv.conf`` of the container."""
    spec = record.spec
    kind, _ = network_kind(spec)
    gateways = [one.endpoint.gateway for one in joined]
    hosts = host_hosts if kind == "host" else HOSTS
    for item in spec.extra_hosts:
        name, _, address = item.partition(":") if ":" in item else item.partition("=")
        if address == HOST_GATEWAY:
            address = gateways[0] if gateways else "127.0.0.1"
        hosts += f"{address}\t{name}\n"
    full = f"{spec.hostname}.{spec.domainname} " if spec.domainname else ""
    for one in joined:
        hosts += f"{one.endpoint.ip}\t{full}{spec.hostname}\n"
    return {
        "/etc/hosts": hosts,
        "/etc/hostname": spec.hostname + "\n",
        "/etc/resolv.conf": _resolv_conf(spec, gateways, host_resolv_conf),
    }


def _resolv_conf(spec: Spec, gateways: list[str], host_resolv_conf: str) -> str:
    servers = spec.dns or gateways
    if not servers and not spec.dns_search and not spec.dns_options:
        return host_resolv_conf if spec.network_mode == "host" else ""
    lines = [f"nameserver {server}" for server in servers[:3]]
    if spec.dns_search and spec.dns_search != ["."]:
        lines.append("search " + " ".join(spec.dns_search))
    lines.append("options " + " ".join(spec.dns_options or ["ndots:0"]))
    return "\n".join(lines) + "\n"
