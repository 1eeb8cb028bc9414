"""A client's end of a running process: what it writes goes to stdin, what the process writes comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from hybrid.engine.live import Container
from hybrid.engine.machine import Machine
from hybrid.link.client import LinkStream
from hybrid.wire import journal
from hybrid.wire.messages import WriteInput


class Input:
    """A process's stdin. Opened at the first write or close, when ``ready`` gives the machine the process runs in."""

    def __init__(
        self,
        ready: Callable[[], Awaitable[Machine]],
        container: str,
        exec_id: str = "",
        *,
        keep_open: bool,
    ) -> None:
        self._ready = ready
        self._container = container
        self._exec = exec_id
        self._keep_open = keep_open
        self._stream: LinkStream | None = None

    async def _opened(self) -> LinkStream:
        if self._stream is None:
            client = await (await self._ready()).client()
            stream = client.open()
            try:
                await client.call(
                    WriteInput(self._container, stream.id, self._exec, self._keep_open)
                )
            except BaseException:
                await stream.reset()
                raise
            self._stream = stream
        return self._stream

    async def write(self, data: bytes) -> None:
        """Waits while the process does not read."""
        await (await self._opened()).write(data)

    async def close(self) -> None:
        """No more input: the process sees the end of its stdin, unless it is kept open for others."""
        await (await self._opened()).close_write()


class Attachment:
    """A client at a container's own process; the container may still have to be started."""

    def __init__(self, container: Container, *, replay: bool) -> None:
        self._container = container
        self._log = container.log
        self._place = 0 if replay else container.log.place()
        self._follow = container.log.waiting_follow()

    async def output(self, *, follow: bool = True) -> AsyncIterator[list[journal.Record]]:
        """What the container writes from here on (or has written), in batches, to the end of its run."""
        async for records in self._log.records(
            self._place, follow=self._follow if follow else None
        ):
            yield records

    def input(self) -> Input:
        async def ready() -> Machine:
            return (await self._container.running()).machine

        keep_open = not self._container.record.spec.stdin_once
        return Input(ready, self._container.id, keep_open=keep_open)
