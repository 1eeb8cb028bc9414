"""The OCI runtime-spec config of a container: image and request, confined by a policy profile.
Pure.

``build`` leaves to the machine's agent only what the machine alone knows: ``root.path``, what a
share is, the paths of namespaces that are joined or readied (user, network), and ids behind user
and group names (``process.user``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hybrid.errors import Forbidden, InvalidInput
from hybrid.policy import (
    capabilities,
    mounts,
    process,
    resources,
    seccomp,
    security_options,
    sysctls,
)
from hybrid.policy.isolation import Isolation
from hybrid.policy.profile import Profile
from hybrid.policy.security_options import SecurityOptions, permit

VERSION = "1.0.2"
DEFAULT_IDS = (100_000, 65_536)
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?")
# type, major, minor of the devices that every container may use (OCI runtime spec, "Default
# Devices", and ptys)
_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))


@dataclass(frozen=True, slots=True)
class SpecRequest:
    """What a container asks for, image and request already merged (``process.merge_command``,
    ``merge_env``).

    ``args``: entry point plus command. ``pid``, ``ipc``, ``uts``, ``cgroupns``, ``userns``:
    Docker's mode words ("" or ``private``, ``host``, ``container:ID``; ``ipc`` also ``none`` and
    ``shareable``). ``architecture``, ``kernel`` and ``cgroup`` are facts of the machine that will
    run it; ``id_map`` is its (base, size) there.
    """

    container: str
    profile: Profile
    args: Sequence[str]
    isolation: Isolation = field(default_factory=lambda: Isolation("vm"))
    architecture: str = "x86_64"
    kernel: str = ""
    cgroup: resources.Cgroup = "v2"
    id_map: tuple[int, int] = DEFAULT_IDS
    env: Sequence[str] = ()
    user: str = ""
    group_add: Sequence[str] = ()
    cwd: str = ""
    hostname: str = ""
    domainname: str = ""
    terminal: bool = False
    rows: int = 0
    columns: int = 0
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    security_opt: Sequence[str] = ()
    privileged: bool = False
    network: Literal["none", "own", "host", "container"] = "own"
    pid: str = ""
    ipc: str = ""
    uts: str = ""
    cgroupns: str = ""
    userns: str = ""
    resources: resources.ResourceRequest = field(default_factory=resources.ResourceRequest)
    rlimits: Sequence[process.Rlimit] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    oom_score_adj: int = 0
    shm_size: int = 0
    read_only: bool = False
    mounts: Sequence[mounts.MountRequest] = ()
    masked_paths: Sequence[str] | None = None  # None: the profile's
    readonly_paths: Sequence[str] | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


def uses_user_namespace(profile: Profile, userns: str, privileged: bool) -> bool:
    """Whether the container gets ids of its own. Off: the profile says so, ``--userns=host``,
    ``--privileged`` (which needs real root to be what it says, as Docker's remapping does too).
    """
    if userns not in ("", "private", "host"):
        raise InvalidInput(f"invalid USER mode: {userns}")
    if userns == "host" and profile.user_namespace and not privileged:
        permit(profile.may.disable_user_namespace, "--userns=host", "disable_user_namespace")
    return profile.user_namespace and userns != "host" and not privileged


def build(request: SpecRequest) -> dict[str, Any]:
    """The complete config. Whatever can't be honoured is refused here, with the reason."""
    _check_modes(request)
    profile = request.profile
    options = _options(request)
    own_ipc = not request.ipc or request.ipc in ("private", "shareable")
    ids = (
        request.id_map if uses_user_namespace(profile, request.userns, request.privileged) else None
    )
    caps = _capabilities(request)
    _keep_off_this_host(request, caps, mapped=ids is not None)
    hostname = _hostname(request)
    config: dict[str, Any] = {
        "ociVersion": VERSION,
        "process": _process(request, options, caps, hostname),
        "root": {"path": "rootfs", "readonly": request.read_only},
        "mounts": mounts.build(
            request.mounts,
            request.shm_size or profile.limits.shm,
            own_ipc=own_ipc,
            privileged=request.privileged,
        ),
        "annotations": dict(request.annotations),
        "linux": _linux(request, options, caps, ids, own_ipc),
    }
    if request.uts != "host":
        config["hostname"] = hostname
        if request.domainname:
            config["domainname"] = _name(request.domainname, "domain name")
    return config


def warnings(request: SpecRequest) -> list[str]:
    """One line for each guard that this request takes down; to be shown at create and at each
    start.
    """
    lines = [f"{text} (asked for with --security-opt)" for text in _options(request).relaxed]
    if request.privileged:
        lines.append(
            "--privileged: the container's inner boundary is down, only its guest's kernel stands"
        )
    elif request.userns == "host" and request.profile.user_namespace:
        lines.append("--userns=host: root in the container is root of its machine")
    if request.isolation.kind == "container":
        lines.append(
            "isolation container: the host's own kernel runs this container; one boundary only"
        )
    return lines


def _check_modes(request: SpecRequest) -> None:
    """Three cases a mode: of its own (fine), another container's (the agent joins it), the
    machine's (permission).
    """
    profile = request.profile
    for flag, mode in (
        ("--pid", request.pid),
        ("--ipc", request.ipc),
        ("--uts", request.uts),
        ("--cgroupns", request.cgroupns),
    ):
        if mode == "host":
            permit(profile.may.host_namespaces, f"{flag}=host", "host_namespaces")
        elif mode.startswith("container:") and flag in ("--pid", "--ipc"):
            continue
        elif mode not in ("", "private") and not (
            flag == "--ipc" and mode in ("none", "shareable")
        ):
            raise InvalidInput(f"invalid {flag} mode: {mode}")
    if request.privileged:
        permit(profile.may.privileged, "--privileged", "privileged")
        if request.isolation.kind == "container":
            raise Forbidden(
                "--privileged is refused with isolation container: nothing would be left"
            )


def _options(request: SpecRequest) -> SecurityOptions:
    options = security_options.parse(request.security_opt, request.profile)
    if not request.privileged:
        return options
    return SecurityOptions(False, None, masked=False, relaxed=options.relaxed)


def _capabilities(request: SpecRequest) -> list[str]:
    if request.privileged:
        return list(capabilities.ALL)
    profile = request.profile
    return capabilities.select(
        profile.capabilities, request.cap_add, request.cap_drop, profile.may_add
    )


def _keep_off_this_host(request: SpecRequest, caps: list[str], *, mapped: bool) -> None:
    """Root of this host may not have more than Docker's capabilities: that is --privileged by other words."""
    more = sorted(set(caps) - set(capabilities.DEFAULT))
    if request.isolation.kind == "container" and not mapped and more:
        raise Forbidden(
            f"{', '.join(more)} without a user namespace is refused with isolation container: root in the"
            " container would be root of this host; leave out --userns=host or the added capabilities"
        )


def _name(text: str, what: str) -> str:
    if not _HOSTNAME.fullmatch(text):
        raise InvalidInput(f"invalid {what}: {text[:80]!r}")
    return text


def _hostname(request: SpecRequest) -> str:
    return _name(request.hostname, "hostname") if request.hostname else request.container[:12]


def _process(
    request: SpecRequest, options: SecurityOptions, caps: list[str], hostname: str
) -> dict[str, Any]:
    groups = process.groups(request.group_add)
    user = process.user(request.user)
    if groups:
        user["additionalGids"] = groups
    if not -1000 <= request.oom_score_adj <= 1000:
        raise InvalidInput("invalid value for oom score adj: the range is -1000 to 1000")
    built: dict[str, Any] = {
        "terminal": request.terminal,
        "user": user,
        "args": process.arguments(request.args),
        "env": process.environment(request.env, hostname, request.terminal),
        "cwd": process.working_directory(request.cwd),
        # As Docker: nothing inheritable or ambient, so a program of another user than root starts
        # without any
        "capabilities": {
            "bounding": caps,
            "effective": caps,
            "permitted": caps,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": _rlimits(request),
        "noNewPrivileges": options.no_new_privileges,
        "oomScoreAdj": request.oom_score_adj,
    }
    if request.terminal and request.rows and request.columns:
        built["consoleSize"] = {"height": request.rows, "width": request.columns}
    return built


def _rlimits(request: SpecRequest) -> list[dict[str, Any]]:
    chosen = {
        name: process.Rlimit(name, soft, hard)
        for name, (soft, hard) in request.profile.limits.rlimits.items()
    }
    chosen |= {item.name: item for item in request.rlimits}
    return process.rlimits(list(chosen.values()))


def _linux(
    request: SpecRequest,
    options: SecurityOptions,
    caps: list[str],
    ids: tuple[int, int] | None,
    own_ipc: bool,
) -> dict[str, Any]:
    profile = request.profile
    limits = resources.build(request.resources, profile.limits, request.cgroup)
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in _namespaces(request, ids is not None)],
        "resources": {"devices": _device_rules(request.privileged), **limits},
        "sysctl": sysctls.build(
            request.sysctls,
            own_network=request.network in ("own", "none"),
            own_ipc=own_ipc,
            ids=ids[1] if ids else 0,
        ),
        "rootfsPropagation": "rprivate",
        # The kernel's default, said: crun itself may run with fixed addresses (``Configure.emulated``).
        "personality": {"domain": "LINUX"},
        "maskedPaths": _paths(request.masked_paths, profile.masked_paths, request, options.masked),
        "readonlyPaths": _paths(
            request.readonly_paths, profile.readonly_paths, request, options.masked
        ),
    }
    if ids:
        mapping = [{"containerID": 0, "hostID": ids[0], "size": ids[1]}]
        linux["uidMappings"] = linux["gidMappings"] = mapping
    if options.seccomp_profile:
        linux["seccomp"] = seccomp.for_capabilities(
            options.seccomp_profile,
            caps,
            request.architecture,
            request.kernel,
            guest=request.isolation.kind in ("vm", "shared"),
        )
    return linux


def _namespaces(request: SpecRequest, user: bool) -> list[str]:
    shared = {
        "pid": request.pid == "host",
        "ipc": request.ipc == "host",
        "uts": request.uts == "host",
        "mount": False,
        "cgroup": request.cgroupns == "host",
        "network": request.network == "host",
        "user": not user,
    }
    return [kind for kind, of_machine in shared.items() if not of_machine]


def _device_rules(privileged: bool) -> list[dict[str, Any]]:
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor in _DEVICES:
        rule: dict[str, Any] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        rules.append(rule if minor is None else {**rule, "minor": minor})
    return rules


def _paths(
    requested: Sequence[str] | None, default: Sequence[str], request: SpecRequest, masked: bool
) -> list[str]:
    """A request's list replaces the profile's, as in Docker; one that leaves something out needs
    permission (the docker CLI sends an empty one for ``systempaths=unconfined``).
    """
    if not masked:
        return []
    if requested is None:
        return list(default)
    if not set(default) <= set(requested):
        permit(
            request.profile.may.unmask_paths,
            "to leave system paths unmasked or writable",
            "unmask_paths",
        )
    for path in requested:
        if not path.startswith("/") or "\0" in path:
            raise InvalidInput(f"invalid masked or read-only path: {path[:80]!r}")
    return list(requested)
