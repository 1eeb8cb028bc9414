"""The vsock transport from end to end: inside a guest, where the kernel has a loopback for it.

A second agent listens on vsock there; the host's own client code, carried in as a zip, talks to it.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path

import pytest

import hybrid
from hybrid.link.client import AgentClient
from tests.bareguest import run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

INSIDE = """
import asyncio, base64, hashlib, json, os, socket, subprocess, sys
open("/run/link.zip", "wb").write(base64.b64decode(sys.stdin.buffer.read()))
sys.path.insert(0, "/run/link.zip")
from hybrid.errors import Unavailable
from hybrid.link import vsock
from hybrid.link.client import AgentClient
from hybrid.wire.journal import Parser
from hybrid.wire.messages import AckOutput, Facts, StartExec

async def connect():
    for _ in range(100):
        try:
            return await AgentClient.connect(await vsock.connect(vsock.LOCAL), timeout=30)
        except Unavailable as error:
            last = error
            await asyncio.sleep(0.1)
    raise last

async def main():
    subprocess.run(["modprobe", "vsock_loopback"], check=True)
    agent = subprocess.Popen([
        sys.executable, "-I", "-S", "-B", "/usr/lib/hybrid/agent.pyz",
        "--vsock", str(vsock.PORT), "--peer", str(vsock.LOCAL), "--state", "/run/second",
    ])
    try:
        first = await connect()
        facts = await first.call(Facts())
        again = await connect()  # a new host replaces the one before
        await first.wait_closed()
        process = {"args": ["head", "-c", "4194304", "/dev/zero"], "cwd": "/", "env": ["PATH=/usr/bin"]}
        stream = again.open()
        await again.call(StartExec("", "zeros", process, stream=stream.id))
        parser, total, offset = Parser(), 0, 0
        while data := await stream.read():
            total += sum(len(record.data) for record in parser.feed(data))
            offset += len(data)
            await again.call(AckOutput("", offset, "zeros"))
        with socket.socket(socket.AF_VSOCK) as anybody:  # from a port that needs no rights
            anybody.settimeout(30)
            anybody.connect((vsock.LOCAL, vsock.PORT))
            refused = anybody.recv(1) == b""
        same = first.hello.boot == again.hello.boot and not again.closed
        await again.close()
        answer = {"kernel": facts.kernel, "bytes": total, "same": same, "first": first.reason}
        print(json.dumps(answer | {"stranger refused": refused}))
    finally:
        agent.kill()

asyncio.run(main())
"""


def carried() -> bytes:
    """The client's code as a zip that an interpreter can import from."""
    top = Path(hybrid.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in [*top.glob("*.py"), *top.glob("wire/*.py"), *top.glob("link/*.py")]:
            archive.write(file, file.relative_to(top.parent))
    return base64.b64encode(buffer.getvalue())


async def test_an_agent_is_reached_over_vsock(client: AgentClient) -> None:
    output = await run(client, "python3", "-I", "-c", INSIDE, stdin=carried())
    answer = json.loads(output.splitlines()[-1])
    assert answer == {
        "kernel": answer["kernel"],
        "bytes": 4 << 20,
        "same": True,
        "first": "the other end is gone",
        "stranger refused": True,
    }, output.decode()
