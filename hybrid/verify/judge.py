"""What was promised against what both kernels say: evidence in, checks out. Pure; no configuration is believed.

Sources of the evidence: the host's /proc for the guest's QEMU (``Provider.evidence``), the machine's /proc for the
container (``ContainerEvidence``), and attempts made inside the container (``ProbeResults``). A *promise* is what the
container's policy says it gets; a guard that policy relaxed is shown as relaxed, never hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hybrid.wire.messages import ContainerEvidence, MachineFacts, ProbeResults

Boundary = Literal["vm", "container", "probe"]
_ADDR_NO_RANDOMIZE = 0x0040000  # include/uapi/linux/personality.h
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
# capabilities(7), by bit number
CAPABILITY_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()

# What a relaxed guard lets through; probe names are those of images/guest/probe.c.
SECCOMP_ALONE_REFUSES = frozenset(
    "unshare-user clone-user clone3-user add-key keyctl userfaultfd io-uring perf-event setns ptrace syslog"
    " vsock-host vsock-local mount-api".split()
)
CAPABILITY_ALLOWS = {
    "CAP_SYS_ADMIN": frozenset(
        "mount-tmpfs mount-proc mount-bind mount-api umount pivot-root unshare-user unshare-mount"
        " unshare-network unshare-pid clone-user clone3-user setns bpf perf-event".split()
    ),
    "CAP_SYS_PTRACE": frozenset({"ptrace"}),
    "CAP_BPF": frozenset({"bpf"}),
    "CAP_PERFMON": frozenset({"perf-event"}),
    "CAP_DAC_READ_SEARCH": frozenset({"open-by-handle"}),
    "CAP_SYSLOG": frozenset({"syslog", "open:/dev/kmsg"}),
}


def allowed_probes(capabilities: frozenset[str], *, seccomp: bool) -> frozenset[str]:
    """The probes that policy does not promise to refuse: let through by a capability, or without seccomp."""
    allowed = set() if seccomp else set(SECCOMP_ALONE_REFUSES)
    for capability, probes in CAPABILITY_ALLOWS.items():
        if capability in capabilities:
            allowed |= probes
    return frozenset(allowed)


@dataclass(frozen=True, slots=True)
class Promise:
    """What the container was promised, from its request and policy.

    ``capabilities`` are names with CAP_; ``masked_paths`` absolute paths; limits are 0 where none was promised.
    """

    own_kernel: bool
    capabilities: frozenset[str]
    seccomp: bool
    no_new_privileges: bool
    user_namespace: bool
    masked_paths: tuple[str, ...]
    namespaces: frozenset[str] = frozenset(NAMESPACES)
    memory: int = 0
    pids: int = 0
    allowed_probes: frozenset[str] = frozenset()
    box: bool = False  # somebody's own machine, reached over the network


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The daemon's own kernel: what the guest's must differ from."""

    boot_id: str
    kernel: str


@dataclass(frozen=True, slots=True)
class Check:
    boundary: Boundary
    name: str
    kept: bool
    evidence: str
    relaxed: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    container: str
    name: str
    isolation: str
    checks: list[Check] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        return all(check.kept for check in self.checks)


def judge(
    promise: Promise,
    host: HostFacts,
    facts: MachineFacts,
    evidence: ContainerEvidence,
    probes: ProbeResults,
    machine: dict[str, Any],
) -> list[Check]:
    """All checks for one running container. ``machine`` is ``Provider.evidence``: empty for the host's own kernel."""
    checks: list[Check] = []
    if promise.own_kernel:
        checks.extend(_vm(host, facts, evidence, machine))
    elif promise.box:
        checks.append(_box(host, evidence))
    checks.extend(_container(promise, evidence))
    checks.append(_randomised(evidence, probes))
    checks.extend(_probes(promise, probes))
    return checks


def _box(host: HostFacts, evidence: ContainerEvidence) -> Check:
    """On a box only the inner wall is promised: what is outside it is said, never taken for a wall of hybrid's."""
    if evidence.boot_id and evidence.boot_id == host.boot_id:
        which = f"THIS host's kernel {host.kernel}, boot {host.boot_id[:8]}"
    else:
        which = f"{evidence.kernel} boot {evidence.boot_id[:8]}; host {host.kernel} boot {host.boot_id[:8]}"
    return Check("vm", "own kernel", True, f"not promised for a box: it runs {which}", relaxed=True)


def _vm(
    host: HostFacts, facts: MachineFacts, evidence: ContainerEvidence, machine: dict[str, Any]
) -> Iterator[Check]:
    yield Check(
        "vm",
        "own kernel",
        bool(evidence.boot_id) and evidence.boot_id not in ("", host.boot_id),
        f"{evidence.kernel} boot {evidence.boot_id[:8]}; host {host.kernel} boot {host.boot_id[:8]}",
    )
    if origin := machine.get("origin"):
        yield _origin(origin)
    yield Check(
        "vm",
        "kernel locked down",
        "[confidentiality]" in facts.lockdown or "[integrity]" in facts.lockdown,
        facts.lockdown.strip() or "no lockdown",
    )
    uid, shared = machine.get("uid", 0), machine.get("uid_shared_with", [])
    yield Check(
        "vm",
        "hypervisor user",
        uid != 0 and not shared,
        f"uid {uid}, "
        + (f"shared with pids {shared}" if shared else "shared with no other process"),
    )
    capabilities = names_of(str(machine.get("cap_eff", "ffffffff")))
    yield Check("vm", "hypervisor capabilities", not capabilities, _listed(capabilities))
    yield Check(
        "vm",
        "hypervisor seccomp",
        machine.get("seccomp") == 2,
        f"mode {machine.get('seccomp')}, {machine.get('seccomp_filters')} filters",
    )
    yield Check(
        "vm",
        "hypervisor no_new_privs",
        bool(machine.get("no_new_privs")),
        str(int(bool(machine.get("no_new_privs")))),
    )
    own, daemon = machine.get("namespaces", {}), machine.get("daemon_namespaces", {})
    apart = sorted(kind for kind, inode in own.items() if inode != daemon.get(kind))
    yield Check("vm", "hypervisor namespaces", "mnt" in apart, _listed(apart))
    files = machine.get("open_files", [])
    foreign = sorted(entry["path"] for entry in files if not entry["own"])
    yield Check(
        "vm",
        "hypervisor files",
        bool(files) and not foreign,
        f"foreign: {', '.join(foreign[:3])}" if foreign else f"{len(files)} open, all its own",
    )


def _origin(origin: dict[str, Any]) -> Check:
    """A clone must have got randomness of its own before anything ran in it."""
    if origin.get("kind") != "clone":
        return Check("vm", "origin", True, "booted")
    age = max(0, origin.get("made", 0) - origin.get("template_made", 0))
    reseeded = bool(origin.get("reseeded"))
    taken = int(origin.get("taken", 0))
    ready = f"; stood ready for {max(0, taken - origin.get('made', 0))} s" if taken else ""
    return Check(
        "vm",
        "origin",
        reseeded,
        f"clone of template {origin.get('template')}, which was {age} s old then;"
        f" {'reseeded first thing' if reseeded else 'NOT reseeded'}; memory {origin.get('memory')}{ready}",
    )


def _container(promise: Promise, evidence: ContainerEvidence) -> Iterator[Check]:
    shared = sorted(
        kind
        for kind in NAMESPACES
        if evidence.namespaces.get(kind, 0) in (0, evidence.machine_namespaces.get(kind, 0))
    )
    relaxed = [kind for kind in shared if kind not in promise.namespaces]
    yield Check(
        "container",
        "namespaces",
        set(shared) <= set(relaxed),
        _listed([kind for kind in NAMESPACES if kind not in shared])
        + (f"; shared with the machine: {', '.join(shared)}" if shared else ""),
        relaxed=bool(relaxed),
    )
    yield _user_namespace(promise, evidence)
    yield from _capabilities(promise, evidence)
    mode, filters = evidence.status.get("Seccomp", ""), evidence.status.get("Seccomp_filters", "0")
    yield Check(
        "container",
        "seccomp",
        mode == "2" or not promise.seccomp,
        f"mode {mode}, {filters} filters",
        relaxed=not promise.seccomp,
    )
    nnp = evidence.status.get("NoNewPrivs", "")
    yield Check(
        "container",
        "no_new_privs",
        nnp == "1" or not promise.no_new_privileges,
        nnp,
        relaxed=not promise.no_new_privileges,
    )
    yield _masked(promise, evidence)
    yield from _limits(promise, evidence)


def _user_namespace(promise: Promise, evidence: ContainerEvidence) -> Check:
    entries = [line.split() for line in evidence.uid_map.splitlines()]
    outside = [int(entry[1]) for entry in entries if len(entry) == 3 and entry[0] == "0"]
    apart = evidence.namespaces.get("user", 0) not in (
        0,
        evidence.machine_namespaces.get("user", 0),
    )
    return Check(
        "container",
        "user namespace",
        (apart and bool(outside) and all(outside)) or not promise.user_namespace,
        f"root is uid {outside[0]} of the machine" if outside else "no map",
        relaxed=not promise.user_namespace,
    )


def _capabilities(promise: Promise, evidence: ContainerEvidence) -> Iterator[Check]:
    for label, key in (("effective", "CapEff"), ("bounding", "CapBnd"), ("inheritable", "CapInh")):
        held = names_of(evidence.status.get(key, "f" * 16))
        beyond = sorted(set(held) - promise.capabilities)
        yield Check(
            "container",
            f"capabilities, {label}",
            not beyond,
            f"beyond policy: {_listed(beyond)}" if beyond else _listed(held),
        )


def _masked(promise: Promise, evidence: ContainerEvidence) -> Check:
    mounted = {fields[4] for line in evidence.mounts if len(fields := line.split()) > 4}
    bare = [path for path in promise.masked_paths if path not in mounted]
    bared = [path for path in bare if path in evidence.present]
    absent = [path for path in bare if path not in evidence.present]
    return Check(
        "container",
        "masked paths",
        not bared,
        f"{len(promise.masked_paths) - len(bare)} masked"
        + (f"; not masked: {', '.join(bared)}" if bared else "")
        + (f"; not on this kernel: {', '.join(absent)}" if absent else ""),
        relaxed=not promise.masked_paths,
    )


def _randomised(evidence: ContainerEvidence, probes: ProbeResults) -> Check:
    """Of the container's own process and of one that joined it later: each is started by another way."""
    fixed = (_flags(evidence.personality) | _flags(probes.personality)) & _ADDR_NO_RANDOMIZE
    return Check(
        "container",
        "random addresses",
        evidence.randomize_va_space == "2" and not fixed,
        f"randomize_va_space {evidence.randomize_va_space or 'unknown'}, personality of its process"
        f" {evidence.personality or 'unknown'}, of one that joined {probes.personality or 'unknown'}",
    )


def _flags(personality: str) -> int:
    """A personality that could not be read counts as one with every flag."""
    try:
        return int(personality, 16)
    except ValueError:
        return -1


def _limits(promise: Promise, evidence: ContainerEvidence) -> Iterator[Check]:
    for label, promised, key in (
        ("memory limit", promise.memory, "memory.max"),
        ("process limit", promise.pids, "pids.max"),
    ):
        if promised:
            effective = evidence.limits.get(key, "")
            yield Check(
                "container",
                label,
                effective.isdigit() and int(effective) <= promised,
                effective or "none",
            )


def _probes(promise: Promise, probes: ProbeResults) -> Iterator[Check]:
    if not probes.results:
        yield Check("probe", "probes", False, "no probe answered")
    for result in probes.results:
        relaxed = result.name in promise.allowed_probes
        yield Check("probe", result.name, result.refused or relaxed, result.detail, relaxed=relaxed)


def names_of(mask: str) -> list[str]:
    """Capability names of a hexadecimal mask as /proc/PID/status prints it; unknown bits become CAP_<bit>."""
    bits = int(mask, 16)
    return [
        f"CAP_{CAPABILITY_NAMES[bit] if bit < len(CAPABILITY_NAMES) else bit}"
        for bit in range(bits.bit_length())
        if bits >> bit & 1
    ]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
