"""Runs the probe program inside a container: what it tries must be refused.

The program comes as a sealed memory file that ``crun exec`` passes on, so that nothing is put into the container's
file system; it runs as the container's own process would, with its user, capabilities, seccomp filter and namespaces.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
from pathlib import Path

from hybrid.agent import evidence
from hybrid.agent.container import Container
from hybrid.agent.containers import Containers
from hybrid.agent.process import Process
from hybrid.errors import Conflict, Internal, InvalidInput, Unsupported
from hybrid.wire.journal import STDOUT, Parser
from hybrid.wire.messages import ProbeResult, ProbeResults

_TIMEOUT = 120.0
_EXEC = "hybrid-probe"
_PROGRAM = "/proc/self/fd/3"  # what crun passes on comes after stdio


async def run(
    containers: Containers, container: Container, program: Path, addresses: list[str]
) -> ProbeResults:
    """Results in the order in which the program gave them."""
    for address in addresses:
        _checked(address)
    if container.init.status != "running":
        raise Conflict(
            f"cannot probe: container {container.request.container} is {container.init.status}"
        )
    descriptor = _sealed(program)
    process = Process(container.request.container, _EXEC, terminal=False, stdin=False)
    try:
        spec = dict(container.config["process"]) | {
            "args": [_PROGRAM, *addresses],
            "terminal": False,
        }
        personality = evidence.personality(
            await containers.run_in(container, process, spec, (descriptor,))
        )
        await asyncio.wait_for(process.finished.wait(), _TIMEOUT)
    except TimeoutError:
        raise Internal(f"the probe did not end in {_TIMEOUT:.0f} s") from None
    finally:
        os.close(descriptor)
        await containers.stop(process)
        process.close()
    output, _ = process.ring.read(process.ring.start, process.ring.end)
    return ProbeResults(_parsed(output, process.exit_code), personality)


def _checked(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        if not 0 < int(port) < 1 << 16:
            raise ValueError
    except ValueError:
        raise InvalidInput(f"{address!r} is not an address and port") from None


def _sealed(program: Path) -> int:
    try:
        data = program.read_bytes()
    except OSError as error:
        raise Unsupported(f"no probe program at {program}: {error.strerror}") from error
    descriptor = os.memfd_create("probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.fchmod(descriptor, 0o555)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _parsed(output: bytes, code: int) -> list[ProbeResult]:
    """Lines of ``name TAB refused|allowed TAB detail``."""
    records = list(Parser().feed(output))
    text = b"".join(record.data for record in records if record.stream == STDOUT).decode(
        "utf-8", "replace"
    )
    found = []
    for line in text.splitlines():
        name, verdict, detail = ([*line.split("\t", 2), "", ""])[:3]
        if verdict in ("refused", "allowed"):
            found.append(ProbeResult(name, verdict == "refused", detail))
    if code or not found:
        words = b"".join(record.data for record in records).decode("utf-8", "replace").strip()
        raise Internal(f"the probe ended with exit code {code}: {words[-200:] or 'no output'}")
    return found
