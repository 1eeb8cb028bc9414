"""The daemon's configuration: ``daemon.yaml`` in its root, checked. Every field has a default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hybrid.engine.machine import ID_LIMIT, ID_RANGE
from hybrid.errors import InvalidInput
from hybrid.units import GIB, MIB, parse_size


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


_BAND_FIRST, _BAND_END = 1_980_000_000, 2**31 - ID_RANGE
_PLACES_LEFT = 256  # at least so many containers of one instance find a place

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _duration(value: object) -> object:
    if isinstance(value, str) and value[:-1].isdigit() and value[-1] in _UNITS:
        return int(value[:-1]) * _UNITS[value[-1]]
    return value


Duration = Annotated[int, BeforeValidator(_duration), Field(ge=1, le=31_536_000)]
Size = Annotated[int, BeforeValidator(_size)]


class Config(BaseModel):
    """``daemon.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    libvirt_uri: str | None = None
    """``qemu:///system`` or ``qemu+ssh://…``; none: libvirt's embedded driver, which needs no libvirtd."""
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    policy: str = "default"
    """The policy profile (vmconfigs/policies) that confines containers."""
    host_first_id: int | None = Field(default=None, ge=100_000, le=4_000_000_000)
    """Where the user-namespace ranges of containers on this host's own kernel begin; none: see ``host_ids``."""
    writable_size: Size = Field(default=16 * GIB, ge=GIB >> 4)
    """How much a container in a guest can write into its own file system (the disk is sparse)."""
    clones: bool = True
    """Whether new guests are cloned from templates; else each boots."""
    template_max_age: Duration = 24 * 3600
    """How long new guests are cloned from the same template (30m, 24h, or seconds); then a new one is made."""
    pool_size: int = Field(default=2, ge=0, le=100)
    """How many clones of each template in use stand ready, frozen, so that a container need not wait for its guest."""
    pool_memory: Size = Field(default=512 * MIB, ge=0)
    """How much memory of the host all that stand ready may take."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def host_ids(self, instance: str) -> range:
        """The first ids of the user-namespace ranges for containers on this host's own kernel.

        Each instance begins at a place of its own in a band that nobody else uses: above the uids of QEMU
        (hybrid.machine.design) and of the layers' converters (hybrid.image.layer), both below 1_980_000_000,
        and within 31 bits, for not every program takes more.
        """
        if self.host_first_id is not None:
            return range(self.host_first_id, ID_LIMIT, ID_RANGE)
        places = (_BAND_END - _BAND_FIRST) // ID_RANGE
        place = int(instance, 16) % (places - _PLACES_LEFT)
        return range(_BAND_FIRST + place * ID_RANGE, _BAND_END, ID_RANGE)


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
