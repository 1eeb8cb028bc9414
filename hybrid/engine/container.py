"""A container's record: what was asked for, what it got, and how it is; and its one state table.

    created ──start──▶ starting ──▶ running ◀──pause/unpause──▶ paused
       ▲                  │            │                          │
       │               (fails)       exits                      exits
       └──────────────────┴──▶ exited ◀┴──────────────────────────┘
                                 │ ▲ └──policy──▶ restarting ──▶ starting
                              remove (from created, exited, dead) ──▶ removing ──▶ gone, or dead

Only ``hybrid.engine`` changes a record; ``step`` is the only way to another status.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hybrid.errors import Conflict

Status = Literal[
    "created", "starting", "running", "paused", "restarting", "removing", "exited", "dead"
]

# verb → the statuses it may start from
STEPS: dict[str, tuple[frozenset[str], Status]] = {
    "start": (frozenset({"created", "exited", "restarting"}), "starting"),
    "run": (frozenset({"starting"}), "running"),
    "pause": (frozenset({"running"}), "paused"),
    "unpause": (frozenset({"paused"}), "running"),
    "fail": (frozenset({"starting"}), "exited"),
    "exit": (frozenset({"starting", "running", "paused"}), "exited"),
    "await restart": (frozenset({"exited"}), "restarting"),
    "give up": (frozenset({"restarting"}), "exited"),
    # From removing too: what a daemon's death interrupted is done again.
    "remove": (frozenset({"created", "exited", "dead", "restarting", "removing"}), "removing"),
    "bury": (frozenset({"removing"}), "dead"),
}
LIVE = frozenset({"starting", "running", "paused"})


@dataclass
class HealthCheck:
    """Durations in nanoseconds; 0 means the default (30 s, 30 s, 0, 5 s, 3 retries)."""

    test: list[str] = field(default_factory=list)
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass
class Mount:
    """``bind``: a host path; ``volume``: a named volume ("" gets a name at creation); ``tmpfs``: memory."""

    kind: Literal["bind", "volume", "tmpfs"]
    source: str
    target: str
    read_only: bool = False
    options: list[str] = field(default_factory=list)  # tmpfs: mount options
    create_source: bool = False  # bind: ``-v`` makes a missing directory, ``--mount`` does not
    copy: bool = True  # volume: an empty one gets the image's content
    subpath: str = ""
    anonymous: bool = False
    propagation: str = ""
    uid: int = 0  # bind: whose rights the container has on the host's files
    gid: int = 0


@dataclass
class Port:
    """One requested publication; ``host_port`` 0: any free one."""

    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""
    host_port: int = 0


@dataclass
class Endpoint:
    """A container's place in one network: what was asked for, and (while it runs) what it has."""

    network: str  # network id
    aliases: list[str] = field(default_factory=list)
    wanted_ip: str = ""
    wanted_mac: str = ""
    driver_options: dict[str, str] = field(default_factory=dict)
    endpoint_id: str = ""
    ip: str = ""
    prefix: int = 0
    gateway: str = ""
    mac: str = ""
    device: str = ""  # tap, or the veth end that is the container's
    tap: bool = False


OWN_DISK = "/dev/root"  # how requests name the disk that holds the container's own file system


@dataclass
class Limits:
    """0 or "": no limit. Bytes, nano-CPUs, microseconds; the fields are those of policy's ``ResourceRequest``."""

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0
    blkio_weight: int = 0
    read_bps: int = 0  # of the disk that holds the container's own file system
    write_bps: int = 0
    read_iops: int = 0
    write_iops: int = 0


@dataclass
class Restart:
    name: str = "no"
    maximum: int = 0


@dataclass
class Spec:
    """What the user asked for, merged with the image's defaults where Docker merges them."""

    image: str
    hostname: str = ""
    domainname: str = ""
    user: str = ""
    env: list[str] = field(default_factory=list)
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    working_dir: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    stop_signal: str = ""
    stop_timeout: int | None = None
    health: HealthCheck | None = None
    exposed: list[str] = field(default_factory=list)  # "80/tcp"
    mounts: list[Mount] = field(default_factory=list)
    anonymous: list[str] = field(default_factory=list)  # Config.Volumes: targets
    isolation: str = ""
    network_mode: str = "default"
    pid_mode: str = ""
    ipc_mode: str = ""
    cgroupns_mode: str = ""
    userns_mode: str = ""
    ports: list[Port] = field(default_factory=list)
    publish_all: bool = False
    restart: Restart = field(default_factory=Restart)
    auto_remove: bool = False
    privileged: bool = False
    read_only: bool = False
    init: bool = False
    cap_add: list[str] = field(default_factory=list)
    cap_drop: list[str] = field(default_factory=list)
    security_options: list[str] = field(default_factory=list)
    group_add: list[str] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)
    ulimits: dict[str, list[int]] = field(default_factory=dict)  # name → [soft, hard]
    shm_size: int = 0
    oom_score_adj: int = 0
    extra_hosts: list[str] = field(default_factory=list)
    dns: list[str] = field(default_factory=list)
    dns_search: list[str] = field(default_factory=list)
    dns_options: list[str] = field(default_factory=list)
    log_driver: str = "json-file"
    log_options: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    masked_paths: list[str] | None = None
    read_only_paths: list[str] | None = None
    console: list[int] = field(default_factory=lambda: [0, 0])  # rows, columns
    container_id_file: str = ""
    annotations: dict[str, str] = field(default_factory=dict)
    networks_asked: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class HealthProbe:
    start_ns: int
    end_ns: int
    exit_code: int
    output: str


@dataclass
class Health:
    status: str = "starting"
    failing: int = 0
    log: list[HealthProbe] = field(default_factory=list)


@dataclass
class PublishedPort:
    host_ip: str
    host_port: int
    container_port: int
    protocol: str


@dataclass
class PlainDisk:
    serial: str
    path: str
    read_only: bool


@dataclass
class PlainShare:
    tag: str
    directory: str
    read_only: bool
    uid: int = -1  # -1: the volume's own
    gid: int = -1


@dataclass
class PlainDevices:
    """What the container has attached to its machine, for whoever adopts it."""

    disks: list[PlainDisk] = field(default_factory=list)
    nics: dict[str, str] = field(default_factory=dict)  # MAC → tap
    shares: list[PlainShare] = field(default_factory=list)


@dataclass
class Record:
    """A container. Times are nanoseconds since the epoch, 0 meaning never."""

    id: str
    name: str
    created_ns: int
    image: str  # image id
    spec: Spec
    layers: list[str] = field(default_factory=list)  # diff ids of the image's layers, lowest first
    path: str = ""
    args: list[str] = field(default_factory=list)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)  # network name → endpoint
    published: list[PublishedPort] = field(default_factory=list)
    status: Status = "created"
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_ns: int = 0
    finished_ns: int = 0
    requested_ns: int = 0  # when the start was asked for
    ready_ns: int = 0  # when it ran (or was first healthy)
    health: Health | None = None
    restart_count: int = 0
    stopped_by_user: bool = False
    remove_volumes: bool = False  # with the container go its anonymous volumes
    machine: str = ""  # machine id while it has one
    kept: str = ""  # the box that keeps the container's changes between its runs
    provider: str = ""
    kernel: str = ""
    id_base: int = 0  # first id of the user-namespace range in its machine; 0: none
    process: dict[str, Any] = field(
        default_factory=dict
    )  # OCI process, whose confinement execs take over
    devices: PlainDevices = field(default_factory=PlainDevices)

    def step(self, verb: str) -> None:
        """Moves to the status that ``verb`` leads to; Conflict if it cannot start from the present one."""
        allowed, target = STEPS[verb]
        if self.status not in allowed:
            raise Conflict(f"cannot {verb} container {self.id[:12]}: it is {self.status}")
        self.status = target

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def short_id(self) -> str:
        return self.id[:12]

    @property
    def ready_after(self) -> float | None:
        """Seconds from the start request until it ran (with a health check: was healthy)."""
        return (self.ready_ns - self.requested_ns) / 1e9 if self.ready_ns else None
