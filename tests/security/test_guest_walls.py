"""A real guest from inside and outside: two containers of one trust group, and one with a guest of its own.

The guests are booted once for all tests here.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.guest.build import build_guest
from hybrid.guest.tools import build_tools
from tests.livedaemon import BUILT, LiveDaemon, live_daemon

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(600)]
MIB = 1 << 20
SECRET = "secret" + os.urandom(6).hex()


@pytest.fixture(scope="module")
def live() -> Iterator[LiveDaemon]:
    """``wa`` and ``wb`` share a guest and a network; ``wc`` has its own guest on that network, ``wd`` is elsewhere."""
    if os.geteuid():
        pytest.skip("needs root")
    build_guest(BUILT, lambda _: None)
    build_tools(BUILT, lambda _: None)
    with live_daemon(guest=True) as daemon:
        daemon.load("busybox")
        share = _share(daemon)
        share.mkdir()
        share.chmod(0o777)
        (share / "mark").write_text("shared\n")
        try:
            daemon.out("network", "create", "other")
            for name, isolation, *more in (
                ("wa", "vm:group", "-v", f"{share}:/s", "-v", "v1:/v", "-e", f"PASSWORD={SECRET}"),
                ("wb", "vm:group"),
                ("wc", "vm"),
                ("wd", "container", "--network", "other"),
            ):
                options = ["-d", "--name", name, "--isolation", isolation, *more]
                daemon.out("run", *options, "busybox", "sleep", "10000")
            yield daemon
        finally:
            subprocess.run(["rm", "-rf", str(share)], check=True)


def _share(live: LiveDaemon) -> Path:
    return live.paths.root.with_name(f"{live.paths.root.name}-share")


def _sh(live: LiveDaemon, name: str, script: str, *options: str) -> str:
    done = live.run("exec", *options, name, "sh", "-c", script, timeout=120)
    return (done.stdout + done.stderr).decode(errors="replace")


def _address(live: LiveDaemon, name: str) -> tuple[str, str, str]:
    """Address, gateway, MAC."""
    (found,) = live.inspect(name)["NetworkSettings"]["Networks"].values()
    return found["IPAddress"], found["Gateway"], found["MacAddress"]


def _qemus(live: LiveDaemon) -> list[Path]:
    """The QEMU processes of this instance."""
    own = live.paths.instance.encode()
    return [
        process
        for process in Path("/proc").glob("[0-9]*")
        if b"qemu-system" in (line := _command(process)) and own in line
    ]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _status(process: Path, field: str) -> str:
    return re.findall(rf"^{field}:\s+(\S+)", (process / "status").read_text(), re.MULTILINE)[0]


# --- shares ---


def test_a_share_is_not_walked_out_of(live: LiveDaemon) -> None:
    """Links made by host and guest, absolute and relative, in a bind mount and in a volume."""
    (_share(live) / "host-absolute").symlink_to("/etc")
    (_share(live) / "host-relative").symlink_to("../../../../etc")
    script = (
        "for d in /s /v; do cd $d; ln -s /etc absolute; ln -s ../../../../../../etc relative;"
        " ln -s / top; ln -s /proc/self/root magic; for l in absolute relative top/etc magic/etc host-absolute"
        " host-relative; do cat $l/shadow $l/debian_version $l/fstab; done; done 2>/dev/null; true"
    )
    # the container's own /etc has none of these
    assert _sh(live, "wa", script) == ""
    assert not _sh(live, "wa", "ls /s/../../../root /v/../../root 2>&1; ls /s/.. ").count("fstab")


def test_a_race_of_renames_does_not_lead_out_either(live: LiveDaemon) -> None:
    """The guest swaps a directory for a symlink as fast as it can, while another process reads through it."""
    script = (
        "cd /s; mkdir -p real; echo inside > real/hostname; ln -sfn /etc link;"
        "(i=0; while [ $i -lt 300 ]; do mv real tmp; mv link real; mv real link; mv tmp real; i=$((i+1)); done)"
        " 2>/dev/null &"
        "j=0; while [ $j -lt 300 ]; do cat real/hostname real/shadow 2>/dev/null; j=$((j+1)); done; wait"
    )
    seen = set(_sh(live, "wa", script).split())
    own = _sh(live, "wa", "cat /etc/hostname").split()
    assert seen <= {"inside", *own}, seen
    assert Path("/etc/hostname").read_text().strip() not in seen - set(own)


def test_no_device_and_no_set_user_id_comes_through_a_share(live: LiveDaemon) -> None:
    shown = _sh(live, "wa", "cd /s; mknod null c 1 3; mknod disk b 8 0; ls -l null disk")
    assert "not permitted" in shown or "denied" in shown
    os.mknod(_share(live) / "kmsg", 0o20666, os.makedev(1, 11))
    assert "denied" in _sh(live, "wa", "head -c1 /s/kmsg")


# --- the outer wall ---


def test_each_guests_qemu_is_a_user_of_its_own_and_confined(live: LiveDaemon) -> None:
    processes = _qemus(live)
    assert len(processes) == 2
    uids = {_status(process, "Uid") for process in processes}
    assert len(uids) == 2 and "0" not in uids
    for process in processes:
        assert _status(process, "Seccomp") == "2"
        assert int(_status(process, "CapEff"), 16) == 0
        assert SECRET.encode() not in _command(process)


def test_a_guests_uid_cannot_touch_layers_or_another_guests_disk(live: LiveDaemon) -> None:
    first, second = (_status(process, "Uid") for process in _qemus(live))
    disks = list(live.paths.root.glob("containers/*/writable.ext4"))
    layers = list(live.paths.layers.glob("*.squashfs"))
    assert len(disks) == 3 and layers
    for disk in disks:
        assert disk.stat().st_mode & 0o077 == 0
        owner = str(disk.stat().st_uid)
        assert owner in (first, second)
        assert not _may(second if owner == first else first, "-r", disk)
    for layer in layers:
        assert not _may(first, "-w", layer)
    for file in (live.paths.database, live.paths.socket, live.paths.images / "index.json"):
        assert not _may(first, "-r", file) and not _may(first, "-w", file)
    for other in live.paths.run.glob("m/*/*.sock"):
        if str(other.stat().st_uid) != first:
            assert not _may(first, "-w", other), other


def _may(uid: str, test: str, path: Path) -> bool:
    command = [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        "/usr/bin/test",
        test,
        str(path),
    ]
    return subprocess.run(command, cwd="/").returncode == 0


def test_file_servers_are_confined(live: LiveDaemon) -> None:
    run = str(live.paths.run).encode()
    servers = [
        p
        for p in Path("/proc").glob("[0-9]*")
        if b"virtiofsd" in _command(p) and run in _command(p)
    ]
    servers += [p for p in Path("/proc").glob("[0-9]*")
                if b"virtiofsd" in _command(p) and str(live.paths.root).encode() in _command(p)]  # fmt: skip
    assert servers
    confined = [p for p in set(servers) if _status(p, "Seccomp") == "2"]
    assert confined
    for process in confined:
        assert os.readlink(process / "ns/mnt") != os.readlink("/proc/self/ns/mnt")


def test_environment_is_in_no_command_line_of_the_host(live: LiveDaemon) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        assert SECRET.encode() not in _command(process)
    assert SECRET not in live.paths.daemon_log.read_text()


def test_what_the_guest_prints_is_bounded(live: LiveDaemon) -> None:
    """A console flood by the machine's root."""
    machine = live.inspect("wa")["Hybrid"]["Machine"]
    live.run("machine", "shell", machine, "sh", "-c", "head -c 600000 /dev/zero | tr '\\0' x > /dev/ttyS0",
             timeout=200)  # fmt: skip
    sizes = [log.stat().st_size for log in live.paths.root.glob("machines/*/console.log*")]
    assert sum(sizes) > 100 << 10  # the flood came, and its beginning is forgotten
    for log in live.paths.root.glob("machines/*/console.log*"):
        assert log.stat().st_size <= 256 << 10, log


def test_memory_of_an_ended_container_is_given_back(live: LiveDaemon) -> None:
    """Free page reporting: what a container of a shared guest used is the host's again when it has ended."""

    def used() -> int:
        return sum(
            int(re.findall(r"^Rss:\s+(\d+)", (process / "smaps_rollup").read_text(), re.MULTILINE)[0])
            for process in _qemus(live)
        ) >> 10  # fmt: skip

    before = used()
    live.out("run", "-d", "--name", "eater", "--isolation", "vm:group", "--tmpfs", "/t:size=220m", "busybox",
             "sh", "-c", "head -c 209715200 /dev/urandom > /t/f; echo eaten; sleep 1000")  # fmt: skip
    end = time.monotonic() + 90
    while "eaten" not in live.out("logs", "eater"):
        assert time.monotonic() < end
        time.sleep(0.5)
    full = used()
    live.out("rm", "-f", "eater")
    end = time.monotonic() + 60
    while used() > before + 60 and time.monotonic() < end:
        time.sleep(1)
    after = used()
    print(f"QEMU resident: {before} MiB before, {full} with 200 MiB in use, {after} after")
    assert full > before + 150
    assert after < before + 80


# --- the network, as a container's root with NET_RAW ---


def test_a_false_source_address_goes_nowhere(live: LiveDaemon) -> None:
    mine, gateway, _ = _address(live, "wc")
    other = _address(live, "wa")[0]
    false = mine.rsplit(".", 1)[0] + ".77"
    shown = _sh(
        live,
        "wc",
        f"ip addr add {false}/16 dev eth0 2>&1; ping -c1 -W2 {gateway}; ping -c1 -W2 -I {false} {other}",
    )
    assert (
        "not permitted" in shown or "denied" in shown
    )  # without NET_ADMIN it has no second address
    assert "from " + other not in shown


def test_frames_that_lie_do_not_leave_the_tap(live: LiveDaemon) -> None:
    """Root of a guest may send any frame: false MAC, false IP, ARP for the gateway, IPv6 RA, VLAN tags."""
    machine = live.inspect("wc")["Hybrid"]["Machine"]
    _, gateway, mac = _address(live, "wa")
    before = _sh(live, "wa", f"ping -c1 -W3 {gateway} > /dev/null; cat /proc/net/arp")
    pid = live.out(
        "machine", "shell", machine, "sh", "-c", "pidof sleep | tr ' ' '\\n' | tail -1"
    ).strip()
    sent = live.run("machine", "shell", machine, "nsenter", "-t", pid, "-n", "python3", "-c", LIAR, gateway,
                    _address(live, "wa")[0], timeout=90)  # fmt: skip
    assert b"sent 6" in sent.stdout, sent
    after = _sh(
        live,
        "wa",
        "cat /proc/net/arp; cat /proc/net/if_inet6; cat /proc/net/ipv6_route 2>/dev/null",
    )
    assert mac and "66:66:66:66:66:66" not in after
    gateways = [
        line.split()[3] for line in (before + after).splitlines() if line.startswith(gateway + " ")
    ]
    assert len(set(gateways)) == 1, gateways
    assert "20010db8" not in after


LIAR = """
import socket, struct, sys
gateway, victim = (socket.inet_aton(a) for a in sys.argv[1:3])
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
own = raw.getsockname()[4]
lie, everybody = b"f" * 6, b"\\xff" * 6
def arp(source, hardware, address, target):
    body = struct.pack("!HHBBH", 1, 0x800, 6, 4, 2) + hardware + address + everybody + target
    return everybody + source + b"\\x08\\x06" + body
def ip(source, address):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, address, victim)
    total = sum(struct.unpack("!10H", head))
    total = (total >> 16) + (total & 0xFFFF)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return everybody + source + b"\\x08\\x00" + head + struct.pack("!HHHH", 9, 9, 8, 0)
advert = bytes.fromhex("8600000040080708" + "00" * 8)
advert += bytes.fromhex("030440c00000ffff0000ffff00000000" + "20010db8" + "00" * 12)
six = struct.pack("!IHBB", 6 << 28, len(advert), 58, 255)
six += bytes.fromhex("fe80" + "00" * 13 + "66" + "ff02" + "00" * 13 + "01") + advert
frames = [arp(own, own, gateway, victim), arp(lie, lie, gateway, victim), ip(lie, gateway), ip(own, gateway)]
frames += [b"\\x33\\x33\\0\\0\\0\\1" + own + b"\\x86\\xdd" + six]
frames += [everybody + own + b"\\x81\\x00\\x00\\x05" + ip(own, victim)[12:]]
for frame in frames:
    raw.send(frame.ljust(60, b"\\0"))
print("sent", len(frames))
"""


def test_the_host_and_other_networks_are_out_of_reach(live: LiveDaemon) -> None:
    _, gateway, _ = _address(live, "wc")
    elsewhere, other_gateway, _ = _address(live, "wd")
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    host = [a for a in addresses if "." in a][:2]
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=_answer, args=(server,), daemon=True).start()
        with socket.create_connection(("127.0.0.1", port)) as own:
            assert own.recv(100) == b"reached"
        for address in {gateway, other_gateway, *host}:
            shown = _sh(live, "wc", f"nc -w 3 {address} {port} < /dev/null")
            assert "reached" not in shown, address
        assert "bytes from" not in _sh(live, "wc", f"ping -c1 -W2 {elsewhere}")
        local = re.findall(
            r"^(fe80\w+).*eth0", _sh(live, "wa", "cat /proc/net/if_inet6"), re.MULTILINE
        )
        for one in local:
            text = ":".join(one[i : i + 4] for i in range(0, 32, 4))
            assert "bytes from" not in _sh(live, "wc", f"ping -6 -c1 -W2 -I eth0 {text}")


def _answer(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"reached")
