"""Root file systems and shares: mounts, in the agent's own mount namespace, that a container's config refers to.

With a user namespace nothing is shifted on disk: each layer, the writable part and each share is bound with an
idmapped mount, and the overlay is put over those pieces. Working directory of the agent is its state directory, and
overlay options name short paths below it, for they may hold 4095 bytes only.

    m/<n>               a device, share tag or layer, mounted once for all its users
    c/<n>/              one container: l/<i> idmapped layers, w writable, m its idmapped twin, rootfs, s/<i> shares,
                        f small files, config.json
    w/<name>            writable parts that outlive their containers' runs, until they are let go
    blobs/<digest>      layers and programs that the host sent, once for all containers
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
import stat
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from hybrid.agent import descriptors, devices, syscalls
from hybrid.agent.userns import UserNamespaces
from hybrid.errors import Forbidden, Internal, InvalidInput, NotFound, Unavailable, Unsupported
from hybrid.wire.messages import IdMap, Share, Source

MAX_LAYERS = 250
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}")
_FILES_SIZE = 4 << 20
_RELEASE_WAIT = 10.0
_OVERLAY = "index=off,metacopy=off"


@dataclass(slots=True)
class _Mounted:
    path: str
    device: str
    users: int = 0


class Storage:
    """All mounts of one agent; ``root`` is its state directory, and the working directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._namespaces = UserNamespaces()
        self._mounted: dict[tuple[str, str], _Mounted] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._writing: set[str] = set()  # writable parts in use
        self._number = itertools.count(1)
        for name in ("m", "c", "w", "blobs"):
            (root / name).mkdir(exist_ok=True)

    def clear(self) -> None:
        """Removes what an earlier agent left; its mounts went with it."""
        for top in (self._root / "c", self._root / "m"):
            for left in top.iterdir():
                _remove(left)

    def user_namespace(self, id_map: IdMap) -> int:
        """A descriptor of a user namespace with that map."""
        return self._namespaces.descriptor(id_map)

    def blob(self, digest: str) -> Path:
        """Where the blob ``digest`` is, or will be."""
        kind, _, text = digest.partition(":")
        if kind != "sha256" or len(text) != 64 or set(text) - set("0123456789abcdef"):
            raise InvalidInput(f"not a digest: {digest!r}")
        return self._root / "blobs" / text

    def _kept(self, writable: Source) -> Path:
        if not _NAME.fullmatch(writable.name):
            raise InvalidInput(f"not a name for a writable part: {writable.name!r}")
        return self._root / "w" / writable.name

    def retain(self, names: Collection[str]) -> None:
        """Removes all writable parts that are kept here but those of these names, or in use. For a thread."""
        import shutil

        for kept in (self._root / "w").iterdir():
            if kept.name not in names and kept.name not in self._writing:
                shutil.rmtree(kept)

    def directory(self, stack: AsyncExitStack) -> Path:
        """A fresh directory for one container, removed by ``stack``."""
        path = self._root / "c" / str(next(self._number))
        path.mkdir(mode=0o711)
        stack.callback(_remove, path)
        return path

    # --- the root file system --------------------------------------------------------------------------------

    async def mount_root(
        self,
        stack: AsyncExitStack,
        directory: Path,
        layers: Sequence[Source],
        writable: Source | None,
        id_map: IdMap | None,
    ) -> tuple[Path, str]:
        """Overlays ``writable`` on ``layers`` at ``directory``/rootfs; ``stack`` undoes it.

        The root, and the directory that takes what is written to it.
        """
        if not 0 < len(layers) <= MAX_LAYERS:
            raise InvalidInput(f"{len(layers)} layers: a root file system has 1 to {MAX_LAYERS}")
        held = await asyncio.gather(
            *(self._hold(stack, layer, "squashfs", True) for layer in layers),
            return_exceptions=True,  # when one fails the others still go on the stack, not behind it
        )
        lower = [path for path in held if isinstance(path, str)]
        for problem in held:
            if isinstance(problem, BaseException):
                raise problem
        written = upper = await self._writable(stack, directory, writable)
        _prepare_upper(upper, lower[-1])
        if id_map is not None:
            namespace = self.user_namespace(id_map)
            pieces = [(path, directory / "l" / str(n)) for n, path in enumerate(lower)]
            merged = directory / "m"
            for source, target in [*pieces, (upper, merged)]:
                target.mkdir(parents=True)
                self._bind(stack, source, target, namespace)
            lower, upper = [str(target) for _, target in pieces], str(merged)
        root = directory / "rootfs"
        root.mkdir()
        self._overlay(stack, root, lower, upper, id_map)
        return root, written

    async def _writable(
        self, stack: AsyncExitStack, directory: Path, writable: Source | None
    ) -> str:
        if writable is None:
            target = directory / "w"
            target.mkdir()
            _mount(stack, "hybrid", target, "tmpfs", syscalls.MS_NODEV, "mode=0755")
            base = str(target)
        elif writable.kind == "directory":
            base = writable.name if writable.name.startswith("/") else str(self._kept(writable))
            self._writing.add(Path(base).name)
            stack.callback(self._writing.discard, Path(base).name)
            Path(base).mkdir(mode=0o700, exist_ok=True)
        elif writable.kind == "disk":
            base = await self._hold(stack, writable, "ext4", False)
        else:
            raise InvalidInput(
                f"a {writable.kind} cannot be the writable part of a root file system"
            )
        return f"{base}/root"

    def _overlay(
        self,
        stack: AsyncExitStack,
        root: Path,
        lower: Sequence[str],
        upper: str,
        id_map: IdMap | None,
    ) -> None:
        names = ":".join(self._short(path) for path in reversed(lower))
        upper = self._short(upper)
        data = f"lowerdir={names},upperdir={upper}/u,workdir={upper}/k,{_OVERLAY}"
        if len(data) > 4095 or any(c in names + upper for c in ",\\"):
            raise Internal("the layers' paths do not fit overlayfs options; use a shorter --state")
        base = id_map.base if id_map else 0
        flags = syscalls.MS_NODEV if id_map else 0
        with syscalls.file_system_ids(base, base):
            _mount(stack, "hybrid", root, "overlay", flags, data)
        # over an idmapped upper directory the kernel falls back to read-only, without an error, when it
        # cannot write to it
        if os.statvfs(root).f_flag & os.ST_RDONLY:
            raise Internal(
                "the overlay came up read-only: the writable disk does not accept the container's ids"
            )

    def _short(self, path: str) -> str:
        prefix = f"{self._root}/"
        return path[len(prefix) :] if path.startswith(prefix) else path

    # --- shares and files ------------------------------------------------------------------------------------

    async def mount_share(
        self,
        stack: AsyncExitStack,
        directory: Path,
        number: int,
        share: Share,
        id_map: IdMap | None,
    ) -> Path:
        """Binds one share at ``directory``/s/<number>; ``stack`` undoes it."""
        base = await self._share_base(stack, share.source)
        target = directory / "s" / str(number)
        target.parent.mkdir(exist_ok=True)
        checked = share.source.kind == "directory"
        anchor = _anchor(base) if checked else os.open(base, os.O_PATH | os.O_CLOEXEC)
        try:
            found = _resolve(anchor, share.subpath)
            try:
                if stat.S_ISDIR(os.fstat(found).st_mode):
                    target.mkdir()
                else:
                    target.touch()
                namespace = self.user_namespace(id_map) if id_map and share.id_mapped else 0
                self._bind(stack, "", target, namespace, found)
            finally:
                os.close(found)
        finally:
            os.close(anchor)
        return target

    async def _share_base(self, stack: AsyncExitStack, source: Source) -> str:
        if source.kind == "disk":
            return await self._hold(stack, source, "ext4", False)
        if source.kind == "tag":
            return await self._hold(stack, source, "virtiofs", False)
        path = str(self.blob(source.name)) if source.kind == "blob" else source.name
        if not path.startswith("/") or not Path(path).exists():
            raise NotFound(f"bind source path does not exist: {source.name}")
        return path

    def write_files(
        self, stack: AsyncExitStack, directory: Path, files: dict[str, str], id_map: IdMap | None
    ) -> dict[str, str]:
        """Keeps small files in memory, owned by the container's root; destination to path."""
        if not files:
            return {}
        base = id_map.base if id_map else 0
        target = directory / "f"
        target.mkdir()
        _mount(
            stack,
            "hybrid",
            target,
            "tmpfs",
            syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOEXEC,
            f"mode=0755,size={_FILES_SIZE},uid={base},gid={base}",
        )
        paths = {}
        for number, (destination, text) in enumerate(files.items()):
            if not destination.startswith("/") or ".." in destination.split("/"):
                raise InvalidInput(f"file {destination!r}: not an absolute path without '..'")
            path = target / str(number)
            path.write_text(text)
            path.chmod(0o644)
            os.chown(path, base, base)
            paths[destination] = str(path)
        return paths

    # --- mounts ----------------------------------------------------------------------------------------------

    async def _hold(self, stack: AsyncExitStack, source: Source, kind: str, read_only: bool) -> str:
        """Mounts a source that several containers may use, once; its last user unmounts it."""
        key = (source.kind, source.name)
        async with self._locks.setdefault(key, asyncio.Lock()):
            held = self._mounted.get(key)
            if held is None:
                held = self._mounted[key] = await self._mount_source(source, kind, read_only)
            held.users += 1
        stack.push_async_callback(self._let_go, key)
        return held.path

    async def _mount_source(self, source: Source, kind: str, read_only: bool) -> _Mounted:
        target = self._root / "m" / str(next(self._number))
        flags = syscalls.MS_NODEV | (syscalls.MS_RDONLY if read_only else 0)
        keep = -1
        if source.kind == "disk":
            device = await devices.by_serial(source.name)
        elif source.kind == "file" and read_only:
            if not Path(source.name).is_file():
                raise NotFound(f"no layer file {source.name}")
            device, keep = devices.attach_loop(source.name)
        elif source.kind == "blob" and read_only:
            path = self.blob(source.name)
            if not path.is_file():
                raise NotFound(f"no blob {source.name} on this machine")
            device, keep = devices.attach_loop(str(path))
        elif source.kind == "tag":
            await devices.share_tag(source.name)
            device = source.name
        else:
            raise InvalidInput(f"a {source.kind} cannot be mounted as {kind}")
        target.mkdir()
        try:
            syscalls.mount(device, str(target), kind, flags)
        except OSError as error:
            target.rmdir()
            raise Internal(
                f"cannot mount {source.kind} {source.name} as {kind}: {error.strerror}"
            ) from error
        finally:
            descriptors.close(keep)
        return _Mounted(str(target), device if source.kind == "disk" else "")

    async def _let_go(self, key: tuple[str, str]) -> None:
        async with self._locks[key]:
            held = self._mounted[key]
            held.users -= 1
            if held.users:
                return
            del self._mounted[key]
            _unmount(Path(held.path))
            Path(held.path).rmdir()
            if held.device:
                await _released(held.device)

    def _bind(
        self,
        stack: AsyncExitStack,
        source: str,
        target: Path,
        namespace: int,
        directory: int = -100,
    ) -> None:
        """Binds ``source`` (or the file ``directory`` refers to) at ``target``, idmapped if there is a namespace."""
        copy = syscalls.clone_mount(source, directory=directory)
        try:
            if namespace:
                syscalls.set_mount_attributes(copy, syscalls.MOUNT_ATTR_IDMAP, namespace)
            syscalls.attach_mount(copy, str(target))
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise Unsupported(
                    f"the file system of {source or target} cannot be shared with a user namespace (no idmapped mounts)"
                ) from error
            raise
        finally:
            os.close(copy)
        stack.callback(_unmount, target)


def _mount(
    stack: AsyncExitStack, source: str, target: Path, kind: str, flags: int, data: str
) -> None:
    try:
        syscalls.mount(source, str(target), kind, flags, data)
    except OSError as error:
        raise Internal(f"cannot mount {kind} at {target}: {error.strerror}") from error
    stack.callback(_unmount, target)


def _unmount(target: Path) -> None:
    """Unmounts; what is still in use is detached, and goes when its last user does."""
    try:
        syscalls.umount(str(target))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        syscalls.umount(str(target), syscalls.MNT_DETACH)


async def _released(device: str) -> None:
    """Returns when the kernel no longer uses the disk: the mounts of an ended namespace go a moment later than it."""
    deadline = asyncio.get_running_loop().time() + _RELEASE_WAIT
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"{device} is still in use after its last container") from error
        await asyncio.sleep(0.01)


def _prepare_upper(upper: str, top_layer: str) -> None:
    """Upper and work directory below one directory; the root's own owner and mode are the image's."""
    path = Path(upper)
    if (path / "u").is_dir():
        return
    path.mkdir(mode=0o755, exist_ok=True)
    root = os.stat(top_layer)
    for name in ("k", "u"):
        (path / name).mkdir(exist_ok=True)
    os.chown(path / "u", root.st_uid, root.st_gid)
    (path / "u").chmod(stat.S_IMODE(root.st_mode))


def _anchor(path: str) -> int:
    """What is shared, opened once. The host has resolved and checked the path: a symlink in it came afterwards."""
    try:
        return syscalls.open_plain(path, os.O_PATH)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Forbidden(
                f"{path} is not any more what it was: a symbolic link is in it"
            ) from None
        raise NotFound(f"bind source path does not exist: {path}") from error


def _resolve(anchor: int, subpath: str) -> int:
    """``subpath`` inside what ``anchor`` refers to, which nothing leads out of."""
    if not subpath:
        return os.dup(anchor)
    try:
        return syscalls.open_in_root(anchor, subpath, os.O_PATH)
    except OSError as error:
        raise NotFound(f"subpath {subpath!r} of the volume: {error.strerror}") from error


def _remove(directory: Path) -> None:
    """Removes a container's directory, whose mounts are gone; Internal if one is left, for it may be a bind of
    somebody's files.
    """
    inside = f"{directory.absolute()}/".replace(" ", "\\040")  # as proc_pid_mountinfo(5) writes it
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split(" ")[4].startswith(inside):
            raise Internal(f"{directory} is kept: {line.split(' ')[4]} is still mounted")
    import shutil  # it loads half a dozen compressors, which no start should wait for

    shutil.rmtree(directory)
