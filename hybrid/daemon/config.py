"""The daemon's configuration: ``daemon.yaml`` in its root, checked. Every field has a default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hybrid.errors import InvalidInput
from hybrid.units import GIB, parse_size


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size)]


class Config(BaseModel):
    """``daemon.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    libvirt_uri: str | None = None
    """``qemu:///system`` or ``qemu+ssh://…``; none: libvirt's embedded driver, which needs no libvirtd."""
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    policy: str = "default"
    """The policy profile (vmconfigs/policies) that confines containers."""
    host_first_id: int = Field(default=10_000_000, ge=100_000, le=4_000_000_000)
    """Where the user-namespace ranges of containers on this host's own kernel begin."""
    writable_size: Size = Field(default=16 * GIB, ge=GIB >> 4)
    """How much a container in a guest can write into its own file system (the disk is sparse)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load(path: Path) -> Config:
    """The file's configuration, or the defaults if there is none; InvalidInput names the field."""
    if not path.exists():
        return Config()
    try:
        return Config.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        raise InvalidInput(f"{path}: {_first_problem(error)}") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InvalidInput(f"{path}: {line}not YAML: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"{path}: {' '.join(str(error).split())}") from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'; there are: {', '.join(sorted(Config.model_fields))}"
    if not key:
        return "not a mapping of settings"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}"
