"""Policy profiles: how strong the inner wall is, and what a request may relax
(``vmconfigs/policies/NAME.yaml``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hybrid import units
from hybrid.errors import Forbidden, InvalidInput, NotFound
from hybrid.paths import data_dir
from hybrid.policy import capabilities
from hybrid.policy.seccomp import Profile as SeccompProfile
from hybrid.policy.seccomp import parse as parse_seccomp

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00]{1,255}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Permissions(_Model):
    """What a request may relax; each is off unless the profile says so."""

    change_seccomp: bool = False
    disable_seccomp: bool = False
    allow_new_privileges: bool = False
    unmask_paths: bool = False
    disable_user_namespace: bool = False
    host_namespaces: bool = False
    privileged: bool = False


class Limits(_Model):
    """Defaults where a request names no limit; 0 is none. ``rlimits``: name → (soft, hard), -1 for
    unlimited.
    """

    memory: Annotated[int, Field(ge=0)] = 0
    pids: Annotated[int, Field(ge=0)] = 0
    shm: Annotated[int, Field(gt=0)] = 64 << 20
    rlimits: dict[str, tuple[int, int]] = {}

    @field_validator("memory", "shm", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        return units.parse_size(value) if isinstance(value, str) else value


class Profile(_Model):
    """One policy. ``seccomp`` is a file name next to the profile."""

    description: str
    capabilities: list[str]
    may_add: list[str] = []
    seccomp: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.json$")]
    user_namespace: bool = True
    no_new_privileges: bool = True
    may: Permissions = Permissions()
    masked_paths: list[AbsolutePath]
    readonly_paths: list[AbsolutePath]
    limits: Limits = Limits()
    refused_sources: list[AbsolutePath] = []

    @field_validator("capabilities", "may_add")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        try:
            return [capabilities.name(item) for item in value]
        except InvalidInput as error:
            raise ValueError(error.message) from error

    def seccomp_profile(self) -> SeccompProfile:
        """The system-call filter that the profile names."""
        path = directory() / self.seccomp
        try:
            return parse_seccomp(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise NotFound(f"cannot read the seccomp profile {path}: {error.strerror}") from error


def directory() -> Path:
    """Where the profiles are."""
    return data_dir() / "vmconfigs" / "policies"


def names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in directory().glob("*.yaml"))


def load(name: str = "default") -> Profile:
    """The profile ``name``; NotFound lists those there are, InvalidInput names a bad field."""
    path = directory() / f"{name}.yaml"
    if not _NAME.fullmatch(name) or not path.is_file():
        raise NotFound(f"no policy {name!r}; there are: {', '.join(names())}")
    try:
        return _parsed(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InvalidInput(f"{path}: {error}") from error


@functools.lru_cache(maxsize=16)  # every container reads one, and YAML is slow
def _parsed(text: str, where: str) -> Profile:
    try:
        return Profile.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error
    except yaml.YAMLError as error:
        raise InvalidInput(f"{where}: {error}") from error


def check_source(profile: Profile, source: str, own: Iterable[str] = ()) -> None:
    """Forbidden if the bind-mount ``source`` is, contains or is below a refused directory.

    ``source`` must be resolved already (no symlinks); ``own`` are hybrid's own root, run directory
    and sockets.
    """
    path = PurePosixPath(source)
    if not path.is_absolute() or ".." in path.parts or "\0" in source:
        raise InvalidInput(
            f"invalid mount source {source!r}: an absolute path without '..' is needed"
        )
    for refused in (*profile.refused_sources, *own):
        other = PurePosixPath(refused)
        if path.is_relative_to(other) or other.is_relative_to(path):
            raise Forbidden(
                f"bind source {source} is refused: it would show the host's {refused}; "
                "use a directory that holds only what the service needs"
            )
