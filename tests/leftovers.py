"""What one daemon has on this host beside what its containers, machines, networks and volumes account for.

Nothing here asks hybrid's own engine-side code: the host's kernel is read (processes, links, rules, mounts, loop
devices, control groups) and the two trees of the daemon, and compared with what the API lists.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hybrid.client.address import UnixAddress
from hybrid.client.engine import Engine
from hybrid.network.model import device_name, device_prefix
from tests.livedaemon import LiveDaemon

CGROUPS = Path("/sys/fs/cgroup")
OWN_RUN = {"hybrid.sock", "daemon.pid", "kvm.json", "agent", "m", "net", "libvirt"}
OWN_AGENT = {"log", "pid", "agent.sock", "state"}
ID_IN_PATH = 12
ID_IN_LIBVIRT = 4


class Known:
    """What the daemon itself says it has."""

    def __init__(self, live: LiveDaemon) -> None:
        engine = Engine(UnixAddress(live.paths.socket))
        listed = engine.containers(all=True)
        self.ids = {one["Id"] for one in listed}
        found: list[dict[str, Any]] = [engine.container(one) for one in sorted(self.ids)]
        self.containers = found
        self.running = {one["Id"] for one in found if one["State"]["Running"]}
        self.on_host = {
            one["Id"]
            for one in found
            if one["State"]["Running"] and one["Hybrid"]["Machine"] == "host"
        }
        endpoints = [
            endpoint
            for one in found
            if one["State"]["Running"]
            for endpoint in one["NetworkSettings"]["Networks"].values()
        ]
        self.endpoints = {
            endpoint["EndpointID"] for endpoint in endpoints if endpoint["EndpointID"]
        }
        self.networks = {one["Id"] for one in engine.call("GET", "/networks")}
        self.volumes = {one["Name"] for one in engine.call("GET", "/volumes")["Volumes"] or []}
        self.machines = {one["Id"]: one["Status"] for one in engine.machines(all=True)}
        self.guests = {
            one for one, status in self.machines.items() if status in ("running", "ready")
        }


def leftovers(live: LiveDaemon, ever: Iterable[str] = ()) -> list[str]:
    """One line for each thing that nothing accounts for. ``ever``: ids of containers that are gone."""
    known = Known(live)
    return [
        *_processes(live, known),
        *_links(live, known),
        *_rules(live, known),
        *_mounts_and_loops(live, known),
        *_cgroups(live, known, set(ever)),
        *_run_files(live, known),
        *_root_files(live, known),
    ]


def _processes(live: LiveDaemon, known: Known) -> Iterator[str]:
    machines = known.guests
    own = (str(live.paths.root), str(live.paths.run), f"hybrid-{live.paths.instance}")
    for pid, words in processes():
        if pid == live.pid or not any(text in word for word in words for text in own):
            continue
        line = " ".join(words)
        if "agent.pyz" in line or "/agent-" in words[-1] or any("/agent-" in w for w in words):
            continue
        if "hybrid.cli.main" in words:
            continue
        if "dnsmasq" in line and any(one in line for one in known.networks):
            continue
        if any(one[:ID_IN_PATH] in line for one in machines):
            continue
        if machines and "--shared-dir=" in line:
            continue
        yield f"process {pid}: {line[:200]}"
    yield from _agent_children(live, known)


def processes() -> Iterator[tuple[int, list[str]]]:
    """Every process's id and command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        yield int(entry.name), words


def agent_pid(live: LiveDaemon) -> int | None:
    """The host agent's, if there is one."""
    try:
        pid = int((live.paths.host_agent / "pid").read_text().split()[0])
    except OSError:
        return None
    return pid if Path(f"/proc/{pid}").exists() else None


def _agent_children(live: LiveDaemon, known: Known) -> Iterator[str]:
    pid = agent_pid(live)
    if pid is None:
        return
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not known.on_host and children:
        yield f"children of the host's agent: {children}"


def _links(live: LiveDaemon, known: Known) -> Iterator[str]:
    instance = live.paths.instance
    owned = {device_name(instance, "bridge", one) for one in known.networks}
    for one in known.endpoints:
        owned |= {device_name(instance, kind, one) for kind in ("tap", "veth")}
    for entry in Path("/sys/class/net").glob(f"{device_prefix(instance)}*"):
        if entry.name not in owned:
            yield f"network device {entry.name}"


def _rules(live: LiveDaemon, known: Known) -> Iterator[str]:
    done = subprocess.run(
        ["nft", "-j", "list", "table", "inet", f"hybrid_{live.paths.instance}"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return
    published = sum(
        len(bindings or [])
        for one in known.containers
        if one["Id"] in known.running
        for bindings in one["NetworkSettings"]["Ports"].values()
    )
    elements = sum(
        len(entry["map"].get("elem", []))
        for entry in json.loads(done.stdout)["nftables"]
        if entry.get("map", {}).get("name", "").startswith("published")
    )
    if elements != published:
        yield f"{elements} ports in the nftables table, {published} published"


def _mounts_and_loops(live: LiveDaemon, known: Known) -> Iterator[str]:
    trees = (f"{live.paths.root}/", f"{live.paths.run}/")
    pids = [pid for pid in ("self", live.pid, agent_pid(live)) if pid is not None]
    for pid in pids:
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
            target = line.split()[4]
            if target.startswith(trees) and not known.on_host:
                yield f"mount {target} (seen by {pid})"
    if known.on_host:
        return
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        backing = _read(file)
        if backing.startswith(trees):
            yield f"loop device {file.parts[3]} of {backing}"


def _cgroups(live: LiveDaemon, known: Known, ever: set[str]) -> Iterator[str]:
    group = f"hybrid-{live.paths.instance}"
    for entry in {*CGROUPS.glob(f"*/{group}/*"), *CGROUPS.glob(f"{group}/*")}:
        if entry.is_dir() and entry.name in ever | known.ids and entry.name not in known.on_host:
            yield f"control group {entry}"


def _run_files(live: LiveDaemon, known: Known) -> Iterator[str]:
    run = live.paths.run
    machines = {one[:ID_IN_PATH] for one in known.guests}
    yield from _strangers(run, OWN_RUN)
    yield from _strangers(run / "m", machines)
    yield from _strangers(run / "net", known.networks)
    for entry in _entries(live.paths.host_agent):
        if entry.name not in OWN_AGENT and not entry.name.startswith("agent-"):
            yield f"{entry}"
    state = live.paths.host_agent / "state"
    yield from _strangers(state / "crun", known.on_host)
    if len(_entries(state / "c")) != len(known.on_host):
        yield f"{len(_entries(state / 'c'))} directories in {state / 'c'}, {len(known.on_host)} containers"


def _root_files(live: LiveDaemon, known: Known) -> Iterator[str]:
    root = live.paths.root
    yield from _strangers(root / "containers", known.ids)
    yield from _strangers(root / "volumes", known.volumes)
    yield from _strangers(root / "machines", set(known.machines))
    for directory in (root, root / "images", root / "images/blobs/sha256", root / "layers"):
        for entry in _entries(directory):
            if entry.name.startswith((".", "tmp")):
                yield f"temporary file {entry}"
    for pattern in ("log/qemu/*", "run/qemu/hybrid-*", "etc/qemu/*.xml", "lib/qemu/domain-*"):
        for entry in (root / "libvirt").glob(pattern):
            # libvirt itself shortens the last.
            if not any(one[:ID_IN_LIBVIRT] in entry.name for one in known.guests):
                yield f"libvirt's {entry}"


def _strangers(directory: Path, known: set[str]) -> Iterator[str]:
    for entry in _entries(directory):
        if entry.name not in known:
            yield f"{entry}"


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def nothing_left(live: LiveDaemon, ever: Iterable[str] = (), patience: float = 20.0) -> None:
    """Asserts that there are no ``leftovers``, within the time in which libvirt and the agents notice an end."""
    end = time.monotonic() + patience
    ever = list(ever)
    while (found := leftovers(live, ever)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not found, "\n".join(found)
