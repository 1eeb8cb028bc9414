"""A report is kept only when the evidence says so; each kind of broken wall is noticed and named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hybrid.verify.judge import HostFacts, Promise, judge, names_of
from hybrid.wire.messages import ContainerEvidence, MachineFacts, ProbeResult, ProbeResults

HOST = HostFacts("host-boot", "6.1.0")
PROMISE = Promise(
    own_kernel=True,
    capabilities=frozenset({"CAP_CHOWN", "CAP_KILL"}),
    seccomp=True,
    no_new_privileges=True,
    user_namespace=True,
    masked_paths=("/proc/kcore", "/proc/keys"),
    pids=4096,
)
FACTS = MachineFacts(
    "6.12.0",
    "x86_64",
    "guest-boot",
    1,
    1 << 29,
    1 << 28,
    "v2",
    "crun 1.21",
    0,
    lockdown="none integrity [confidentiality]",
)
EVIDENCE = ContainerEvidence(
    pid=10,
    status={
        "CapEff": "21",
        "CapBnd": "21",
        "CapInh": "0",
        "Seccomp": "2",
        "Seccomp_filters": "1",
        "NoNewPrivs": "1",
    },
    namespaces={
        kind: n for n, kind in enumerate(("mnt", "pid", "net", "ipc", "uts", "cgroup", "user"), 100)
    },
    machine_namespaces={
        kind: n for n, kind in enumerate(("mnt", "pid", "net", "ipc", "uts", "cgroup", "user"), 1)
    },
    uid_map="0 100000 65536",
    gid_map="0 100000 65536",
    mounts=[
        "30 29 0:5 / /proc/kcore ro - tmpfs none ro",
        "31 29 0:5 / /proc/keys ro - tmpfs none ro",
    ],
    cgroup="/hybrid/c",
    limits={"memory.max": "max", "pids.max": "4096"},
    apparmor="",
    boot_id="guest-boot",
    kernel="6.12.0",
    personality="00000000",
    randomize_va_space="2",
)
PROBES = ProbeResults([ProbeResult("mount", True, "EPERM")], "00000000")
MACHINE: dict[str, Any] = {
    "uid": 2000001,
    "uid_shared_with": [],
    "cap_eff": "0",
    "seccomp": 2,
    "seccomp_filters": 1,
    "no_new_privs": True,
    "namespaces": {"mnt": 5},
    "daemon_namespaces": {"mnt": 1},
    "open_files": [{"path": "/x", "own": True}],
}


def broken(**changes: Any) -> set[str]:
    """Names of the broken checks, with some of the good evidence replaced."""
    given = {
        "promise": PROMISE,
        "facts": FACTS,
        "evidence": EVIDENCE,
        "probes": PROBES,
        "machine": MACHINE,
    } | changes
    checks = judge(
        given["promise"], HOST, given["facts"], given["evidence"], given["probes"], given["machine"]
    )
    return {check.name for check in checks if not check.kept}


def test_good_evidence_is_kept() -> None:
    assert broken() == set()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("own kernel", {"evidence": replace(EVIDENCE, boot_id="host-boot")}),
        ("own kernel", {"evidence": replace(EVIDENCE, boot_id="")}),
        (
            "kernel locked down",
            {"facts": replace(FACTS, lockdown="[none] integrity confidentiality")},
        ),
        ("hypervisor user", {"machine": MACHINE | {"uid": 0}}),
        ("hypervisor user", {"machine": MACHINE | {"uid_shared_with": [7]}}),
        ("hypervisor capabilities", {"machine": MACHINE | {"cap_eff": "1"}}),
        ("hypervisor seccomp", {"machine": MACHINE | {"seccomp": 0}}),
        ("hypervisor no_new_privs", {"machine": MACHINE | {"no_new_privs": False}}),
        ("hypervisor namespaces", {"machine": MACHINE | {"namespaces": {"mnt": 1}}}),
        (
            "hypervisor files",
            {"machine": MACHINE | {"open_files": [{"path": "/etc/shadow", "own": False}]}},
        ),
        ("hypervisor files", {"machine": MACHINE | {"open_files": []}}),
        (
            "namespaces",
            {"evidence": replace(EVIDENCE, namespaces=EVIDENCE.namespaces | {"pid": 2})},
        ),
        ("namespaces", {"evidence": replace(EVIDENCE, namespaces={"user": 106})}),
        ("user namespace", {"evidence": replace(EVIDENCE, uid_map="0 0 4294967295")}),
        ("user namespace", {"evidence": replace(EVIDENCE, uid_map="")}),
        (
            "capabilities, effective",
            {"evidence": replace(EVIDENCE, status=EVIDENCE.status | {"CapEff": "200021"})},
        ),
        (
            "capabilities, bounding",
            {"evidence": replace(EVIDENCE, status=EVIDENCE.status | {"CapBnd": "200021"})},
        ),
        ("seccomp", {"evidence": replace(EVIDENCE, status=EVIDENCE.status | {"Seccomp": "0"})}),
        (
            "no_new_privs",
            {"evidence": replace(EVIDENCE, status=EVIDENCE.status | {"NoNewPrivs": "0"})},
        ),
        ("masked paths", {"evidence": replace(EVIDENCE, mounts=[], present=["/proc/keys"])}),
        ("random addresses", {"evidence": replace(EVIDENCE, randomize_va_space="1")}),
        ("random addresses", {"evidence": replace(EVIDENCE, personality="00040000")}),
        ("random addresses", {"evidence": replace(EVIDENCE, personality="")}),
        ("random addresses", {"probes": replace(PROBES, personality="00240000")}),
        ("random addresses", {"probes": replace(PROBES, personality="")}),
        ("random addresses", {"probes": replace(PROBES, personality="none")}),
        ("process limit", {"evidence": replace(EVIDENCE, limits={"pids.max": "max"})}),
        ("mount", {"probes": replace(PROBES, results=[ProbeResult("mount", False, "done")])}),
        ("probes", {"probes": replace(PROBES, results=[])}),
    ],
)
def test_a_broken_wall_is_named(name: str, changes: dict[str, Any]) -> None:
    assert broken(**changes) == {name}


def test_a_guard_that_policy_relaxed_is_shown_as_relaxed() -> None:
    promise = replace(PROMISE, seccomp=False, allowed_probes=frozenset({"mount"}))
    evidence = replace(EVIDENCE, status=EVIDENCE.status | {"Seccomp": "0"})
    probes = replace(PROBES, results=[ProbeResult("mount", False, "done")])
    checks = judge(promise, HOST, FACTS, evidence, probes, MACHINE)
    assert {check.name for check in checks if check.relaxed} == {"seccomp", "mount"}
    assert all(check.kept for check in checks)


def test_the_host_kernel_makes_no_promise_of_a_vm() -> None:
    checks = judge(replace(PROMISE, own_kernel=False), HOST, FACTS, EVIDENCE, PROBES, {})
    assert {check.boundary for check in checks} == {"container", "probe"}


def test_capability_masks_are_named() -> None:
    assert names_of("a80425fb")[-1] == "CAP_SETFCAP"
    assert names_of(f"{1 << 60:x}") == ["CAP_60"]
