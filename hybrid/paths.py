"""Every file and socket name, in one place, with its rules.

Two trees: *root* (state that survives a reboot) and *run* (sockets and pid files, gone at reboot). A Unix socket
path may hold at most 107 bytes (``unix(7)``: ``sun_path`` is 108 with its NUL), so everything with a socket lives
under *run*, whose name is short. What follows from the root alone is in ``hybrid.instance``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hybrid import instance
from hybrid.instance import StrPath

SOCKET_PATH_MAX = 107
_ID = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_.-]{0,127}")


def checked(name: str) -> str:
    """``name`` if it is safe as one path component; ValueError otherwise."""
    if not _ID.fullmatch(name):
        raise ValueError(f"not a safe file name: {name!r}")
    return name


def data_dir() -> Path:
    """Where images/ and vmconfigs/ are: inside an installed package, else at the top of the checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "data"
    return packaged if packaged.is_dir() else here.parent


@dataclass(frozen=True)
class Paths:
    """The names below one daemon's root and run directories."""

    root: Path
    run: Path

    @classmethod
    def of(cls, root: StrPath | None = None) -> Paths:
        """The trees of the daemon whose state is at ``root`` (default: /var/lib/hybrid)."""
        real = instance.real_root(root)
        return cls(Path(real), Path(instance.run_directory(real)))

    @property
    def instance(self) -> str:
        return instance.of(str(self.root))

    # root: state
    @property
    def database(self) -> Path:
        return self.root / "hybrid.db"

    @property
    def config(self) -> Path:
        return self.root / "daemon.yaml"

    @property
    def daemon_log(self) -> Path:
        return self.root / "daemon.log"

    @property
    def images(self) -> Path:
        """An OCI image layout (image-spec ``image-layout.md``)."""
        return self.root / "images"

    @property
    def layers(self) -> Path:
        """Converted layers: one read-only squashfs file each, named by the layer's diff id."""
        return self.root / "layers"

    @property
    def guest(self) -> Path:
        """Built guest images, one directory a content hash, ``current`` pointing at the newest."""
        return self.root / "guest"

    @property
    def tools(self) -> Path:
        """The tools tree: helper programs of the guest's own Debian release."""
        return self.root / "tools"

    @property
    def libvirt(self) -> Path:
        """Root of the embedded libvirt driver (``qemu:///embed?root=``)."""
        return self.root / "libvirt"

    def container(self, container_id: str) -> Path:
        return self.root / "containers" / checked(container_id)

    def container_log(self, container_id: str) -> Path:
        return self.container(container_id) / "log"

    def machine(self, machine_id: str) -> Path:
        """State of one machine: console.log, known host key, …"""
        return self.root / "machines" / checked(machine_id)

    def volume(self, name: str) -> Path:
        return self.root / "volumes" / checked(name)

    # run: sockets and pid files
    @property
    def socket(self) -> Path:
        return self.run / instance.SOCKET

    @property
    def pid_file(self) -> Path:
        return self.run / "daemon.pid"

    def machine_run(self, machine_id: str) -> Path:
        """Sockets of one machine: agent.sock, share-<n>.sock. Kept short by the id's first 12 characters."""
        return self.run / "m" / checked(machine_id)[:12]

    @property
    def network_run(self) -> Path:
        """dnsmasq's configuration, hosts and pid files, one directory a network."""
        return self.run / "net"

    @property
    def host_agent(self) -> Path:
        """Working directory and socket of the agent that runs containers on this host's own kernel."""
        return self.run / "agent"
