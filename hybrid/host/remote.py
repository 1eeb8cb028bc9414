"""What runs on a box itself, by its python3: sent as text with each command, so it imports little.

    put PATH SHA256 SIZE       stdin becomes the file, if its digest is right
    start DIRECTORY SOCKET PROGRAM ARGUMENT…
                               one agent per directory, detached from this login; prints "started"
                               or "running" and its pid when its socket accepts connections
    stop DIRECTORY             ends it (SIGTERM, then SIGKILL)
    status DIRECTORY           prints "running", its pid and program; or "stopped"
    remove DIRECTORY SOCKET    deletes the directory's files and the socket, if the agent is stopped
    relay SOCKET               stdin and stdout to the Unix socket and back, after a ready line

Exit code 3: no agent listens. Other failures: one line on stderr and exit code 1. The directory
holds ``pid`` (one line: pid, start time, program), ``log`` and whatever the agent keeps.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

NO_AGENT = 3
READY = b"hybrid-relay-ready\n"
CHUNK = 1 << 16


def start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat: with it a pid is unique until the next boot."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def running(directory: str) -> tuple[int, str] | None:
    """(pid, program) of the agent that lives, or None."""
    try:
        with open(os.path.join(directory, "pid")) as file:
            pid, started, program = file.read().rstrip("\n").split(" ", 2)
        if start_time(int(pid)) == started:
            return int(pid), program
    except (OSError, ValueError, IndexError):
        pass
    return None


def put(path: str, digest: str, size: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    partial = path + ".partial"
    seen, left = hashlib.sha256(), int(size)
    with open(partial, "wb") as file:
        while left:
            data = sys.stdin.buffer.read(min(left, CHUNK))
            if not data:
                break
            file.write(data)
            seen.update(data)
            left -= len(data)
    if left or seen.hexdigest() != digest:
        os.unlink(partial)
        sys.exit(f"{path}: what arrived is not what was sent")
    os.replace(partial, path)


def accepts(path: str) -> bool:
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.connect(path)
        return True
    except OSError:
        return False
    finally:
        probe.close()


def spawn(directory: str, command: list[str]) -> int:
    """A grandchild in a session of its own, with nothing of the login's open; returns its pid."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.close(reader)
        os.close(writer)
        os.chdir("/")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(os.path.join(directory, "log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
        os.execve(sys.executable, [sys.executable, "-I", *command], {"PATH": path.strip(":")})
    os.close(writer)
    pid = int(os.read(reader, 32))
    os.close(reader)
    os.waitpid(child, 0)
    return pid


def start(directory: str, path: str, program: str, *arguments: str) -> None:
    found = running(directory)
    if found:
        print("running", found[0], found[1])
        return
    os.makedirs(directory, mode=0o711, exist_ok=True)
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    pid = spawn(directory, [program, *arguments])
    with open(os.path.join(directory, "pid"), "w") as file:
        file.write(f"{pid} {start_time(pid)} {program}\n")
    deadline = time.monotonic() + 30
    while not accepts(path):
        if not running(directory) or time.monotonic() > deadline:
            with open(os.path.join(directory, "log"), errors="replace") as file:
                lines = file.read()[-2000:].strip().splitlines()
            stop(directory)
            sys.exit(f"the agent did not start: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(0.02)
    print("started", pid, program)


def stop(directory: str) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        found = running(directory)
        if not found:
            break
        os.kill(found[0], number)
        deadline = time.monotonic() + 5
        while running(directory) and time.monotonic() < deadline:
            time.sleep(0.02)
    if running(directory):
        sys.exit("the agent does not end")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, "pid"))


def status(directory: str) -> None:
    found = running(directory)
    print("running", *found) if found else print("stopped")


def remove(directory: str, path: str) -> None:
    if running(directory):
        sys.exit("the agent still runs")
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def relay(path: str) -> None:
    """Blocking writes: whoever does not read stops the other, and nothing piles up here."""
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.connect(path)
    except OSError:
        sys.exit(NO_AGENT)
    write_all(1, READY)
    threading.Thread(target=pump, args=(peer.fileno(), 1), daemon=True).start()
    pump(0, peer.fileno())


def pump(source: int, target: int) -> None:
    """Either direction's end is the end of both."""
    try:
        while data := os.read(source, CHUNK):
            write_all(target, data)
    except OSError:
        pass
    os._exit(0)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    COMMANDS: dict[str, Callable[..., None]] = {
        "put": put,
        "start": start,
        "stop": stop,
        "status": status,
        "remove": remove,
    }
    COMMANDS["relay"] = relay
    try:
        COMMANDS[sys.argv[1]](*sys.argv[2:])
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
