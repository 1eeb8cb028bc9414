"""Each test has a network namespace for "the host", and others for containers and outsiders.

The test's own (main) thread changes into it, so do the threads and processes that it starts
afterwards: nothing here ever touches the devices, rules or sysctls of the real host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hybrid.network.model import NetworkConfig
from hybrid.network.network import Networks
from hybrid.paths import Paths

CLONE_NEWNET = 0x40000000
FRONT = NetworkConfig("f" * 64, "front", "10.9.1.0/24", "10.9.1.1")
BACK = NetworkConfig("b" * 64, "back", "10.9.2.0/24", "10.9.2.1")
CLOSED = NetworkConfig("c" * 64, "closed", "10.9.3.0/24", "10.9.3.1", internal=True)


def run(*command: str, check: bool = True, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


@dataclass
class Box:
    """A container, or an outsider: a network and a mount namespace, held by a sleeping process."""

    process: subprocess.Popen[bytes]
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, *command: str, check: bool = True) -> str:
        return run("nsenter", "-t", str(self.pid), "-n", "-m", *command, check=check)

    def take(self, device: str, name: str, address: str, gateway: str = "") -> None:
        run("ip", "link", "set", device, "netns", str(self.pid), "name", name)
        self.run("ip", "address", "add", address, "dev", name)
        self.run("ip", "link", "set", name, "up")
        if gateway:
            self.run("ip", "route", "add", "default", "via", gateway)

    def name_servers(self, *addresses: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as file:
            file.write("".join(f"nameserver {address}\n" for address in addresses))
            file.write("options timeout:1 attempts:1\n")
        os.chmod(file.name, 0o644)
        self.run("mount", "--bind", file.name, "/etc/resolv.conf")
        os.unlink(file.name)  # the mount holds it

    def serve(self, port: int, text: str, protocol: str = "tcp") -> None:
        """Answers every connection (or datagram) with the text and who asked."""
        process = subprocess.Popen(
            [
                "nsenter",
                "-t",
                str(self.pid),
                "-n",
                "python3",
                "-Ic",
                SERVER,
                protocol,
                str(port),
                text,
            ],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdout.close()
        self.servers.append(process)

    def ask(self, address: str, port: int, protocol: str = "tcp") -> str:
        """What the server there answers; "" when nobody does."""
        return self.run("python3", "-Ic", CLIENT, protocol, address, str(port), check=False).strip()

    @contextlib.contextmanager
    def capture(self) -> Iterator[Callable[[bytes], list[bytes]]]:
        """All frames that arrive at eth0, up to the one that is waited for."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        with open(f"/proc/{self.pid}/ns/net", "rb") as there:
            enter(there.fileno())
        try:
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        finally:
            enter(home)
            os.close(home)
        packets.bind(("eth0", 3))
        packets.settimeout(5)

        def frames(until: bytes) -> list[bytes]:
            seen = [packets.recv(2048)]
            while seen[-1] != until:
                seen.append(packets.recv(2048))
            return seen

        with packets:
            yield frames

    def close(self) -> None:
        for process in [*self.servers, self.process]:
            process.kill()
            process.wait()


SERVER = """
import socket, sys
protocol, port, text = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", int(port)))
if protocol == "tcp": s.listen()
print("ready", flush=True)
while True:
    if protocol == "tcp":
        c, peer = s.accept(); c.sendall(f"{text} {peer[0]}".encode()); c.close()
    else:
        _, peer = s.recvfrom(99); s.sendto(f"{text} {peer[0]}".encode(), peer)
"""
CLIENT = """
import socket, sys
protocol, address, port = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
s.settimeout(1)
try:
    s.connect((address, int(port)))
    if protocol == "udp": s.send(b"?")
    print(s.recv(99).decode())
except OSError as error:
    print(type(error).__name__, file=sys.stderr)
"""


def enter(namespace: int) -> None:
    """This thread's network namespace is that one from now on."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    if os.geteuid():
        pytest.skip("needs root")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNET) == 0
    try:
        run("ip", "link", "set", "lo", "up")
        yield
    finally:
        enter(home)
        os.close(home)


class Lab:
    """The host of one test, with its networks, containers and outsiders."""

    front, back, closed = FRONT, BACK, CLOSED

    def __init__(self, paths: Paths, resolv_conf: Path) -> None:
        self.paths = paths
        self.resolv_conf = resolv_conf
        self.networks = Networks(paths, resolv_conf)
        self.table = f"hybrid_{paths.instance}"
        self._boxes: list[Box] = []

    def run(self, *command: str, check: bool = True) -> str:
        return run(*command, check=check)

    def ask(self, address: str, port: int, protocol: str = "tcp") -> str:
        """As ``Box.ask``, from the host."""
        return run("python3", "-Ic", CLIENT, protocol, address, str(port), check=False).strip()

    def box(self) -> Box:
        process = subprocess.Popen(
            ["unshare", "-n", "-m", "sh", "-c", "ip link set lo up; echo ready; exec sleep 600"],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdout.close()
        box = Box(process)
        self._boxes.append(box)
        return box

    def outsider(self) -> Box:
        """A neighbour of the host on another network: the host is 198.51.100.1 there, it is .2."""
        box = self.box()
        run("ip", "link", "add", "outside0", "type", "veth", "peer", "name", "outside1")
        run("ip", "address", "add", "198.51.100.1/24", "dev", "outside0")
        run("ip", "link", "set", "outside0", "up")
        box.take("outside1", "eth0", "198.51.100.2/24")
        return box

    def endpoint(self, network: NetworkConfig, number: int) -> str:
        return f"{network.name}-{number}"

    async def attach(
        self, network: NetworkConfig, number: int, box: Box | None = None, device: str = "eth0"
    ) -> Box:
        """A box (a new one, if none is given) on the network, under its address ``.number``."""
        await self.networks.ensure_network(network)
        box = box or self.box()
        address = f"{network.subnet.rsplit('.', 1)[0]}.{number}"
        mac = f"02:42:00:00:{number:02x}:01"
        peer = await self.networks.attach_veth(
            network.id, self.endpoint(network, number), mac, address
        )
        outwards = device == "eth0" and not network.internal
        box.take(peer, device, f"{address}/24", network.gateway if outwards else "")
        return box

    async def close(self) -> None:
        for box in self._boxes:
            box.close()
        await self.networks.close()
        cleaner = Networks(self.paths)
        await cleaner.reconcile([], [])
        await cleaner.close()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    # Not pytest's tmp_path: the name server's user has to get through to its files.
    with tempfile.TemporaryDirectory(prefix="hynet", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        resolv_conf = directory / "resolv.conf"
        resolv_conf.write_text("nameserver 127.0.0.53\n")
        made = Lab(Paths(directory / "root", directory / "run"), resolv_conf)
        await made.networks.reconcile([], [])
        yield made
        await made.close()
