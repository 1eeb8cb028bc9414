"""Layers as block devices: each layer's tar archive becomes one read-only squashfs file, once.

blob ──(confined decompressor)──▶ plain tar, digest compared ──(confined converter)──▶ <diff
id>.squashfs

Decompressing and parsing happen in confined processes (``confine``, ``convert``); this process only
hashes the bytes in between. So a file named after a diff id has that layer's content, whatever the
blob did to the decompressor. The result appears by a rename: complete, read-only, padded to 4 KiB
for use as a block device. Safe to call again at any time; what a crash leaves is swept at the next
start.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import hybrid
from hybrid.errors import Internal, InvalidInput, Unavailable
from hybrid.image import digest as digests
from hybrid.image.blobs import CHUNK, disk_errors, room, sync_directory
from hybrid.image.convert import BAD_ARCHIVE, COMMAND, Job
from hybrid.paths import Paths
from hybrid.units import GIB, MIB

ALIGNMENT = 4096
# Above all that guests' QEMUs get (hybrid.machine.design: from 1_900_000_000 on, 2**26 of them).
_FIRST_UID = 1_970_000_000
_ERROR_TEXT = 4096
_WALL_CLOCK = 3600
_DECOMPRESSORS = {
    "gzip": ("/usr/bin/gzip", "-dc"),
    "zstd": ("/usr/bin/zstd", "-dcq", "--memory=256MiB"),
    "bzip2": ("/usr/bin/bzip2", "-dc"),
    "xz": ("/usr/bin/xz", "-dc", "--memlimit=256MiB"),
}
_PACKAGES = {"xz": "xz-utils"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one archive and one layer may cost. ``ratio``: plain to compressed, once past the first
    GiB.
    """

    archive: int = 64 * GIB
    layer: int = 32 * GIB
    members: int = 1_000_000
    ratio: int = 200
    memory: int = 2 * GIB
    threads: int = 2


class LayerConverter(Protocol):
    """Makes layer files. ``convert`` is idempotent and concurrent calls for one layer share the
    work.
    """

    async def convert(self, blob: Path, diff_id: str) -> Path:
        """The squashfs file of the layer whose (perhaps compressed) tar is ``blob``.

        InvalidInput if the content is not ``diff_id``, or is no layer, or exceeds the bounds.
        """
        ...

    def path(self, diff_id: str) -> Path:
        """Where that file is, or will be."""
        ...


def compression(head: bytes) -> str:
    """gzip, zstd, bzip2, xz, or empty for none, by the first bytes."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


class SquashfsConverter:
    """The real converter: confined processes, at most ``concurrency`` at a time."""

    def __init__(self, paths: Paths, bounds: Bounds | None = None, concurrency: int = 2) -> None:
        self._directory = paths.layers
        self._bounds = bounds or Bounds()
        # every running conversion has a uid of its own, and no other daemon's conversions share it
        first = _FIRST_UID + int(paths.instance[:4], 16) * 16
        self._free_uids = list(range(first, first + min(concurrency, 16)))
        self._slots = asyncio.Semaphore(len(self._free_uids))
        self._locks: dict[str, asyncio.Lock] = {}

    def path(self, diff_id: str) -> Path:
        return self._directory / f"{digests.hexadecimal(diff_id)}.squashfs"

    def sweep(self) -> None:
        """Removes what a crash left half-made; only while nothing converts."""
        if self._directory.is_dir():
            for path in self._directory.glob(".*"):
                path.unlink()

    async def convert(self, blob: Path, diff_id: str) -> Path:
        target = self.path(diff_id)
        async with self._locks.setdefault(diff_id, asyncio.Lock()):
            if not target.exists():
                with disk_errors(self._directory):
                    self._directory.mkdir(parents=True, exist_ok=True, mode=0o755)
                    async with self._slot() as uid:
                        await self._make(blob, diff_id, target, uid)
        self._locks.pop(diff_id, None)
        return target

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[int]:
        async with self._slots:
            uid = self._free_uids.pop()
            try:
                yield uid
            finally:
                self._free_uids.append(uid)

    async def _make(self, blob: Path, diff_id: str, target: Path, uid: int) -> None:
        with contextlib.ExitStack() as stack:
            tar: IO[bytes] = stack.enter_context(blob.open("rb"))
            kind = compression(tar.read(8))
            tar.seek(0)
            if kind:
                tar = stack.enter_context(await self.plain(tar, kind, uid, self._bounds.layer))
            actual = await asyncio.to_thread(_digest, tar)
            if actual != diff_id:
                raise InvalidInput(f"wrong digest: layer {diff_id} has the content of {actual}")
            output = stack.enter_context(
                tempfile.NamedTemporaryFile(dir=self._directory, prefix=".", delete=False)
            )
            stack.callback(Path(output.name).unlink, missing_ok=True)
            os.fchown(output.fileno(), uid, uid)
            await self._run_converter(tar, output, uid)
            await asyncio.to_thread(_finish, output, target)

    async def plain(self, source: IO[bytes], kind: str, uid: int | None, limit: int) -> IO[bytes]:
        """``source`` decompressed into an unnamed temporary file, by a confined process; bombs are
        refused.
        """
        program = _DECOMPRESSORS[kind]
        if not Path(program[0]).exists():
            raise Unavailable(
                f"{program[0]} is missing: install the Debian package {_PACKAGES.get(kind, kind)}"
            )
        packed = os.fstat(source.fileno()).st_size
        arguments = [str(uid or _FIRST_UID - 1), "0", str(self._bounds.memory), *program]
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(tempfile.TemporaryFile(dir=self._directory))
            async with _confined(
                "hybrid.image.confine", arguments, source, asyncio.subprocess.PIPE
            ) as process:
                await self._drain(process, plain, packed, limit)
                code, text = await _ended(process)
            if code:
                raise InvalidInput(
                    f"damaged or truncated {kind} data: {text or f'exit status {code}'}"
                )
            stack.pop_all()
        plain.seek(0)
        return plain

    async def _drain(self, process: Process, plain: IO[bytes], packed: int, limit: int) -> None:
        assert process.stdout is not None  # PIPE
        total = 0
        while chunk := await process.stdout.read(CHUNK):
            total += len(chunk)
            if total > limit or (total > GIB and total > packed * self._bounds.ratio):
                raise InvalidInput(
                    f"refused as a decompression bomb: {packed >> 10} KiB "
                    f"unpack to more than {total >> 20} MiB"
                )
            if total // CHUNK % 256 == 0:
                room(self._directory, 0)
            await asyncio.to_thread(plain.write, chunk)
        plain.flush()

    async def _run_converter(self, tar: IO[bytes], output: IO[bytes], uid: int) -> None:
        bounds, length = self._bounds, os.fstat(tar.fileno()).st_size
        job = Job(
            uid=uid,
            output=output.name,
            length=length,
            members=bounds.members,
            content=bounds.layer,
            file_size=length + 256 * MIB,  # compressed, so less; room for the tables
            memory=bounds.memory,
            compressor="lz4",  # the guest reads it often, and decompression is what it waits for
            threads=bounds.threads,
        )
        if not Path(COMMAND[0]).exists():
            raise Unavailable(
                f"{COMMAND[0]} is missing: install the Debian package squashfs-tools-ng"
            )
        arguments = [json.dumps(dataclasses.asdict(job))]
        async with _confined(
            "hybrid.image.convert", arguments, tar, asyncio.subprocess.DEVNULL
        ) as process:
            code, text = await _ended(process)
        if code == BAD_ARCHIVE:
            raise InvalidInput(text)
        if code:
            room(self._directory, 0)
            raise Internal(f"a layer could not be converted: {text or f'exit status {code}'}")


def _digest(tar: IO[bytes]) -> str:
    tar.seek(0)
    return digests.PREFIX + hashlib.file_digest(tar, "sha256").hexdigest()  # type: ignore[arg-type]


def _finish(output: IO[bytes], target: Path) -> None:
    """Takes the file from its confined maker, pads it, and gives it its name."""
    descriptor = output.fileno()
    os.fchown(descriptor, os.geteuid(), os.getegid())
    size = os.fstat(descriptor).st_size
    os.ftruncate(descriptor, (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
    os.fchmod(descriptor, 0o444)
    os.fsync(descriptor)
    if not stat.S_ISREG(os.lstat(output.name).st_mode) or size == 0:
        raise Internal("a layer's conversion left no file")
    os.rename(output.name, target)
    sync_directory(target.parent)


@contextlib.asynccontextmanager
async def _confined(
    module: str, arguments: Sequence[str], stdin: IO[bytes], stdout: int
) -> AsyncIterator[Process]:
    """Runs one of hybrid's own programs that confine themselves, with nothing but its three
    descriptors; it does not outlive the context.
    """
    os.lseek(stdin.fileno(), 0, os.SEEK_SET)  # a buffered seek leaves the descriptor where it is
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            sys.executable,
            "-S",
            "-m",
            module,
            *arguments,
            stdin=stdin,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": str(Path(hybrid.__file__).parent.parent), "LC_ALL": "C.UTF-8"},
            cwd="/",
        )
    )
    try:
        yield await asyncio.shield(starting)
    finally:
        await _stop(await starting)


async def _ended(process: Process) -> tuple[int, str]:
    """Exit status and the last line of what was said on standard error."""
    assert process.stderr is not None  # PIPE
    text = b""
    try:
        async with asyncio.timeout(_WALL_CLOCK):
            while chunk := await process.stderr.read(_ERROR_TEXT):
                text = (text + chunk)[-_ERROR_TEXT:]
            code = await process.wait()
    except TimeoutError as error:
        raise Unavailable(f"a layer's conversion took more than {_WALL_CLOCK // 60} min") from error
    lines = text.decode(errors="replace").strip().splitlines()
    return code, "".join(c if c.isprintable() else "?" for c in lines[-1]) if lines else ""


async def _stop(process: Process) -> None:
    """Kills the process (its children die with it) if it still runs, and waits for its end."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    for pipe in filter(None, (process.stdout, process.stderr)):
        while await pipe.read(CHUNK):
            pass
    await process.wait()
