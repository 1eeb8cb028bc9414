"""Puts the agent on a box and keeps it there: each step can be repeated.

The agent's directory and socket on the box are named after the machine, so several hybrids can
share a box.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from importlib import resources

from hybrid.errors import Internal, Unavailable
from hybrid.host import facts, remote
from hybrid.host.connection import ChannelStream, Completed, Connection
from hybrid.host.facts import BoxFacts

_START_TIMEOUT = 45.0
_GREETING_LIMIT = 64 << 10


@dataclass(frozen=True)
class Place:
    """Where one machine's agent lives on its box."""

    machine_id: str
    state: str = "/var/lib/hybrid-agent"
    run: str = "/run/hybrid-agent"

    @property
    def directory(self) -> str:
        return f"{self.state}/{self.machine_id[:12]}"

    @property
    def socket(self) -> str:
        return f"{self.run}/{self.machine_id[:12]}.sock"

    @property
    def group(self) -> str:
        """The control group that its containers' are below: daemons that share a box have one each."""
        return f"hybrid-{self.machine_id[:12]}"

    def program(self, agent: bytes) -> str:
        """Named by content: a running agent never finds other modules in its archive."""
        return f"{self.directory}/agent-{hashlib.sha256(agent).hexdigest()[:16]}.pyz"


async def examine(connection: Connection) -> BoxFacts:
    """What the box has; Unsupported, with what to install, when it can't run the agent."""
    done = await connection.run(f"sh -c {shlex.quote(facts.COMMAND)}")
    found = facts.parse(done.output.decode(errors="replace"), connection.name)
    facts.require(found, connection.name)
    return found


async def running(connection: Connection, place: Place) -> str:
    """The program that the agent there runs from; "" when none runs."""
    words = (await _remote(connection, "status", place.directory)).split()
    return words[2] if words[:1] == ["running"] else ""


async def start(connection: Connection, place: Place, agent: bytes) -> None:
    """An agent runs: the one that did already, else this one. It outlives the connection."""
    if await running(connection, place):
        return
    program = place.program(agent)
    digest = hashlib.sha256(agent).hexdigest()
    await _remote(connection, "put", program, digest, str(len(agent)), data=agent)
    paths = ("--unix", place.socket, "--state", f"{place.directory}/state")
    options = (*paths, "--group", place.group)
    await _remote(connection, "start", place.directory, place.socket, program, *options)


async def stop(connection: Connection, place: Place) -> None:
    await _remote(connection, "stop", place.directory)


async def remove(connection: Connection, place: Place) -> None:
    """Nothing of the machine is left on the box. Its agent must have been stopped."""
    await _remote(connection, "remove", place.directory, place.socket)


async def link(connection: Connection, place: Place) -> ChannelStream | None:
    """A byte stream to the agent's socket; None when no agent listens there."""
    stream = await connection.stream(_command("relay", place.socket))
    try:
        if await stream.expect(remote.READY, within=_GREETING_LIMIT, timeout=_START_TIMEOUT):
            return stream
        code = await stream.exit_code(timeout=10)
    except TimeoutError as error:
        await stream.close()
        raise Unavailable(f"{connection.name}: no way to the agent in time") from error
    except BaseException:
        await stream.close()
        raise
    await stream.close()
    if code == remote.NO_AGENT:
        return None
    raise Unavailable(f"{connection.name}: the way to the agent ended with exit code {code}")


def _command(*arguments: str) -> str:
    """A line for the login shell: the program's text and its arguments, all quoted."""
    source = resources.files("hybrid.host").joinpath("remote.py").read_text()
    return f"python3 -Ic {shlex.quote(source)} {shlex.join(arguments)}"


async def _remote(connection: Connection, *arguments: str, data: bytes = b"") -> str:
    done: Completed = await connection.run(_command(*arguments), data=data, timeout=_START_TIMEOUT)
    if done.code:
        lines = done.errors.splitlines()
        raise Internal(f"{connection.name}: {arguments[0]}: {lines[-1] if lines else done.code}")
    return done.output.decode(errors="replace")
