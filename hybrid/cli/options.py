"""The flags of ``run`` and ``create``: docker's names, as one dataclass that becomes a command's
signature.

What is listed here is handed to the daemon, which honours it or refuses it with the reason; what
is not listed is an
unknown flag. Nothing is ignored.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, get_type_hints

import typer

from hybrid.cli.connect import complete_image

Texts = list[str]


def _option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, metavar="VALUE", **more)


@dataclass
class ContainerOptions:
    """The flags; empty means: as the image or the daemon says."""

    # placement and life
    name: Annotated[str, _option("--name", help="Name of the container.")] = ""
    isolation: Annotated[
        str,
        _option("--isolation", help="vm (default), vm:GROUP, machine:NAME or container."),
    ] = ""
    runtime: Annotated[
        str, _option("--runtime", help="hybrid-vm or hybrid-container, as --isolation.")
    ] = ""
    remove: Annotated[bool, _option("--rm", help="Remove the container when it exits.")] = False
    restart: Annotated[
        str,
        _option("--restart", help="no, always, unless-stopped or on-failure[:retries]."),
    ] = ""
    # standard streams
    interactive: Annotated[bool, _option("--interactive", "-i", help="Keep stdin open.")] = False
    tty: Annotated[bool, _option("--tty", "-t", help="Give it a terminal.")] = False
    # the process
    env: Annotated[Texts, _option("--env", "-e", help="NAME=VALUE, or NAME to pass it on.")] = (
        field(default_factory=list)
    )
    env_file: Annotated[Texts, _option("--env-file", help="File of NAME=VALUE lines.")] = field(
        default_factory=list
    )
    user: Annotated[str, _option("--user", "-u", help="name|uid[:group|gid].")] = ""
    group_add: Annotated[Texts, _option("--group-add", help="Additional group.")] = field(
        default_factory=list
    )
    workdir: Annotated[str, _option("--workdir", "-w", help="Working directory.")] = ""
    entrypoint: Annotated[
        str | None, _option("--entrypoint", help="Instead of the image's entry point.")
    ] = None
    hostname: Annotated[str, _option("--hostname", "-h", help="Host name inside.")] = ""
    domainname: Annotated[str, _option("--domainname", help="NIS domain name inside.")] = ""
    init: Annotated[bool, _option("--init", help="Run an init that reaps and forwards.")] = False
    label: Annotated[Texts, _option("--label", "-l", help="NAME=VALUE metadata.")] = field(
        default_factory=list
    )
    label_file: Annotated[Texts, _option("--label-file", help="File of NAME=VALUE labels.")] = (
        field(default_factory=list)
    )
    annotation: Annotated[
        Texts, _option("--annotation", help="NAME=VALUE for the OCI runtime.")
    ] = field(default_factory=list)
    stop_signal: Annotated[str, _option("--stop-signal", help="Signal that stops it.")] = ""
    stop_timeout: Annotated[
        int | None, _option("--stop-timeout", help="Seconds from that to SIGKILL.")
    ] = None
    # storage
    volume: Annotated[Texts, _option("--volume", "-v", help="[NAME|/HOST/PATH:]/PATH[:ro].")] = (
        field(default_factory=list)
    )
    mount: Annotated[
        Texts, _option("--mount", help="type=bind|volume|tmpfs,source=…,target=…[,ro].")
    ] = field(default_factory=list)
    tmpfs: Annotated[Texts, _option("--tmpfs", help="/PATH[:OPTIONS], in memory.")] = field(
        default_factory=list
    )
    read_only: Annotated[bool, _option("--read-only", help="Read-only root.")] = False
    storage_opt: Annotated[
        Texts, _option("--storage-opt", help="size=LIMIT of the writable disk.")
    ] = field(default_factory=list)
    # network
    publish: Annotated[
        Texts, _option("--publish", "-p", help="[IP:][HOST PORT:]PORT[/tcp|udp].")
    ] = field(default_factory=list)
    publish_all: Annotated[
        bool, _option("--publish-all", "-P", help="Publish every exposed port.")
    ] = False
    expose: Annotated[Texts, _option("--expose", help="Port that others may be told of.")] = field(
        default_factory=list
    )
    network: Annotated[
        Texts, _option("--network", "--net", help="Network to join; may be repeated.")
    ] = field(default_factory=list)
    network_alias: Annotated[
        Texts, _option("--network-alias", help="Further name on the first network.")
    ] = field(default_factory=list)
    ip: Annotated[str, _option("--ip", help="IPv4 address on the first network.")] = ""
    mac_address: Annotated[str, _option("--mac-address", help="MAC address.")] = ""
    dns: Annotated[Texts, _option("--dns", help="Name server.")] = field(default_factory=list)
    dns_search: Annotated[Texts, _option("--dns-search", help="Search domain.")] = field(
        default_factory=list
    )
    dns_option: Annotated[Texts, _option("--dns-option", help="Resolver option.")] = field(
        default_factory=list
    )
    add_host: Annotated[Texts, _option("--add-host", help="NAME:ADDRESS for /etc/hosts.")] = field(
        default_factory=list
    )
    # limits
    memory: Annotated[str, _option("--memory", "-m", help="Memory limit, such as 256m.")] = ""
    memory_reservation: Annotated[
        str, _option("--memory-reservation", help="Memory soft limit.")
    ] = ""
    memory_swap: Annotated[
        str, _option("--memory-swap", help="Memory plus swap; -1 is no limit.")
    ] = ""
    cpus: Annotated[str, _option("--cpus", help="CPUs, such as 1.5.")] = ""
    cpu_shares: Annotated[int, _option("--cpu-shares", "-c", help="Relative CPU weight.")] = 0
    cpu_period: Annotated[int, _option("--cpu-period", help="CFS period (µs).")] = 0
    cpu_quota: Annotated[int, _option("--cpu-quota", help="CFS quota (µs).")] = 0
    cpuset_cpus: Annotated[str, _option("--cpuset-cpus", help="CPUs to use, such as 0-2.")] = ""
    pids_limit: Annotated[int, _option("--pids-limit", help="Processes; -1 is no limit.")] = 0
    blkio_weight: Annotated[int, _option("--blkio-weight", help="Block I/O weight.")] = 0
    device_read_bps: Annotated[
        str,
        _option("--device-read-bps", help="/dev/root:RATE, bytes a second read from its own disk."),
    ] = ""
    device_write_bps: Annotated[
        str,
        _option(
            "--device-write-bps", help="/dev/root:RATE, bytes a second written to its own disk."
        ),
    ] = ""
    device_read_iops: Annotated[
        str, _option("--device-read-iops", help="/dev/root:RATE, reads a second from its own disk.")
    ] = ""
    device_write_iops: Annotated[
        str, _option("--device-write-iops", help="/dev/root:RATE, writes a second to its own disk.")
    ] = ""
    shm_size: Annotated[str, _option("--shm-size", help="Size of /dev/shm.")] = ""
    ulimit: Annotated[Texts, _option("--ulimit", help="NAME=SOFT[:HARD].")] = field(
        default_factory=list
    )
    oom_score_adj: Annotated[int, _option("--oom-score-adj", help="OOM preference.")] = 0
    # security
    cap_add: Annotated[Texts, _option("--cap-add", help="Capability to add.")] = field(
        default_factory=list
    )
    cap_drop: Annotated[Texts, _option("--cap-drop", help="Capability to drop, or ALL.")] = field(
        default_factory=list
    )
    security_opt: Annotated[
        Texts, _option("--security-opt", help="no-new-privileges, seccomp=…, apparmor=….")
    ] = field(default_factory=list)
    privileged: Annotated[
        bool, _option("--privileged", help="Without the inner wall, where policy allows.")
    ] = False
    userns: Annotated[str, _option("--userns", help="User namespace mode.")] = ""
    pid: Annotated[str, _option("--pid", help="PID namespace to share.")] = ""
    ipc: Annotated[str, _option("--ipc", help="IPC mode.")] = ""
    cgroupns: Annotated[str, _option("--cgroupns", help="Cgroup namespace mode.")] = ""
    device: Annotated[Texts, _option("--device", help="HOST[:CONTAINER[:rwm]] device.")] = field(
        default_factory=list
    )
    sysctl: Annotated[Texts, _option("--sysctl", help="NAME=VALUE, namespaced ones.")] = field(
        default_factory=list
    )
    # health
    health_cmd: Annotated[str, _option("--health-cmd", help="Shell command that checks.")] = ""
    health_interval: Annotated[str, _option("--health-interval", help="Time between checks.")] = ""
    health_timeout: Annotated[str, _option("--health-timeout", help="Time for one check.")] = ""
    health_retries: Annotated[int, _option("--health-retries", help="Failures in a row.")] = 0
    health_start_period: Annotated[
        str, _option("--health-start-period", help="Time to come up.")
    ] = ""
    health_start_interval: Annotated[
        str, _option("--health-start-interval", help="Time between checks until then.")
    ] = ""
    no_healthcheck: Annotated[
        bool, _option("--no-healthcheck", help="Switch the image's check off.")
    ] = False
    platform: Annotated[str, _option("--platform", help="Such as linux/amd64.")] = ""


Image = Annotated[
    str, typer.Argument(metavar="IMAGE", help="Image.", autocompletion=complete_image)
]
Command = Annotated[Texts | None, typer.Argument(metavar="COMMAND", help="Command and arguments.")]


def expand(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replaces the function's parameter ``options`` by one parameter a field of
    ``ContainerOptions``."""
    hints = get_type_hints(ContainerOptions, include_extras=True)
    own = inspect.signature(function, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.name != "options"]
    for item in fields(ContainerOptions):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        parameters.append(
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=hints[item.name],
            )
        )

    @functools.wraps(function)
    def called(**given: Any) -> Any:
        options = ContainerOptions(**{f.name: given.pop(f.name) for f in fields(ContainerOptions)})
        return function(options=options, **given)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    called.__signature__ = own.replace(parameters=keyword)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in keyword}
    return called
