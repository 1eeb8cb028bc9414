"""Builds the guest image: kernel, initramfs, verified read-only root; same inputs, same bytes.

    packages ─▶ unpack ─▶ choose files ─▶ byte-compile ─▶ squashfs ─▶ + hash tree ─▶ root
             └▶ kernel, modules ─▶ cpio with /init ─▶ initrd       root hash ─▶ command line

The recipe is ``images/guest``; this module only carries it out. No step needs privilege. Times
inside the image are the newest package file's, owners are root, and nothing that Debian's
maintainer scripts write is in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hybrid.errors import HybridError
from hybrid.guest import bootstrap, bytecode, command, cpio, image, kernel, tree, verity, zipapp
from hybrid.guest.image import GuestImage
from hybrid.guest.recipe import Recipe, publish_link
from hybrid.paths import Paths, data_dir

Progress = Callable[[str], None]
_LIB = "usr/lib/hybrid"
_CFLAGS = ("-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none")
_EMPTY_DIRECTORIES = (
    "dev",
    "etc",
    "proc",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/sbin",
    "usr/lib64",
    "var",
)
_MERGED = ("bin", "sbin", "lib", "lib64")
_SQUASHFS = (
    "-comp",
    "zstd",
    "-b",
    "131072",
    "-noappend",
    "-all-root",
    "-no-xattrs",
    "-no-progress",
    "-quiet",
)


def build_guest(
    paths: Paths, progress: Progress, *, agent: Path | None = None, fresh: bool = False
) -> GuestImage:
    """The guest image of these sources, built if need be; it becomes the current one.

    ``agent`` is a zip application to take in place of hybrid's own. ``fresh`` asks Debian for newer
    packages.
    """
    recipe = Recipe(data_dir() / "images/guest")
    paths.guest.mkdir(parents=True, exist_ok=True)
    with _locked(paths.guest / "lock"):
        sources = {"agent": agent.read_bytes()} if agent else zipapp.members()
        inputs = recipe.digest(sources.items())
        if not fresh:
            with contextlib.suppress(HybridError):
                present = image.current(paths)
                if present.inputs == inputs:
                    return present
        with tempfile.TemporaryDirectory(dir=paths.guest, prefix="build-") as scratch:
            return _Build(paths, recipe, Path(scratch), progress, agent, fresh).run(inputs)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time in a root."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Build:
    """One run, in a scratch directory that is thrown away."""

    def __init__(
        self,
        paths: Paths,
        recipe: Recipe,
        scratch: Path,
        progress: Progress,
        agent: Path | None,
        fresh: bool,
    ) -> None:
        self.paths, self.recipe, self.scratch, self.progress = paths, recipe, scratch, progress
        self.agent, self.fresh = agent, fresh
        self.architecture = bootstrap.architecture()
        self.output = scratch / "output"
        self.stage = scratch / "stage"

    def run(self, inputs: str) -> GuestImage:
        self.output.mkdir(mode=0o755)
        packages = self._unpacked("root")
        linux = kernel.Kernel(self._unpacked("kernel"))
        self.progress(f"building the guest image: kernel {linux.release}")
        self._initramfs(linux)
        self._root(packages, linux)
        verified = self._squashfs(linux)
        shutil.copyfile(linux.image, self.output / "vmlinuz")
        command_line = " ".join(
            [
                *self.recipe.section("command-line.conf"),
                *self.recipe.section("command-line.conf", self.architecture.name),
                f"hybrid.roothash={verified.root_hash}",
                f"hybrid.hashoffset={verified.hash_offset}",
            ]
        )
        return self._publish(
            {"command_line": command_line, "release": linux.release, "inputs": inputs}
        )

    def _unpacked(self, section: str) -> Path:
        packages = self.recipe.section("packages.conf", section, arch=self.architecture.name)
        tar = bootstrap.packages_tar(
            self.paths.root / "cache", packages, self.progress, fresh=self.fresh
        )
        target = self.scratch / section
        bootstrap.unpack(tar, target)
        return target

    def _compiled(self, source: str) -> bytes:
        target = self.scratch / source.removesuffix(".c")
        command.run(["gcc", *_CFLAGS, "-o", target, self.recipe.directory / source])
        return target.read_bytes()

    def _initramfs(self, linux: kernel.Kernel) -> None:
        modules = linux.closure(self.recipe.section("modules-early.conf"))
        entries = [cpio.directory(name) for name in ("dev", "proc", "sys", "root", "modules")]
        # the kernel opens /dev/console for init before anything is mounted
        entries.append(cpio.Entry("dev/console", 0o020600, device=(5, 1)))
        entries += [
            cpio.regular(f"modules/{number:02}-{module.name}.ko", module.data)
            for number, module in enumerate(modules)
        ]
        entries.append(cpio.executable("init", self._compiled("initramfs.c")))
        (self.output / "initrd").write_bytes(cpio.archive(entries))

    def _root(self, packages: Path, linux: kernel.Kernel) -> None:
        for name in _EMPTY_DIRECTORIES:
            (self.stage / name).mkdir(parents=True, exist_ok=True)
        for name in _MERGED:
            (self.stage / name).symlink_to(f"usr/{name}")
        rules = [*self.recipe.section("files.conf"), self.architecture.loader]
        chosen = tree.with_libraries(packages, tree.select(tree.files(packages), rules))
        tree.copy(packages, chosen, self.stage)
        self._busybox(packages)
        self._identity()
        self._modules(linux)
        self._own_files(packages)
        self._compile_standard_library(packages)

    def _busybox(self, packages: Path) -> None:
        for applet in command.run([packages / "usr/bin/busybox", "--list"]).split():
            link = self.stage / "usr/bin" / applet
            if not link.exists():
                link.symlink_to("busybox")
        (self.stage / "usr/sbin/modprobe").symlink_to("../bin/busybox")

    def _identity(self) -> None:
        etc = self.stage / "etc"
        (etc / "passwd").write_text(
            "root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
        )
        (etc / "group").write_text("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
        (etc / "os-release").symlink_to("../usr/lib/os-release")

    def _modules(self, linux: kernel.Kernel) -> None:
        always = self.recipe.section("modules.conf")
        modules = linux.closure([*always, *self.recipe.section("modules.conf", "on-demand")])
        base = self.stage / "usr/lib/modules" / linux.release
        for module in modules:
            path = base / module.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(module.data)
        (base / "modules.dep").write_text(kernel.dependency_file(modules))
        own = self.stage / _LIB
        own.mkdir(parents=True)
        order = [
            f"/usr/lib/modules/{linux.release}/{module.path}\n" for module in linux.closure(always)
        ]
        (own / "modules").write_text("".join(order))

    def _own_files(self, packages: Path) -> None:
        own = self.stage / _LIB
        for source in ("init.c", "probe.c"):
            target = own / source.removesuffix(".c")
            target.write_bytes(self._compiled(source))
            target.chmod(0o755)
        # for machines that do not run this image
        shutil.copy(own / "probe", self.output / "probe")
        # the agent need not ask crun, whose start takes a while on a slow machine
        (own / "runtime").write_text(f"{self._crun_version(packages)}\n")
        (own / "sysctl.conf").write_text("\n".join(self.recipe.section("sysctl.conf")) + "\n")
        if self.agent:
            shutil.copyfile(self.agent, own / "agent.pyz")
            return
        contents = zipapp.members()
        sources = self.scratch / "agent"
        for name, data in contents.items():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes(data)
        bytecode.compile_modules(packages, sources, sources, f"/{_LIB}/agent.pyz", beside=True)
        compiled = {
            str(path.relative_to(sources)): path.read_bytes()
            for path in sorted(sources.rglob("*.pyc"))
        }
        zipapp.write(own / "agent.pyz", contents | compiled)

    def _crun_version(self, packages: Path) -> str:
        words = [*bootstrap.program(packages, packages / "usr/bin/crun"), "--version"]
        return command.run(words).splitlines()[0].replace(" version ", " ")

    def _compile_standard_library(self, packages: Path) -> None:
        """Leaves the byte code in the sources' place: half the size, and quicker to find."""
        directory = next(self.stage.glob("usr/lib/python3.*"))
        bytecode.compile_modules(packages, directory, self.stage, "/", beside=True)
        for source in directory.rglob("*.py"):
            if source.with_suffix(".pyc").exists():
                source.unlink()

    def _squashfs(self, linux: kernel.Kernel) -> verity.Verity:
        epoch = str(
            int(
                max(
                    path.lstat().st_mtime
                    for path in (linux.image, *self.scratch.glob("root/usr/bin/*"))
                )
            )
        )
        target = self.output / "root"
        command.run(
            ["mksquashfs", self.stage, target, *_SQUASHFS, "-all-time", epoch, "-mkfs-time", epoch]
        )
        return verity.append(target)

    def _publish(self, description: dict[str, str]) -> GuestImage:
        """Moves the finished image to its place and makes it the current one."""
        digest = hashlib.sha256(description["command_line"].encode())
        for name in ("vmlinuz", "initrd", "root"):
            digest.update(hashlib.sha256((self.output / name).read_bytes()).digest())
        description["hash"] = digest.hexdigest()
        (self.output / image.DESCRIPTION).write_text(
            json.dumps(description, indent=1, sort_keys=True) + "\n"
        )
        for path in self.output.iterdir():
            path.chmod(0o644)
        target = self.paths.guest / description["hash"]
        if target.exists():
            for name in (image.DESCRIPTION, "probe"):
                shutil.copyfile(self.output / name, target / name)
        else:
            self.output.rename(target)
        publish_link(self.paths.guest / "current", target.name)
        self.progress(f"guest image {description['hash'][:12]} is ready")
        return image.load(target)
