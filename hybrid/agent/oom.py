"""Tells when the kernel kills processes of a container for want of memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from hybrid.agent import syscalls
from hybrid.agent.cgroups import Group


def watch(group: Group, changed: Callable[[], None]) -> Callable[[], None]:
    """Calls ``changed`` after each change of the group's memory events; returns what ends that.

    Without cgroup v2 there is nothing to watch: the count is then read when a process ends.
    """
    file = group.unified / "memory.events" if group.unified else None
    if file is None or not file.exists():
        return lambda: None
    descriptor = syscalls.watch_file(str(file))
    loop = asyncio.get_running_loop()

    def woken() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(descriptor, 4096)
        changed()

    loop.add_reader(descriptor, woken)

    def end() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)

    return end
