"""The engines that hybrid is compared with, each with state, network and processes of its own.

They run in network, mount and process namespaces made for them: nothing of theirs (bridges, firewall rules,
sockets) meets what is on this host, and all of it is gone when the namespaces' first process is.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paired import Failed, output
from benchmarks.rig import IMAGES
from tests.built import example

START_WITHIN = 60.0
OFFLINE = "runsc-offline"  # gVisor without a network
# A first process that also reaps whatever is left to it.
# crun refuses cgroup version 1 with version 2 beside it.
FIRST = """
ip link set lo up && mount -t tmpfs tmpfs /run || exit
umount /sys/fs/cgroup/unified 2>/dev/null
echo up
sleep infinity & wait
"""


@dataclass(frozen=True)
class Peer:
    """``cli`` begins a command line; ``run`` begins one that runs a container; ``inside`` enters its namespaces.
    ``note``: what it does not do here."""

    name: str
    cli: list[str]
    run: list[str]
    inside: list[str]
    note: str = ""


def program(name: str) -> str:
    """Where it is; Failed if it is not installed."""
    found = shutil.which(name, path="/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin:/bin:/sbin")
    if not found:
        raise Failed(f"{name} is not installed here")
    return found


@contextlib.contextmanager
def namespaces() -> Iterator[list[str]]:
    """The beginning of a command line that runs the rest in there."""
    kinds = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    first = subprocess.Popen(
        # It must not outlive a measurement that is killed.
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            *kinds,
            "--propagation",
            "private",
            "sh",
            "-c",
            FIRST,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert first.stdout is not None
        if first.stdout.readline() != b"up\n":
            raise Failed("no namespaces for the peers: unshare failed")
        child = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()[0]
        yield ["nsenter", "--target", child, "--net", "--mount", "--pid", "--"]
    finally:
        first.kill()
        first.wait()


@contextlib.contextmanager
def dockerd(docker: str) -> Iterator[Peer]:
    """Debian's dockerd, with runc and, where it is installed, gVisor's runsc as a second runtime."""
    server = program("dockerd")
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="dockerd-bench-", dir="/var/tmp")
        scratch = Path(stack.enter_context(made))
        inside = stack.enter_context(namespaces())
        config, log, socket = scratch / "config.json", scratch / "log", scratch / "docker.sock"
        runsc = shutil.which("runsc")
        # Its other platforms need hardware virtualisation, or are not in Debian's version.
        flags = {"runsc": ["--platform=ptrace"], OFFLINE: ["--platform=ptrace", "--network=none"]}
        gvisor = {name: {"path": runsc, "runtimeArgs": flags[name]} for name in flags}
        config.write_text(json.dumps({"runtimes": gvisor if runsc else {}}))
        places = [f"--{name}={scratch / name}" for name in ("data-root", "exec-root", "pidfile")]
        command = [server, f"--config-file={config}", *places, f"--host=unix://{socket}"]
        with log.open("wb") as file:
            process = subprocess.Popen([*inside, *command], stdout=file, stderr=file)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        cli = [docker, "--host", f"unix://{socket}"]
        name = _answers([*cli, "version", "--format", "{{.Server.Version}}"], process, log)
        for image in IMAGES:
            output([*cli, "load", "-q", "-i", str(example(image))])
        yield Peer(f"dockerd {name} with runc", cli, [*cli, "run"], inside)


def _answers(command: Sequence[str], process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_WITHIN
    while True:
        with contextlib.suppress(Failed):
            return output(command).strip()
        if process.poll() is not None or time.monotonic() > end:
            raise Failed(f"dockerd did not start: {log.read_text()[-300:]}")
        time.sleep(0.1)


def gvisor(docker: Peer) -> Peer:
    """The same dockerd with gVisor in runc's place; Failed if no container runs.

    Debian 12's version takes newer kernels' namespaces for the host's own, and then wants no network of its own.
    """
    version = output([program("runsc"), "--version"]).splitlines()[0].split()[-1]
    name = f"dockerd with gVisor {version}"
    run, note = [*docker.run, "--runtime", "runsc"], ""
    try:
        output([*run, "--rm", "busybox", "true"])
    except Failed as failed:
        run = [*docker.run, "--runtime", OFFLINE]
        note = f"gVisor's side without a network, for: {str(failed).rpartition('daemon: ')[2]}"
        output([*run, "--rm", "busybox", "true"])
    return Peer(name, docker.cli, run, docker.inside, note)


@contextlib.contextmanager
def podman() -> Iterator[Peer]:
    """Debian's podman with crun on its default bridge network."""
    binary = program("podman")
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="podman-bench-", dir="/var/tmp")
        scratch = Path(stack.enter_context(made))
        inside = stack.enter_context(namespaces())
        places = [f"--{name}={scratch / name}" for name in ("root", "runroot", "tmpdir")]
        more = ["--runtime", program("crun"), "--cgroup-manager", "cgroupfs"]
        cli = [*inside, binary, *places, *more, "--events-backend", "none"]
        version = output([*cli, "--version"]).split()[-1]
        for image in IMAGES:
            output([*cli, "load", "-q", "-i", str(example(image))])
        run = [*cli, "run"]
        output([*run, "--rm", "busybox", "true"])
        yield Peer(f"podman {version} with crun", cli, run, inside)
