"""Layers for machines that have no devices from this host: sent over the link, once, checked by their digest."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

from hybrid.engine.machine import Machine
from hybrid.wire.messages import HasBlob, PutBlob

CHUNK = 1 << 20


def digest(path: Path) -> str:
    """The digest of a file's content, as blobs are named."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


async def send_blobs(machine: Machine, paths: Sequence[Path]) -> list[str]:
    """Brings the files to the machine, those that it lacks; their digests, in order."""
    digests = []
    for path in paths:
        name = await asyncio.to_thread(digest, path)
        if not (await machine.call(HasBlob(name))).value:
            await _send(machine, path, name)
        digests.append(name)
    return digests


async def _send(machine: Machine, path: Path, name: str) -> None:
    client = await machine.client()
    stream = client.open()
    put = asyncio.create_task(
        client.call(PutBlob(name, path.stat().st_size, stream.id), timeout=None)
    )
    try:
        with path.open("rb") as file:
            while data := await asyncio.to_thread(file.read, CHUNK):
                await stream.write(data)
        await stream.close_write()
        await put
    except BaseException:
        put.cancel()
        await stream.reset()
        raise
