"""Machine profiles: the shapes of machines, from vmconfigs/machines/NAME.yaml, checked."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hybrid.errors import InvalidInput, NotFound
from hybrid.paths import data_dir
from hybrid.units import GIB, KIB, MIB, parse_size

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_MAX_FILE = 64 * KIB


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size)]
# One word of a kernel command line: no spaces or quotes, so that one word cannot become two.
KernelArgument = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:=/@-]{1,128}$")]


class Accelerator(enum.Enum):
    """What runs the guest's instructions."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Devices(_Strict):
    """What the guest sees besides CPUs, memory, disks, network interfaces and shares."""

    rng: bool = True
    balloon: bool = True
    """A memory balloon with free page reporting: memory that the guest freed goes back to the host.
    """
    link: Literal["auto", "serial", "vsock"] = "auto"
    """How the agent is reached; auto takes vsock where the host has it."""
    hotplug_ports: int = Field(default=8, ge=0, le=32)
    """Spare PCIe ports: how many network interfaces and shares can be added to the running guest.
    """


class Hardening(_Strict):
    """The walls around the QEMU process."""

    sandbox: Literal[True] = True
    """QEMU's system-call filter. Cannot be turned off; it is written here so that it is seen."""


class BootTimeout(_Strict):
    """Seconds from power-on until the agent must be reachable."""

    kvm: float = Field(default=30, gt=0, le=600)
    tcg: float = Field(default=120, gt=0, le=1800)


class MachineProfile(_Strict):
    """One machine shape."""

    name: str = Field(pattern=rf"^{_NAME.pattern}$")
    description: str = Field(default="", max_length=200)
    cpus: int = Field(ge=1, le=256)
    memory: Size = Field(ge=64 * MIB, le=1024 * GIB)
    machine_type: Literal["auto", "q35", "virt"] = "auto"
    accelerator: Accelerator = Accelerator.AUTO
    cpu_model: str = Field(default="auto", pattern=r"^[A-Za-z0-9_.-]{1,40}$")
    """auto: the host's own CPU under KVM, all that QEMU can emulate otherwise."""
    kernel_arguments: tuple[KernelArgument, ...] = Field(default=(), max_length=32)
    console_bytes: Size = Field(default=256 * KIB, ge=16 * KIB, le=64 * MIB)
    devices: Devices = Devices()
    hardening: Hardening = Hardening()
    boot_timeout: BootTimeout = BootTimeout()


def _directory() -> Path:
    return data_dir() / "vmconfigs" / "machines"


def names() -> list[str]:
    """The names of the profiles that ``load`` knows, sorted."""
    return sorted(path.stem for path in _directory().glob("*.yaml"))


def parse(text: str, where: str) -> MachineProfile:
    """The profile in ``text`` (YAML); InvalidInput names the file, the field and what is wrong with
    it.
    """
    try:
        return MachineProfile.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise InvalidInput(f"machine profile {where}: not YAML: {first}") from error
    except ValidationError as error:
        first_error = error.errors()[0]
        field = ".".join(map(str, first_error["loc"])) or "(top)"
        raise InvalidInput(f"machine profile {where}: {field}: {first_error['msg']}") from error


def load(name: str) -> MachineProfile:
    """The profile vmconfigs/machines/``name``.yaml; NotFound lists the names there are."""
    path = _directory() / f"{name}.yaml"
    if not _NAME.fullmatch(name) or not path.is_file():
        raise NotFound(f"No such machine profile: {name[:40]} (there are: {', '.join(names())})")
    with path.open(encoding="utf-8") as file:
        text = file.read(_MAX_FILE)
    profile = parse(text, path.name)
    if profile.name != name:
        raise InvalidInput(
            f"machine profile {path.name}: name: must be {name!r}, as the file is called"
        )
    return profile
