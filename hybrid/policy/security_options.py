"""``--security-opt`` and its relatives: what a request changes about the profile, checked against
what it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid.errors import Forbidden, InvalidInput, Unsupported
from hybrid.policy import seccomp
from hybrid.policy.profile import Profile


@dataclass(frozen=True, slots=True)
class SecurityOptions:
    """The confinement that results. ``seccomp_profile`` None: unconfined."""

    no_new_privileges: bool
    seccomp_profile: seccomp.Profile | None
    masked: bool = True
    relaxed: tuple[str, ...] = ()  # what was taken down, for a warning at each start


def permit(allowed: bool, what: str, permission: str) -> None:
    """Forbidden unless ``allowed``, naming the profile's switch."""
    if not allowed:
        raise Forbidden(f"{what} is refused by the policy (may.{permission} is off)")


def parse(options: Sequence[str], profile: Profile) -> SecurityOptions:
    """The effective options. Unknown ones are InvalidInput, unpermitted ones Forbidden, unmeant
    ones Unsupported.
    """
    no_new_privileges = profile.no_new_privileges
    filter_profile: seccomp.Profile | None = profile.seccomp_profile()
    masked = True
    relaxed: list[str] = []
    for option in options:
        key, value = _split(option)
        if key == "no-new-privileges":
            no_new_privileges = _boolean(option, value)
        elif key == "seccomp":
            filter_profile = _seccomp(value, profile)
            if filter_profile is None:
                relaxed.append("system calls are not filtered")
        elif key == "systempaths" and value == "unconfined":
            permit(profile.may.unmask_paths, f"--security-opt {option}", "unmask_paths")
            masked = False
            relaxed.append("system paths are not masked")
        elif key in ("apparmor", "label"):
            _lsm(key, value)
        else:
            raise InvalidInput(f"invalid --security-opt: {option[:120]!r}")
    if not no_new_privileges and profile.no_new_privileges:
        permit(
            profile.may.allow_new_privileges,
            "--security-opt no-new-privileges=false",
            "allow_new_privileges",
        )
        relaxed.append("setuid programs may gain privileges")
    return SecurityOptions(no_new_privileges, filter_profile, masked, tuple(relaxed))


def _split(option: str) -> tuple[str, str]:
    """Key and value; the old separator ``:`` is taken where there is no ``=`` before it (as Docker
    does).
    """
    for index, character in enumerate(option):
        if character in "=:":
            return option[:index], option[index + 1 :]
    return option, ""


def _boolean(option: str, value: str) -> bool:
    words = {"": True, "true": True, "1": True, "false": False, "0": False}
    if value.lower() not in words:
        raise InvalidInput(f"invalid --security-opt: {option!r}: use true or false")
    return words[value.lower()]


def _seccomp(value: str, profile: Profile) -> seccomp.Profile | None:
    if value == "unconfined":
        permit(profile.may.disable_seccomp, "--security-opt seccomp=unconfined", "disable_seccomp")
        return None
    if value in ("", "builtin", "default"):
        return profile.seccomp_profile()
    permit(profile.may.change_seccomp, "--security-opt seccomp=FILE", "change_seccomp")
    return seccomp.parse(value, "--security-opt seccomp")


def _lsm(key: str, value: str) -> None:
    """No AppArmor profile or SELinux label is set, so only the wish for none can be kept."""
    if (key, value) in (
        ("apparmor", "unconfined"),
        ("apparmor", ""),
        ("label", "disable"),
        ("label", ""),
    ):
        return
    what = "AppArmor profile" if key == "apparmor" else "SELinux label"
    raise Unsupported(
        f"--security-opt {key}={value}: containers have no {what} "
        "of their own; seccomp, capabilities and the user namespace confine them"
    )
