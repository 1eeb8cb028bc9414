"""What makes or reaches machines: the interface, and the plain data that crosses it.

A provider knows how to make, reach and destroy a machine and nothing about containers. Callers
branch on ``features``, never on ``name``. A machine's life, as a provider sees it::

    create ──▶ running ──▶ (destroy | stopped by itself → on_stopped) ──▶ gone

``connect`` may be called any number of times while it runs; each call gives a fresh byte stream,
and on providers whose stream is one physical line (``Transport.resync``) the older stream must be
closed first. Machines outlive the process that made them: after ``open`` the machines of an earlier
owner are in ``list`` and can be used.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from hybrid.errors import InvalidInput
from hybrid.machine.profile import MachineProfile

if TYPE_CHECKING:
    from hybrid.link.client import AgentClient
    from hybrid.link.transport import Transport
    from hybrid.wire.messages import CreateContainer

ROOT_SERIAL = "hybrid-root"
AGENT_PORT_NAME = "hybrid.agent"
AGENT_VSOCK_PORT = 1024
CONSOLE_TAIL = 16 << 10

# QEMU cuts virtio-blk serials at 20 bytes and SCSI ones at 36; libvirt allows few characters in
# them.
_SERIAL = re.compile(r"[0-9A-Za-z_.+-]{1,36}")
# virtio-spec 5.11.4: the tag field holds 36 bytes.
_TAG = re.compile(r"[0-9A-Za-z_.-]{1,36}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# IFNAMSIZ is 16 with the final NUL (linux/if.h).
_DEVICE = re.compile(r"[0-9A-Za-z_.-]{1,15}")
# Becomes part of file names and of the domain's name.
_MACHINE_ID = re.compile(r"[0-9a-z][0-9a-zA-Z_.-]{0,63}")

StoppedCallback = Callable[[str, str], None]
Rehearsal = Callable[[str], "CreateContainer"]


class Feature(enum.Enum):
    """A power that a provider's machines have or lack."""

    OWN_KERNEL = "own kernel"  # a kernel behind a hypervisor of ours, not this host's
    DISKS = "disks"  # attach_disk: block devices found by serial
    NICS = "nics"  # attach_nic: a network interface on a tap of this host
    SHARES = "shares"  # attach_share: a directory of this host by virtiofs
    CONSOLE = "console"  # console: what the machine's kernel printed
    BLOBS = "blobs"  # layers are sent over the link
    DIRECTORIES = "directories"  # paths of this host are paths of the machine


def _check(pattern: re.Pattern[str], value: str, what: str) -> None:
    if not pattern.fullmatch(value):
        raise InvalidInput(f"not a valid {what}: {value[:80]!r}")


@dataclass(frozen=True)
class Disk:
    """A raw image file shown to the guest as one disk, which finds it by ``serial`` (at most 36
    characters).

    A read-only image is shared by many guests and must be world-readable; a writable one belongs to
    one guest, which becomes its owner.
    """

    serial: str
    path: Path
    read_only: bool

    def __post_init__(self) -> None:
        _check(_SERIAL, self.serial, "disk serial")


@dataclass(frozen=True)
class Nic:
    """A network interface whose host end is the existing tap device ``tap``."""

    mac: str
    tap: str

    def __post_init__(self) -> None:
        _check(_MAC, self.mac, "MAC address (lower case, with colons)")
        _check(_DEVICE, self.tap, "network device name")


@dataclass(frozen=True)
class ShareDevice:
    """A virtiofs share: the guest mounts it by ``tag``; a file server listens on ``socket``."""

    tag: str
    socket: Path

    def __post_init__(self) -> None:
        _check(_TAG, self.tag, "share tag")


@dataclass(frozen=True)
class Boot:
    """The files and the command line that a guest boots with; nothing in them names the guest."""

    kernel: Path
    initrd: Path
    root: Path
    command_line: str


@dataclass(frozen=True)
class Remote:
    """How to reach a box that runs already: ``ssh://[user@]host[:port]``.

    ``identity`` is one more private key; ``known_hosts`` replaces the user's file. An unknown host
    key is refused unless ``accept_host_key`` or its ``fingerprint`` (SHA256:…) says otherwise; a
    changed one always.
    """

    address: str
    identity: str = ""
    known_hosts: str = ""
    accept_host_key: bool = False
    fingerprint: str = ""


@dataclass(frozen=True)
class MachineRequest:
    """Everything ``create`` needs. Devices named here need no hot-plug; more can be attached later.

    ``memory`` is in bytes; ``boot`` is None for providers that boot nothing.
    """

    id: str
    name: str
    profile: MachineProfile
    memory: int
    cpus: int
    boot: Boot | None = None
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    shares: tuple[ShareDevice, ...] = ()
    remote: Remote | None = None
    shares_later: bool = True
    """Shares may be attached to it while it runs, too."""

    def __post_init__(self) -> None:
        _check(_MACHINE_ID, self.id, "machine id")


@dataclass(frozen=True)
class Origin:
    """How a guest came to be: ``boot``, or ``clone`` of a template. Moments are seconds since the epoch.

    ``memory`` of a clone: ``private`` (copies of the pages that it changes) or ``copied`` (a file of its own, which
    file servers of shares can be given). ``reason`` says why it was booted. ``taken``: when a clone that stood ready
    was taken from the pool; 0: it was made when it was needed.
    """

    kind: str
    template: str = ""
    template_made: int = 0
    made: int = 0
    memory: str = ""
    reason: str = ""
    taken: int = 0


@dataclass(frozen=True)
class TemplateInfo:
    """A template as people see it. ``used`` is the host's memory that it takes, in bytes; ``ready``: how many clones
    of it stand ready.
    """

    key: str
    profile: str
    memory: int
    cpus: int
    made: float
    took: float
    used: int
    clones: int
    ready: int = 0


@dataclass(frozen=True)
class PoolInfo:
    """How many clones of each template are to stand ready, and how many bytes of memory all may take and do take."""

    size: int
    limit: int
    used: int


@dataclass(frozen=True)
class SpareInfo:
    """A clone that stands ready. ``used`` as the template's."""

    id: str
    template: str
    made: float
    used: int


@dataclass(frozen=True)
class MachineStatus:
    """One machine as the provider finds it. ``reason`` says why it is not running.

    ``details`` are facts for people to read (an address, a version); nothing branches on them.
    """

    id: str
    running: bool
    reason: str = ""
    details: dict[str, str] = field(default_factory=dict)


class Provider(Protocol):
    """Makes or reaches machines. All methods raise ``hybrid.errors`` kinds only.

    ``create``, ``detach_*`` and ``destroy`` are idempotent. ``attach_*`` raises Conflict when the
    machine already has a device of that serial, MAC or tag. All but ``open``, ``list`` and
    ``destroy`` raise NotFound for a machine that is not there. A method whose feature is not
    declared raises Unsupported.
    """

    name: str
    features: frozenset[Feature]

    async def open(self) -> None:
        """Connect to what makes machines; machines of an earlier owner are usable when this
        returns.
        """
        ...

    async def close(self) -> None:
        """Let go; machines run on."""
        ...

    async def create(self, request: MachineRequest) -> None:
        """Make the machine and wait until its agent can be reached; on failure nothing is left
        behind.

        Raises Unavailable, with the console's last lines, when it does not come up in time.
        """
        ...

    async def connect(self, machine_id: str) -> Transport:
        """A fresh byte stream to the machine's agent."""
        ...

    async def attach_disk(self, machine_id: str, disk: Disk) -> None: ...

    async def detach_disk(self, machine_id: str, serial: str) -> None:
        """Returns when the file is no longer in use. The guest must have unmounted it."""
        ...

    async def attach_nic(self, machine_id: str, nic: Nic) -> None: ...

    async def detach_nic(self, machine_id: str, mac: str) -> None: ...

    async def attach_share(self, machine_id: str, share: ShareDevice) -> None: ...

    async def detach_share(self, machine_id: str, tag: str) -> None: ...

    async def destroy(self, machine_id: str) -> None:
        """End the machine at once and remove all that belongs to it (not its taps, images and
        shares).
        """
        ...

    async def list(self) -> list[MachineStatus]:
        """All machines of this instance, also those made by an earlier process."""
        ...

    async def console(self, machine_id: str) -> bytes:
        """The last ``CONSOLE_TAIL`` bytes that the machine's console printed; kept until
        ``destroy``.
        """
        ...

    async def emulated(self, machine_id: str) -> bool:
        """Whether a program of this host runs the machine's instructions, not a CPU."""
        ...

    async def evidence(self, machine_id: str) -> dict[str, object]:
        """What this host's kernel says about the machine's process, for proofs."""
        ...

    def on_stopped(self, callback: StoppedCallback) -> None:
        """Call ``callback(machine id, reason)`` in the event loop whenever a machine goes away by
        itself.
        """
        ...


class Lasting(Protocol):
    """Also implemented by providers whose machines keep files of ours when they are destroyed."""

    async def forget(self, machine_id: str, *, abandon: bool = False) -> None:
        """Removes them, and all that is known of the machine. Idempotent.

        Raises when the machine can't be reached, unless it is to be abandoned.
        """
        ...


@runtime_checkable
class Cloning(Protocol):
    """Also implemented by providers whose guests are cloned from templates."""

    def not_cloning(self) -> str:
        """Why guests are booted; empty if they are cloned."""
        ...

    def origin(self, machine_id: str) -> Origin | None:
        """Where a running machine comes from; None if it does not run."""
        ...

    def templates(self) -> list[TemplateInfo]: ...

    async def build_template(self, request: MachineRequest) -> TemplateInfo:
        """The template that guests like ``request`` are cloned from, made if there is none.

        Unavailable, with the reason, if there can be none.
        """
        ...

    def remove_template(self, reference: str) -> str:
        """Drops the template whose key begins so; clones of it run on. Its key; NotFound if there is none."""
        ...


@runtime_checkable
class Pooling(Cloning, Protocol):
    """Also implemented by providers that have clones stand ready: made, and frozen before they have an identity."""

    def pool(self) -> PoolInfo: ...

    def spares(self) -> list[SpareInfo]: ...

    async def take(self, request: MachineRequest) -> str:
        """The id of a spare clone for a machine like ``request``; "" if there is none.

        It is the caller's: ``create`` of a machine of that id makes it that machine (or makes one, should it turn out
        dead), ``destroy`` ends it.
        """
        ...

    def rehearse(self, container: Rehearsal) -> None:
        """Each clone runs that container once before it stands ready, where that pays.

        ``container`` is given the serial of the disk with its only layer: the guest's root image.
        """
        ...

    def starting(self) -> AbstractContextManager[None]:
        """To be held while a container is started: what stands ready is not replaced meanwhile."""
        ...

    def client(self, machine_id: str) -> AgentClient | None:
        """The link to the agent of a machine that stood ready, for its taker, once; None: ``connect``."""
        ...
