from __future__ import annotations

import json
from typing import Any

import pytest

from hybrid.errors import InvalidInput, Unsupported
from hybrid.policy import capabilities, profile, seccomp

ALLOW = "SCMP_ACT_ALLOW"


def rules_for(rendered: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [rule for rule in rendered["syscalls"] if name in rule["names"]]


def default(*more: str, machine: str = "x86_64") -> dict[str, Any]:
    own = profile.load().seccomp_profile()
    return seccomp.for_capabilities(own, [*capabilities.DEFAULT, *more], machine)


def test_what_is_not_named_is_refused() -> None:
    rendered = default()
    assert rendered["defaultAction"] == "SCMP_ACT_ERRNO"
    assert rendered["defaultErrnoRet"] == 1


def test_a_guests_filter_is_without_the_calls_that_its_kernel_lacks() -> None:
    own = profile.load().seccomp_profile()
    for guest, architectures in (
        (False, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]),
        (True, ["SCMP_ARCH_X86_64"]),
    ):
        rendered = seccomp.for_capabilities(own, [], "x86_64", guest=guest)
        assert rendered["architectures"] == architectures
    arm = seccomp.for_capabilities(own, [], "aarch64", guest=True)["architectures"]
    assert arm == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]


@pytest.mark.parametrize(
    "name",
    """io_uring_setup io_uring_enter io_uring_register bpf userfaultfd keyctl add_key request_key
    perf_event_open kexec_load kexec_file_load init_module finit_module delete_module mount umount2
    move_mount fsopen open_tree mount_setattr pivot_root setns unshare reboot swapon swapoff acct
    quotactl iopl ioperm settimeofday clock_settime open_by_handle_at lookup_dcookie fanotify_init
    sethostname kcmp pidfd_getfd syslog nfsservctl socketcall vm86 sysfs uselib ustat move_pages
    mbind
    """.split(),
)
def test_dangerous_calls_need_a_capability(name: str) -> None:
    assert rules_for(default(), name) == []


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("SYS_ADMIN", "mount"),
        ("SYS_ADMIN", "setns"),
        ("BPF", "bpf"),
        ("PERFMON", "perf_event_open"),
        ("SYS_MODULE", "init_module"),
        ("SYS_TIME", "clock_settime"),
        ("SYS_NICE", "mbind"),
        ("SYS_BOOT", "reboot"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
    ],
)
def test_a_capability_brings_its_calls(capability: str, name: str) -> None:
    assert rules_for(default("CAP_" + capability), name)[0]["action"] == ALLOW


def test_chroot_goes_with_its_capability() -> None:
    own = profile.load().seccomp_profile()
    assert rules_for(default(), "chroot")
    assert rules_for(seccomp.for_capabilities(own, [], "x86_64"), "chroot") == []


def test_clone_makes_no_namespaces() -> None:
    (clone,) = rules_for(default(), "clone")
    assert clone["args"] == [
        {"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    ]
    (clone3,) = rules_for(default(), "clone3")
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_clone_is_unconditional_for_sys_admin() -> None:
    (clone,) = rules_for(default("CAP_SYS_ADMIN"), "clone")
    assert "args" not in clone
    (clone3,) = rules_for(default("CAP_SYS_ADMIN"), "clone3")
    assert clone3["action"] == ALLOW


def test_clone_flags_are_the_second_argument_on_s390() -> None:
    (clone,) = rules_for(default(machine="s390x"), "clone")
    assert clone["args"][0]["index"] == 1


def test_sockets_stop_below_kernel_crypto_and_vsock() -> None:
    (socket,) = rules_for(default(), "socket")
    assert socket["args"] == [{"index": 0, "value": 38, "valueTwo": 0, "op": "SCMP_CMP_LT"}]


def test_personality_is_by_value() -> None:
    values = {rule["args"][0]["value"] for rule in rules_for(default(), "personality")}
    assert values == {0, 8, 0x20000, 0x20008, 0xFFFFFFFF}


def test_architectures_follow_the_machine() -> None:
    assert default()["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert default(machine="aarch64")["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert rules_for(default(), "arch_prctl")
    assert not rules_for(default(machine="aarch64"), "arch_prctl")
    with pytest.raises(Unsupported, match="vax"):
        default(machine="vax")


def test_rules_wait_for_their_kernel() -> None:
    rule = {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}}
    own = seccomp.parse(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}))
    assert rules_for(seccomp.for_capabilities(own, [], "x86_64", "6.12.0+deb13"), "ptrace")
    assert not rules_for(seccomp.for_capabilities(own, [], "x86_64", "4.4.0-1"), "ptrace")


def test_tracing_needs_its_capability() -> None:
    own = profile.load().seccomp_profile()
    assert not rules_for(default(), "ptrace")
    assert rules_for(
        seccomp.for_capabilities(own, ["CAP_SYS_PTRACE"], "x86_64", "6.12.0"), "ptrace"
    )


def test_names_are_in_one_place_only() -> None:
    """A call may return under another condition, but not twice under the same."""
    seen: set[tuple[str, str]] = set()
    for rule in profile.load().seccomp_profile().syscalls:
        condition = rule.model_dump_json(include={"args", "includes", "excludes"})
        for name in rule.names:
            assert (name, condition) not in seen
            seen.add((name, condition))


def test_a_profile_of_dockers_older_shape_is_taken() -> None:
    text = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"name": "chmod", "action": "SCMP_ACT_ERRNO", "args": []}],
        }
    )
    rendered = seccomp.for_capabilities(seccomp.parse(text), [], "x86_64")
    assert rendered == {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "dictionary|object"),
        ('{"defaultAction": "SCMP_ACT_NOTIFY"}', "defaultAction"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}', "listenerPath"),
        ("[" * 100_000, "not valid JSON"),
        (" " * (1 << 21), "larger than"),
    ],
)
def test_bad_profiles_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        seccomp.parse(text)


def test_a_rule_without_a_call_is_refused() -> None:
    text = '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG"}]}'
    with pytest.raises(InvalidInput, match="names no system call"):
        seccomp.for_capabilities(seccomp.parse(text), [], "x86_64")
