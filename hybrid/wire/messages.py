"""What engine and agent say to each other: each request, its answer, and the agent's events.

A request is a dataclass, a ``Request`` of its answer, and its wire name is the class name; all are
listed in ``hybrid.wire.catalogue``. Both ends validate with ``hybrid.wire.codec``.
Streams of bytes (stdio, tar archives, blobs) are opened by the host: it picks an unused stream id
and names it in the request.

Words: a *process key* is ``container`` plus ``exec`` ("" is the container's own init).
``container`` "" in ``StartExec`` is the machine itself. The *journal* of a process is its output
as a sequence of records (see ``hybrid.wire.journal``), addressed by byte offset since the process
was created; the agent keeps a bounded tail of it until it is acknowledged.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from hybrid.wire.value import Request, Value, value

VERSION = 1


@value
class Empty(Value):
    """The answer that says only: done."""


# --- the machine ----------------------------------------------------------------------------------


@value
class Hello(Value):
    """First message of the agent on every (re)connected link; the host answers with its own."""

    version: int
    # id of this agent's run: a changed one means that its containers are gone; a guest's is empty
    # until it is configured, for what is drawn earlier all its clones share
    boot: str
    features: list[str] = field(default_factory=list)


@value
class Configure(Request["MachineFacts"]):
    """Gives an identity-free guest its identity, before anything of a user's runs. Idempotent for the same machine."""

    machine: str
    hostname: str
    realtime_ns: int  # 0: leave the clock (host and ssh machines)
    # credited and mixed in with RNDADDENTROPY + RNDRESEEDCRNG; empty: leave the pool
    entropy: bytes
    lock_down: bool  # lockdown=confidentiality, modules_disabled=1, …
    emulated: bool = False  # its CPU is a program: the agent starts crun in a way that suits one
    sysctls: dict[str, str] = field(default_factory=dict)
    rescan: bool = False  # look for devices that were added while the guest was frozen


@value
class Prepare(Request["Empty"]):
    """Loads all that a guest's clones will need, before it is frozen; draws nothing that must differ."""

    lock_down: bool


@value
class Facts(Request["MachineFacts"]):
    """Asks for ``MachineFacts``."""


@value
class MachineFacts(Value):
    kernel: str  # uname -r
    architecture: str  # uname -m
    boot_id: str  # /proc/sys/kernel/random/boot_id
    cpus: int
    memory: int  # bytes
    memory_available: int  # bytes
    cgroup: Literal["v2", "v1", "hybrid"]
    runtime: str  # "crun 1.21"; empty: none
    realtime_ns: int
    agent_boot: str = ""  # as ``Hello.boot`` will say from now on
    lockdown: str = ""  # contents of /sys/kernel/security/lockdown; empty: no such file
    agent_rss: int = 0  # bytes
    features: list[str] = field(default_factory=list)
    # /etc/resolv.conf and /etc/hosts of a machine that is no guest, for containers in its network
    name_files: dict[str, str] = field(default_factory=dict)


@value
class SetTime(Request["Empty"]):
    realtime_ns: int


@value
class Shutdown(Request["Empty"]):
    """Stops every container (SIGTERM, then SIGKILL after ``timeout``), syncs, unmounts; a guest then powers off."""

    timeout: float = 10.0


# --- containers -----------------------------------------------------------------------------------


@value
class Source(Value):
    """Where the machine finds something the host gave it.

    ``disk``: a block device with that serial number. ``file``: a file on the machine (host
    provider; a layer is loop-mounted). ``blob``: a file that ``PutBlob`` brought. ``tag``: a
    virtiofs tag. ``directory``: a directory on the machine (host provider); as the writable part
    also a bare name: a directory that the agent makes and keeps until ``Retain`` lets it go.
    """

    kind: Literal["disk", "file", "blob", "tag", "directory"]
    name: str


@value
class IdMap(Value):
    """Container ids 0… are ``base``… in the machine's initial user namespace."""

    base: int
    size: int = 65536


@value
class Share(Value):
    """A volume or bind mount. The OCI config refers to it by ``{"type": "hybrid-share", "source": "<index>"}``."""

    source: Source
    subpath: str = ""  # inside the source, resolved beneath it
    # an empty volume first gets what the image has at the mount's destination
    populate: bool = False
    id_mapped: bool = True  # False: the share's server already translates ids (no idmapped mount)


@value
class Interface(Value):
    """One network endpoint, moved into the container's network namespace. Found by ``mac``, or
    ``device`` (a veth end)."""

    name: str  # eth0 …
    mac: str
    addresses: list[str]  # with prefix length
    gateway: str = ""
    mtu: int = 1500
    device: str = ""


@value
class CreateContainer(Request["Empty"]):
    """Mounts the root file system, readies network and mounts, ``crun create``. Idempotent for an
    equal request.

    ``config`` is a complete OCI runtime-spec config whose ``root.path``, share mounts, and user,
    network and joined namespace paths the agent fills in. ``files`` are small files
    (``/etc/hosts``) that the agent keeps in memory and bind-mounts over those paths, read-write,
    not part of the root file system.
    """

    container: str
    config: dict[str, Any]
    layers: list[Source]  # lowest first
    writable: Source | None  # None: the container's own changes live in memory
    id_map: IdMap | None  # None: no user namespace
    network: Literal["none", "own", "host", "container"]
    network_container: str = ""  # whose network namespace is joined, for "container"
    interfaces: list[Interface] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    terminal: bool = False
    stdin: bool = False  # False: /dev/null
    pid_container: str = ""  # whose pid namespace is joined
    ipc_container: str = ""
    rows: int = 0
    columns: int = 0


@value
class StartContainer(Request["Started"]):
    container: str


@value
class Started(Value):
    pid: int
    started_ns: int


@value
class StartExec(Request["Started"]):
    """Runs one more process. Nothing is left of one that cannot be started.

    ``process`` is an OCI runtime-spec process object. ``stream`` gets its output from the first byte on, as
    ``ReadOutput`` would; 0: nothing reads it yet.
    """

    container: str  # "": on the machine itself
    exec: str
    process: dict[str, Any]
    stdin: bool = False
    stream: int = 0


@value
class Signal(Request["Empty"]):
    container: str
    signal: int
    exec: str = ""


@value
class Resize(Request["Empty"]):
    container: str
    rows: int
    columns: int
    exec: str = ""


@value
class Pause(Request["Empty"]):
    container: str
    paused: bool  # True freezes, False thaws


@value
class Update(Request["Empty"]):
    """New limits: an OCI runtime-spec ``linux.resources`` object."""

    container: str
    resources: dict[str, Any]


@value
class Delete(Request["Empty"]):
    """Kills what still runs, unmounts everything and forgets the container (or the exec).
    Idempotent.

    When it is answered the machine no longer uses the container's disks, shares and interfaces."""

    container: str
    exec: str = ""


@value
class List(Request["ProcessList"]):
    """Asks for ``ProcessList``: all that the agent knows, for adoption."""


@value
class ProcessState(Value):
    container: str
    exec: str
    status: Literal["created", "running", "paused", "stopped"]
    pid: int  # 0 unless alive
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int = 0  # 128 + n for a death by signal n
    oom_killed: bool = False
    error: str = ""
    journal_start: int = 0  # offset of the oldest output that is still kept
    journal_end: int = 0


@value
class ProcessList(Value):
    processes: list[ProcessState]


@value
class State(Request["ProcessState"]):
    container: str
    exec: str = ""


# --- streams --------------------------------------------------------------------------------------


@value
class ReadOutput(Request["Empty"]):
    """The process's journal from byte ``offset`` on, as records, on ``stream``; it ends (EOF) after
    the last record.

    What was dropped shows as a record of stream number ``journal.DROPPED``. One reader a process: a
    new one replaces the old.
    """

    container: str
    stream: int
    offset: int = 0
    exec: str = ""


@value
class AckOutput(Request["Empty"]):
    """The host has stored the journal up to ``offset``; the agent may forget it."""

    container: str
    offset: int
    exec: str = ""


@value
class WriteInput(Request["Empty"]):
    """Bytes on ``stream`` go to the process's stdin, its EOF closes stdin (of a terminal: ^D is not added)."""

    container: str
    stream: int
    exec: str = ""
    keep_open: bool = False  # EOF of the stream does not close stdin (attach without StdinOnce)


@value
class PutBlob(Request["Empty"]):
    """``size`` bytes on ``stream`` become the blob ``digest`` (sha256:…), verified before it can be used."""

    digest: str
    size: int
    stream: int


@value
class HasBlob(Request["Truth"]):
    digest: str


@value
class Truth(Value):
    value: bool


@value
class Retain(Request["Empty"]):
    """Removes what the agent keeps for containers that are neither named here nor there: their
    writable parts. Idempotent."""

    containers: list[str]


@value
class StatPath(Request["PathStat"]):
    container: str
    path: str


@value
class PathStat(Value):
    name: str
    size: int
    mode: int  # st_mode
    mtime_ns: int
    link_target: str = ""


@value
class GetArchive(Request["PathStat"]):
    """A tar of ``path`` (resolved inside the container's root) on ``stream``; answered before the bytes flow."""

    container: str
    path: str
    stream: int


@value
class PutArchive(Request["Empty"]):
    """Unpacks the tar on ``stream`` into the directory ``path``, both resolved inside the container's root.

    Answered when all is unpacked.
    """

    container: str
    path: str
    stream: int
    no_overwrite_dir_non_dir: bool = False
    copy_ids: bool = False


# --- observation ----------------------------------------------------------------------------------


@value
class Stats(Request["ContainerStats"]):
    container: str


@value
class ContainerStats(Value):
    """cgroup v2 figures: bytes, nanoseconds, counts; ``networks`` maps interface to rx/tx counters
    of netdev statistics."""

    cpu_total: int
    cpu_user: int
    cpu_system: int
    cpu_periods: int
    cpu_throttled: int
    cpu_throttled_time: int
    system_cpu: int  # all CPU time of the machine, for docker's percentage
    cpus: int
    memory: int
    memory_limit: int
    memory_stat: dict[str, int]
    pids: int
    pids_limit: int
    read_ns: int
    networks: dict[str, dict[str, int]] = field(default_factory=dict)
    blkio: list[dict[str, Any]] = field(default_factory=list)  # {major, minor, op, value}


@value
class Top(Request["ProcessTable"]):
    container: str
    arguments: str = "-ef"


@value
class ProcessTable(Value):
    titles: list[str]
    rows: list[list[str]]


@value
class Evidence(Request["ContainerEvidence"]):
    """Asks for the container's effective confinement, read from the machine's kernel (never from configuration).

    ``paths`` are asked after: which of them there are in the container.
    """

    container: str
    paths: list[str] = field(default_factory=list)


@value
class ContainerEvidence(Value):
    """``status``: /proc/PID/status fields. ``namespaces``: kind → inode, of the container and of
    the agent (``machine_…``)."""

    pid: int
    status: dict[str, str]
    namespaces: dict[str, int]
    machine_namespaces: dict[str, int]
    uid_map: str
    gid_map: str
    mounts: list[str]  # /proc/PID/mountinfo lines
    cgroup: str
    limits: dict[str, str]  # memory.max, pids.max, cpu.max, …
    apparmor: str
    boot_id: str
    kernel: str
    personality: str  # of init, /proc/PID/personality
    randomize_va_space: str  # /proc/sys/kernel/randomize_va_space
    present: list[str] = field(default_factory=list)  # those of the request's paths that exist


@value
class Probe(Request["ProbeResults"]):
    """Runs the probe program inside the container (its namespaces, capabilities, seccomp, user
    map): active attempts that must fail.

    ``addresses`` are host:port pairs that must not be reachable. ``program`` is the blob to run;
    empty: the machine's own probe program.
    """

    container: str
    addresses: list[str] = field(default_factory=list)
    program: str = ""


@value
class ProbeResult(Value):
    name: str
    refused: bool
    detail: str


@value
class ProbeResults(Value):
    results: list[ProbeResult]
    personality: str = ""  # of the program's process, as the machine's kernel told it


# --- events (agent to host) -----------------------------------------------------------------------


@value
class Exited(Value):
    """A process ended. Sent again on every reconnect until ``Delete``; the host takes the first."""

    state: ProcessState


@value
class OutOfMemory(Value):
    container: str
