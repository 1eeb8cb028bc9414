"""The program that turns one layer's plain tar archive (standard input, seekable) into a squashfs
image (/out).

It runs confined (``hybrid.image.confine``), for the archive is a stranger's: first the members are
read and resolved, then what results goes as a tar stream to ``tar2sqfs``. Exit status 0; 3 and one
line on standard error when the archive is bad; 4 and one line when the conversion failed.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from hybrid.errors import InvalidInput
from hybrid.image import confine, tarstream
from hybrid.image.layertree import resolve

BAD_ARCHIVE, FAILED = 3, 4
_ZEROS = b"\0" * (1 << 20)
COMMAND = ("/usr/bin/tar2sqfs", "--quiet", "--force", "--no-skip", "--compressor")


@dataclass(frozen=True, slots=True)
class Job:
    """What is converted, and its bounds. ``content`` counts bytes of files, holes included."""

    uid: int
    output: str
    length: int
    members: int
    content: int
    file_size: int
    memory: int
    compressor: str
    threads: int


def main(argument: str) -> int:
    """Does the ``Job`` in the JSON ``argument``."""
    job = Job(**json.loads(argument))
    cell = confine.Cell(job.uid, job.output, job.file_size, job.memory)
    confine.enter(cell)
    try:
        with io.FileIO(0, closefd=False) as source:
            return _convert(job, source)
    except InvalidInput as error:
        print(error.message, file=sys.stderr)
        return BAD_ARCHIVE
    except MemoryError:
        print("the layer has too many members for the conversion's memory", file=sys.stderr)
        return BAD_ARCHIVE


def _convert(job: Job, source: BinaryIO) -> int:
    tree = resolve(tarstream.entries(source, job.length, job.members))
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _become_tar2sqfs(reader, job)
    os.close(reader)
    try:
        with io.FileIO(writer, "wb") as sink:
            written = 0
            for entry in tree.plan():
                if entry.kind == tarstream.FILE:
                    written += entry.size
                    if written > job.content:
                        raise InvalidInput(
                            f"the layer's files have more than {job.content >> 20} MiB"
                        )
                _write(source, sink, entry)
            _all(sink, b"\0" * 1024)
    except BrokenPipeError:
        pass  # tar2sqfs has said why
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 0 if status == 0 else FAILED


def _become_tar2sqfs(stdin: int, job: Job) -> NoReturn:
    """In the child: whatever happens, none of the parent's code runs on here."""
    try:
        os.dup2(stdin, 0)
        os.closerange(3, 32)
        argv = [*COMMAND, job.compressor, "--num-jobs", str(job.threads), "/out"]
        os.execve(argv[0], argv, {"LC_ALL": "C.UTF-8"})
    except OSError as error:
        print(f"{COMMAND[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _all(sink: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[sink.write(view) or 0 :]


def _write(source: BinaryIO, sink: BinaryIO, entry: tarstream.Entry) -> None:
    """Header and content; the holes of a sparse file as zeros (tar2sqfs makes holes again)."""
    _all(sink, tarstream.header(entry))
    if entry.kind != tarstream.FILE:
        return
    position, offset = 0, entry.offset
    for start, size in entry.runs if entry.runs is not None else [(0, entry.size)]:
        _fill(sink, start - position)
        _copy(source, sink, offset, size)
        position, offset = start + size, offset + size
    _fill(sink, entry.size - position)
    _all(sink, tarstream.padding(entry.size))


def _fill(sink: BinaryIO, size: int) -> None:
    while size > 0:
        _all(sink, _ZEROS[: min(size, len(_ZEROS))])
        size -= len(_ZEROS)


def _copy(source: BinaryIO, sink: BinaryIO, offset: int, size: int) -> None:
    end = offset + size
    while offset < end:
        sent = os.sendfile(sink.fileno(), source.fileno(), offset, min(end - offset, 1 << 24))
        if not sent:
            raise InvalidInput("the archive is truncated: it ends inside a member")
        offset += sent


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
