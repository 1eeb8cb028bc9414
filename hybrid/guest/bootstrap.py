"""Debian packages of the guest's release as a tar file, by mmdebstrap and a cache.

``extract`` only unpacks (no maintainer script runs, no privilege needed); ``install`` also
configures them, as an image of a service needs. A cached tree is used as long as packages and apt
sources stay the same.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybrid.errors import Internal
from hybrid.guest import aptsources, command

# an extracted tree has no merged-/usr links of its own, and the packages' files must land behind
# them
_MERGED_USR = 'for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -sf "usr/$d" "$1/$d"; done'
_SKIPPED = ("man", "doc", "info", "locale", "lintian", "bug", "help", "gnome")


@dataclass(frozen=True)
class Architecture:
    """What differs between architectures, by Debian's name."""

    name: str  # as dpkg says it
    loader: str  # the dynamic loader's path in a merged-/usr tree
    oci: str  # GOARCH
    uname: str


ARCHITECTURES = {
    "amd64": Architecture("amd64", "usr/lib64/ld-linux-x86-64.so.2", "amd64", "x86_64"),
    "arm64": Architecture("arm64", "usr/lib/ld-linux-aarch64.so.1", "arm64", "aarch64"),
}


def architecture() -> Architecture:
    """This machine's; Internal if guests are not made for it yet."""
    name = command.run(["dpkg", "--print-architecture"]).strip()
    if name not in ARCHITECTURES:
        raise Internal(
            f"no guest image for architecture {name!r} (known: {', '.join(ARCHITECTURES)})"
        )
    return ARCHITECTURES[name]


def packages_tar(
    cache: Path,
    packages: Sequence[str],
    progress: Callable[[str], None],
    *,
    variant: Literal["extract", "install"] = "extract",
    hooks: Sequence[str] = (),
    fresh: bool = False,
) -> Path:
    """A tar of the packages and what they depend on.

    ``fresh`` fetches anew although a cached one fits.
    """
    sources = aptsources.read_host()
    lines = [source.line() for source in sources]
    key = hashlib.sha256(
        "\n".join([variant, *sorted(packages), *hooks, *lines, architecture().name]).encode()
    ).hexdigest()
    target = cache / "packages" / f"{key}.tar"
    if target.exists() and not fresh:
        target.touch()  # it was used: hybrid.guest.prune looks at that
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    progress(f"fetching Debian {aptsources.GUEST_SUITE} packages: {' '.join(packages)}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetch-") as scratch:
        Path(scratch).chmod(0o755)  # without root, mmdebstrap works as another user
        sources_list = Path(scratch) / "sources.list"
        sources_list.write_text("\n".join(lines) + "\n")
        partial = Path(scratch) / "tree.tar"
        command.run(
            [
                "mmdebstrap",
                f"--variant={'extract' if variant == 'extract' else 'apt'}",
                "--mode=auto",
                "--format=tar",
                f"--include={','.join(packages)}",
                '--aptopt=APT::Install-Recommends "false"',
                *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _SKIPPED),
                *([f"--setup-hook={_MERGED_USR}"] if variant == "extract" else []),
                *(f"--customize-hook={hook}" for hook in hooks),
                aptsources.GUEST_SUITE,
                partial,
                sources_list,
            ],
            {"TMPDIR": scratch},
        )
        partial.replace(target)
    return target


def unpack(tar: Path, target: Path) -> None:
    """Unpacks a tree without its owners and devices; any user may."""
    target.mkdir(parents=True, exist_ok=True)
    command.run(
        [
            "tar",
            "--extract",
            "--no-same-owner",
            "--exclude=./dev/*",
            "--file",
            tar,
            "--directory",
            target,
        ]
    )


def program(tree: Path, path: Path) -> list[str]:
    """The start of the command line that runs a program of an unpacked tree on this machine.

    It goes through the tree's own loader and libraries, so this machine's don't matter.
    """
    libraries = ":".join(str(directory) for directory in sorted(tree.glob("usr/lib/*-linux-gnu")))
    return [str(tree / architecture().loader), "--library-path", libraries, str(path)]
