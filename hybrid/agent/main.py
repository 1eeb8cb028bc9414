"""The agent: the program in a machine that runs its containers. Started with one of --serial, --vsock and --unix.

It needs nothing but Python's standard library and crun. What is not needed to say hello is loaded after that.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from pathlib import Path

from hybrid.agent import transport
from hybrid.agent.options import Options
from hybrid.agent.server import Agent
from hybrid.errors import Conflict, HybridError, InvalidInput, Unsupported


def main() -> int:
    """Runs until a shutdown is asked for; the exit code."""
    try:
        options = Options.parse(sys.argv[1:])
        _settle(options)
        asyncio.run(_run(options))
    except (HybridError, OSError) as error:
        print(f"hybrid agent: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _settle(options: Options) -> None:
    """State directory, working directory, and a place of its own for mounts."""
    os.umask(0o022)
    options.state.mkdir(mode=0o711, parents=True, exist_ok=True)
    if options.guest:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")  # without the agent there is no guest
    else:
        if os.geteuid() != 0:
            raise Unsupported("the agent must run as root: it mounts, and makes namespaces")
        _enterable(options.state)
        _be_alone(options)
        # mounts are nobody else's business here, and go with the agent and its containers
        from hybrid.agent import syscalls

        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
    os.chdir(options.state)


def _enterable(state: Path) -> None:
    """A container's root is nobody in particular on this machine, and must reach its root file system."""
    for directory in (state, *state.parents):
        if not directory.stat().st_mode & 0o001:
            raise InvalidInput(
                f"--state {state}: {directory} cannot be entered by containers (chmod o+x {directory})"
            )


def _be_alone(options: Options) -> None:
    """One agent a state directory: the lock is held as long as the process lives."""
    lock = os.open(options.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(f"another agent runs in {options.state}") from None


async def _run(options: Options) -> None:
    agent = Agent(options)
    if options.serial:
        await agent.serve(await transport.open_serial(options.serial))
    elif options.vsock:
        await agent.serve_each(transport.accept_vsock(options.vsock, options.peer))
    else:
        await agent.serve_each(transport.accept_unix(options.unix))


if __name__ == "__main__":
    sys.exit(main())
