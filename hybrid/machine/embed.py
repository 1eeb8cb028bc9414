"""The embedded libvirt driver's own tree: where it is and what its qemu.conf says."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
from collections.abc import Collection
from pathlib import Path

from hybrid.errors import Unavailable
from hybrid.machine import standing
from hybrid.paths import Paths

# The user that libvirt's Debian package makes for QEMU.
_PACKAGE_USER = "libvirt-qemu"


def uri(paths: Paths) -> str:
    """The connection URI. By a short link below run: libvirt makes sockets some 50 bytes deeper."""
    return f"qemu:///embed?root={paths.run / 'libvirt'}"


def probing_user(kvm: Path) -> str:
    """The user that libvirt asks QEMU for its capabilities as; guests never run as it.

    When that user cannot open /dev/kvm, which root can, libvirt takes its cached answer for stale
    and starts some twenty QEMUs before every guest (12 s). Then root asks; these QEMUs run no
    guest.
    """
    try:
        user = pwd.getpwnam(_PACKAGE_USER)
    except KeyError as error:
        raise Unavailable(
            f"there is no user {_PACKAGE_USER}: install the package libvirt-daemon-system"
        ) from error
    if not kvm.exists():
        return _PACKAGE_USER
    device = kvm.stat()
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    allowed = device.st_mode & 0o006 == 0o006 or (
        device.st_mode & 0o060 == 0o060 and device.st_gid in groups
    )
    return _PACKAGE_USER if allowed else "root"


def configuration(user: str, *, namespaces: bool) -> str:
    """The text of qemu.conf."""
    return f"""\
# Written by hybrid at each start; changes are lost.
# Every guest has a uid of its own in its definition. This one only asks QEMU what it can do.
user = "{user}"
group = "{user}"
# Files are given to guests by hybrid itself: shared ones must never change their owner.
dynamic_ownership = 0
security_driver = "none"
seccomp_sandbox = 1
# No virtlogd in the embedded driver.
stdio_handler = "file"
# A guest's memory is nobody's business.
dump_guest_core = 0
namespaces = [ {'"mount"' if namespaces else ""} ]
"""


def end_probes(paths: Paths) -> None:
    """Ends the QEMUs that an earlier process's libvirt was asking for their abilities when it died: they wait for
    its next question for ever. To be called before libvirt is opened.
    """
    for directory in (paths.libvirt / "lib" / "qemu").glob("qmp-*"):
        monitor = os.fsencode(f"unix:{paths.run / 'libvirt'}/lib/qemu/{directory.name}/")
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if monitor in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


def remove_strays(paths: Paths, names: Collection[str]) -> None:
    """Removes libvirt's directories, logs, half-written files and control groups of domains that are none of ``names``:
    an earlier process died while making or ending them.
    """

    def lives(short: str) -> bool:  # libvirt cuts names short
        return any(name.startswith(short) for name in names)

    for directory in (paths.libvirt / "lib" / "qemu").glob("domain-*-*"):
        if not lives(directory.name.split("-", 2)[2]):
            shutil.rmtree(directory, ignore_errors=True)
    ours = f"hybrid-{paths.instance}-"
    for pattern in (f"log/qemu/{ours}*.log", f"run/qemu/{ours}*.xml.new"):
        for file in paths.libvirt.glob(pattern):
            if not lives(file.name.partition(".")[0]):
                file.unlink(missing_ok=True)
    for group in standing.find(f"machine/qemu-*-{ours}*"):
        if not lives(ours + group.stem.partition(ours)[2]):
            standing.remove_tree(group)


def prepare(paths: Paths, kvm: Path, *, namespaces: bool) -> None:
    """Makes the tree and its configuration; safe to repeat while guests run."""
    etc = paths.libvirt / "etc"
    etc.mkdir(mode=0o711, parents=True, exist_ok=True)
    paths.libvirt.chmod(0o711)
    (etc / "qemu.conf").write_text(configuration(probing_user(kvm), namespaces=namespaces))
    link = paths.run / "libvirt"
    if not link.is_symlink() or Path(os.readlink(link)) != paths.libvirt:
        link.unlink(missing_ok=True)
        link.symlink_to(paths.libvirt)
