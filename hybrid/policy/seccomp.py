"""System-call filters: Docker's profile format in, the OCI ``linux.seccomp`` object of one
container out.

A profile says per rule on which architectures, with which capabilities and from which kernel on it
counts; ``render`` picks the rules that count for one container. The same format serves hybrid's own
profile (``vmconfigs/policies/seccomp.json``) and one that a request brings (``--security-opt
seccomp=FILE``).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hybrid.errors import InvalidInput, Unsupported

MAX_PROFILE = 1 << 20
Action = Literal[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRAP",
]
Operator = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]
Name = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,63}$")]
# uname -m, Docker's name in includes/excludes, libseccomp's name
_MACHINES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
}
# ia32_emulation=0 is on its command line, and Debian's kernel has no x32
_GUEST_LACKS = frozenset(("SCMP_ARCH_X86", "SCMP_ARCH_X32"))
_SUBARCHITECTURES = {
    "SCMP_ARCH_X86": "x86",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_ARM": "arm",
    "SCMP_ARCH_S390": "s390",
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Argument(_Model):
    index: Annotated[int, Field(ge=0, le=5)]
    value: Annotated[int, Field(ge=0, lt=1 << 64)]
    value_two: Annotated[int, Field(ge=0, lt=1 << 64)] = Field(default=0, alias="valueTwo")
    op: Operator


class Filter(_Model):
    """When a rule counts (``includes``) or does not (``excludes``)."""

    caps: list[str] = []
    arches: list[str] = []
    min_kernel: str = Field(
        default="", alias="minKernel", pattern=r"^(\d{1,4}\.\d{1,4}(\.\d{1,4})?)?$"
    )


class Rule(_Model):
    comment: str = ""
    name: Name | None = None
    names: list[Name] = []
    action: Action
    errno: Annotated[int, Field(ge=0, le=4095)] | None = Field(default=None, alias="errnoRet")
    args: list[Argument] | None = None
    includes: Filter | None = None
    excludes: Filter | None = None


class ArchitectureGroup(_Model):
    architecture: str
    sub_architectures: list[str] | None = Field(default=None, alias="subArchitectures")


class Profile(_Model):
    """A seccomp profile in Docker's format."""

    comment: list[str] | str = ""
    default_action: Action = Field(alias="defaultAction")
    default_errno: Annotated[int, Field(ge=0, le=4095)] | None = Field(
        default=None, alias="defaultErrnoRet"
    )
    arch_map: list[ArchitectureGroup] = Field(default=[], alias="archMap", max_length=64)
    architectures: list[str] = Field(default=[], max_length=64)
    flags: list[Literal["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]] = []
    syscalls: list[Rule] = Field(default=[], max_length=4096)


@functools.lru_cache(maxsize=16)  # every container of a policy has the same
def parse(text: str, where: str = "seccomp profile") -> Profile:
    """The profile in the JSON ``text``; InvalidInput names the first bad field."""
    if len(text) > MAX_PROFILE:
        raise InvalidInput(f"{where}: larger than {MAX_PROFILE >> 20} MiB")
    try:
        return Profile.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not valid JSON: {error}") from error


def for_capabilities(
    profile: Profile,
    capabilities: Collection[str],
    machine: str,
    kernel: str = "",
    *,
    guest: bool = False,
) -> dict[str, Any]:
    """The OCI ``linux.seccomp`` for a container with these capabilities on a ``uname -m`` =
    ``machine``.

    ``kernel`` is that machine's ``uname -r``; empty means new enough for every rule. For a ``guest`` of hybrid's
    what its kernel lacks is left out: a filter takes the kernel long to make ready, at each exec again, and twice
    the rules take four times as long.
    """
    if machine not in _MACHINES:
        raise Unsupported(
            f"no seccomp architecture is known for {machine!r}; known: {', '.join(_MACHINES)}"
        )
    native = _MACHINES[machine]
    architectures = _architectures(profile, native[1], _GUEST_LACKS if guest else ())
    arches = {native[0]} | {_SUBARCHITECTURES[a] for a in architectures if a in _SUBARCHITECTURES}
    rendered: dict[str, Any] = {"defaultAction": profile.default_action}
    if profile.default_errno is not None:
        rendered["defaultErrnoRet"] = profile.default_errno
    rendered["architectures"] = architectures
    if profile.flags:
        rendered["flags"] = list(profile.flags)
    version = _version(kernel)
    rendered["syscalls"] = [
        _rule(rule)
        for rule in profile.syscalls
        if _counts(rule, set(capabilities), arches, version)
    ]
    return rendered


def _architectures(profile: Profile, native: str, lacking: Collection[str]) -> list[str]:
    if profile.architectures:
        return list(profile.architectures)
    for group in profile.arch_map:
        if group.architecture == native:
            return [native, *(a for a in group.sub_architectures or [] if a not in lacking)]
    return [native]


def _version(kernel: str) -> tuple[int, int]:
    """(major, minor) of ``uname -r``; unknown is taken as newest."""
    major, _, rest = kernel.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (1 << 30, 0)


def _counts(rule: Rule, caps: set[str], arches: set[str], kernel: tuple[int, int]) -> bool:
    """Docker's rule: every included capability is held, one included architecture fits; no excluded
    one does.
    """
    wanted, unwanted = rule.includes or Filter(), rule.excludes or Filter()
    if wanted.arches and not arches & set(wanted.arches):
        return False
    if not set(wanted.caps) <= caps:
        return False
    if wanted.min_kernel and kernel < _version(wanted.min_kernel):
        return False
    if unwanted.min_kernel and kernel >= _version(unwanted.min_kernel):
        return False
    return not (arches & set(unwanted.arches) or caps & set(unwanted.caps))


def _rule(rule: Rule) -> dict[str, Any]:
    names = list(rule.names) or ([rule.name] if rule.name else [])
    if not names:
        raise InvalidInput("seccomp profile: a rule names no system call")
    rendered: dict[str, Any] = {"names": names, "action": rule.action}
    if rule.errno is not None and rule.action == "SCMP_ACT_ERRNO":
        rendered["errnoRet"] = rule.errno
    if rule.args:
        rendered["args"] = [
            {"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": a.op}
            for a in rule.args
        ]
    return rendered
