"""Files in and out of containers, as tar streams that the machine's agent makes and unpacks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hybrid.engine.containers import Containers
from hybrid.engine.launch import Launcher
from hybrid.engine.live import Container, Run
from hybrid.engine.machine import Machine
from hybrid.errors import Forbidden, Unavailable
from hybrid.link.client import LinkStream
from hybrid.wire.messages import GetArchive, PathStat, PutArchive, StatPath

CHUNK = 64 << 10


class Archives:
    """Copies to and from containers; one that does not run is opened for the time of the copy."""

    def __init__(self, containers: Containers, launcher: Launcher) -> None:
        self._containers = containers
        self._launcher = launcher

    @asynccontextmanager
    async def _opened(self, container: Container) -> AsyncIterator[Machine]:
        if container.run is not None:
            yield container.run.machine
            return
        async with container.lock:
            started: Run | None = container.run  # while the lock was waited for
            if started is not None:
                yield started.machine
                return
            async with self._launcher.opened(container.record) as machine:
                yield machine

    async def stat(self, reference: str, path: str) -> PathStat:
        container = self._containers.find(reference)
        async with self._opened(container) as machine:
            return await machine.call(StatPath(container.id, path))

    @asynccontextmanager
    async def get(
        self, reference: str, path: str
    ) -> AsyncIterator[tuple[PathStat, AsyncIterator[bytes]]]:
        """What is at ``path``, and a tar of it."""
        container = self._containers.find(reference)
        async with self._opened(container) as machine:
            client = await machine.client()
            stream = client.open()

            async def data() -> AsyncIterator[bytes]:
                while chunk := await stream.read(CHUNK):
                    yield chunk

            try:
                stat = await client.call(GetArchive(container.id, path, stream.id))
                yield stat, data()
            finally:
                await stream.reset()

    async def put(
        self,
        reference: str,
        path: str,
        data: AsyncIterator[bytes],
        *,
        no_overwrite_dir_non_dir: bool,
        copy_ids: bool,
    ) -> None:
        """Unpacks the tar into the directory ``path``."""
        container = self._containers.find(reference)
        mounts = container.record.spec.mounts
        if container.record.spec.read_only and not any(
            path.startswith(one.target) for one in mounts
        ):
            raise Forbidden("container rootfs is marked read-only")
        async with self._opened(container) as machine:
            client = await machine.client()
            stream = client.open()
            request = PutArchive(container.id, path, stream.id, no_overwrite_dir_non_dir, copy_ids)
            unpacked = asyncio.create_task(client.call(request, timeout=None))
            feeding = asyncio.create_task(_feed(stream, data))
            try:
                # The agent may refuse before it has read all: its answer counts, not the broken stream.
                await asyncio.wait([unpacked, feeding], return_when=asyncio.FIRST_COMPLETED)
                if not unpacked.done():
                    with contextlib.suppress(Unavailable):
                        await feeding
                await unpacked
            finally:
                feeding.cancel()
                unpacked.cancel()
                await asyncio.gather(feeding, unpacked, return_exceptions=True)
                await stream.reset()


async def _feed(stream: LinkStream, data: AsyncIterator[bytes]) -> None:
    async for chunk in data:
        for start in range(0, len(chunk), CHUNK):
            await stream.write(chunk[start : start + CHUNK])
    await stream.close_write()
