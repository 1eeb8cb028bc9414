"""Joins the link to the service: hello at once, everything else as soon as it is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from hybrid.agent.identity import Identity
from hybrid.agent.options import Options
from hybrid.agent.transport import SerialStream, SocketStream
from hybrid.errors import Unavailable
from hybrid.wire.messages import VERSION, Exited, Hello
from hybrid.wire.server import Connection, serve
from hybrid.wire.value import Request

if TYPE_CHECKING:
    from hybrid.agent.service import Service


class Agent:
    """One agent process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._identity = Identity(options.guest)
        self._connection: Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._done = asyncio.Event()
        self._loaded: asyncio.Task[Service] | None = None

    async def serve(self, stream: SerialStream) -> None:
        """Serves the one stream of a guest until shutdown."""
        await self._until_done(serve(stream, self._hello, self._handle, connected=self._connected))

    async def serve_each(self, streams: AsyncIterator[SocketStream]) -> None:
        """Serves connections until shutdown; a new one replaces the one before."""
        await self._until_done(self._serve_newest(streams))

    async def _serve_newest(self, streams: AsyncIterator[SocketStream]) -> None:
        self._load()
        current: asyncio.Task[None] | None = None
        async for stream in streams:
            if current is not None:
                current.cancel()
            current = asyncio.create_task(self._serve_one(stream))

    async def _serve_one(self, stream: SocketStream) -> None:
        try:
            await serve(stream, self._hello, self._handle, connected=self._connected)
        except OSError:
            pass  # the connection broke before its hello
        finally:
            await stream.close()

    async def _until_done(self, serving: Any) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._terminate)
        task = asyncio.ensure_future(serving)
        done = asyncio.ensure_future(self._done.wait())
        await asyncio.wait([task, done], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if self._options.guest:
            from hybrid.agent import syscalls

            syscalls.power_off()

    def _terminate(self) -> None:
        self._keep(self._stop())

    async def _stop(self) -> None:
        service = await self._load()
        await service.stop_all(0)
        self._done.set()

    def _hello(self) -> Hello:
        return Hello(VERSION, self._identity.boot, self._options.features)

    def _load(self) -> asyncio.Task[Service]:
        """Begins to load the service, once."""
        if self._loaded is None:
            self._loaded = asyncio.create_task(self._make_service())
        return self._loaded

    async def _make_service(self) -> Service:
        from hybrid.agent.service import Service

        service = Service(self._options, self._identity, self._emit, self._done.set)
        await service.prepare()
        return service

    async def _handle(self, request: Request[Any], connection: Connection) -> object:
        loading = self._load()
        service = loading.result() if loading.done() else await asyncio.shield(loading)
        return await service.handle(request, connection)

    def _connected(self, connection: Connection) -> None:
        self._connection = connection
        self._keep(self._tell_again())

    async def _tell_again(self) -> None:
        service = await asyncio.shield(self._load())
        for state in service.ended():
            self._emit(Exited(state))

    def _emit(self, event: object) -> None:
        if self._connection is not None and not self._connection.closed:
            self._keep(self._send(self._connection, event))

    async def _send(self, connection: Connection, event: object) -> None:
        with contextlib.suppress(Unavailable):  # what has ended is told again to the next host
            await connection.emit(event)

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
