"""Which machine this is. What acts on it is imported where it is used: this is here before the first hello."""

from __future__ import annotations

import os

from hybrid.errors import Conflict, Unsupported
from hybrid.wire.messages import Configure, Prepare


class Identity:
    """Which machine this is, once it was told."""

    def __init__(self, guest: bool) -> None:
        self._guest = guest
        self._machine = ""
        # A guest that is frozen before it has an identity must not have drawn this: its clones would share it.
        self.boot = "" if guest else os.urandom(8).hex()
        """A random id of this agent's run, as ``Hello`` tells it."""

    def prepare(self, request: Prepare) -> None:
        """See ``Prepare``."""
        from hybrid.agent import system

        if not self._guest or self._machine:
            raise Conflict("only a guest that has no identity yet can be readied for freezing")
        if request.lock_down:
            system.lock_down()

    def take(self, request: Configure) -> None:
        """See ``Configure``; again for the same machine only clock and randomness are renewed."""
        from hybrid.agent import system

        if self._machine and self._machine != request.machine:
            raise Conflict(
                f"this machine is {self._machine} already, it cannot become {request.machine}"
            )
        if not self._guest:
            if request.realtime_ns or request.entropy or request.lock_down or request.sysctls:
                raise Unsupported(
                    "clock, randomness, lock-down and sysctls of a machine that is no guest are its own"
                )
        elif not self._machine:
            system.configure(request)
            self.boot = os.urandom(8).hex()
        else:
            system.reseed(request.entropy)
            if request.realtime_ns:
                system.set_time(request.realtime_ns)
        self._machine = request.machine
