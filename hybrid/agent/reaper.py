"""Waits for the agent's children, by pid, and starts programs.

The agent is the subreaper: a container's init becomes its child when ``crun create`` ends. A child that was not
waited for keeps its pid, so a signal sent by the reaper can never meet a stranger. Orphans that nobody claims (what a
container left behind) are buried too, but only while no start is under way: until then any of them may be the
process whose pid the runtime is about to tell.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext


def exit_code(status: int) -> int:
    """A wait status as Docker counts: the exit code, or 128 + n for a death by signal n."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _give_up(waiting: asyncio.Future[int]) -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())


class Reaper:
    """Knows the living children. All calls come from the event loop."""

    def __init__(self) -> None:
        self._watched: dict[int, Callable[[int], None]] = {}
        self._starts = 0

    def install(self) -> None:
        """Begins to reap; needs the running event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._sweep)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While inside, unknown children are left alone: one of them may be about to be watched."""
        self._starts += 1
        try:
            yield
        finally:
            self._starts -= 1
            if not self._starts:
                asyncio.get_running_loop().call_soon(self._sweep)

    def watch(self, pid: int, ended: Callable[[int], None]) -> None:
        """Calls ``ended(exit code)`` once, soon after the child ``pid`` has ended.

        To be called inside ``starting`` (which sees to what has ended by then), or at once after the fork.
        """
        self._watched[pid] = ended

    def kill(self, pid: int, number: int) -> bool:
        """Signals a watched child; False if it has ended."""
        if pid not in self._watched:
            return False
        os.kill(pid, number)
        return True

    async def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        stdio: Sequence[int] | None = None,
        timeout: float = 60.0,
        *,
        inheriting: AbstractContextManager[None] | None = None,
    ) -> int:
        """Runs a program to its end and returns its exit code; ``stdio`` are its descriptors from 0 on, None is
        /dev/null. It inherits what this process has inside ``inheriting``. It is killed on timeout."""
        with self.starting():
            return await self._run(argv, environment, stdio, timeout, inheriting or nullcontext())

    async def _run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        stdio: Sequence[int] | None,
        timeout: float,
        inheriting: AbstractContextManager[None],
    ) -> int:
        null = -1
        if stdio is None:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            stdio = (null, null, null)
        try:
            actions = [(os.POSIX_SPAWN_DUP2, source, number) for number, source in enumerate(stdio)]
            with inheriting:
                pid = os.posix_spawnp(
                    argv[0],
                    list(argv),
                    dict(environment),
                    file_actions=actions,
                    setsigmask=[],
                    setsigdef=[signal.SIGPIPE, signal.SIGCHLD],
                )
        finally:
            if null >= 0:
                os.close(null)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()
        self.watch(pid, lambda code: None if ended.done() else ended.set_result(code))
        # A timer in place of wait_for and shield, which cost more than the rest of this.
        timer = loop.call_later(timeout, _give_up, ended)
        try:
            return await ended
        except (TimeoutError, asyncio.CancelledError):
            self.kill(pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()

    def _sweep(self) -> None:
        for pid in list(self._watched):
            if self._reap(pid):
                continue
        if self._starts:
            return
        while True:  # orphans: whatever zombie is left is nobody's
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if not self._reap(found.si_pid):
                os.waitpid(found.si_pid, os.WNOHANG)

    def _reap(self, pid: int) -> bool:
        ended = self._watched.get(pid)
        if ended is None:
            return False
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except (
            ChildProcessError
        ):  # cannot happen while all waiting is done here; do not lose the process
            done, status = pid, 255 << 8
        if done:
            del self._watched[pid]
            ended(exit_code(status))
        return bool(done)
