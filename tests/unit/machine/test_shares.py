"""The share servers' command line, id maps and life, with a stand-in for virtiofsd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from hybrid.errors import Conflict, NotFound, Unavailable
from hybrid.machine import shares
from hybrid.machine.shares import ShareServer
from hybrid.paths import Paths

# Says what virtiofsd says, then serves the first byte back.
SERVER = """
import socket, sys
print("Waiting for vhost-user socket connection...", flush=True)
listener = socket.socket(fileno=3)
connection, _ = listener.accept()
connection.sendall(connection.recv(1))
"""
MACHINE = "fedcba987654" + "0" * 20


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "root", tmp_path / "run")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def socket_of(paths: Paths, tag: str) -> Path:
    return paths.machine_run(MACHINE) / f"{tag}.sock"


async def serve(server: ShareServer, paths: Paths, directory: Path, tag: str = "t") -> Path:
    path = socket_of(paths, tag)
    await server.serve(MACHINE, tag, directory, path, owner=None, read_only=False)
    return path


def pid_of(paths: Paths, tag: str = "t") -> int:
    record = json.loads((paths.machine_run(MACHINE) / f"{tag}.pid").read_text())
    assert isinstance(record["pid"], int)
    return record["pid"]


async def test_a_server_serves_until_it_is_stopped(paths: Paths, directory: Path) -> None:
    server = ShareServer(paths, lambda: [sys.executable, "-c", SERVER])
    await server.open()
    path = await serve(server, paths, directory)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.getsid(pid_of(paths)) == pid_of(paths)
    with pytest.raises(Conflict, match="already has a share t"):
        await serve(server, paths, directory)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"x")
    assert await reader.read(1) == b"x"
    writer.close()
    await server.stop(MACHINE, "t")
    await server.stop(MACHINE, "t")
    assert not paths.machine_run(MACHINE).exists()
    await server.close()


async def test_a_new_owner_adopts_and_clears_up(paths: Paths, directory: Path) -> None:
    first = ShareServer(paths, lambda: [sys.executable, "-c", SERVER])
    await first.open()
    await serve(first, paths, directory, "alive")
    await serve(first, paths, directory, "dead")
    dead = pid_of(paths, "dead")
    await first.close()
    os.kill(dead, signal.SIGKILL)
    os.waitpid(dead, 0)
    (paths.machine_run(MACHINE) / "broken.pid").write_text("{}")
    second = ShareServer(paths, list)
    await second.open()
    assert repr(second) == "<ShareServer ['alive']>"
    assert sorted(p.name for p in paths.machine_run(MACHINE).iterdir()) == [
        *("alive.log", "alive.pid", "alive.sock"),
    ]
    await second.stop(MACHINE, "alive")
    await second.close()


async def test_a_server_whose_starter_died_before_it_knew_the_pid_is_ended(
    paths: Paths, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ShareServer(paths, lambda: [sys.executable, "-c", SERVER])
    await first.open()

    def stop_here(_pid: int) -> str:
        raise KeyboardInterrupt  # what follows the start never happens

    monkeypatch.setattr(shares, "_stat", stop_here)
    with pytest.raises(KeyboardInterrupt):
        await serve(first, paths, directory)
    assert pid_of(paths) == 0
    lost = []
    for output in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if os.readlink(output) == str(paths.machine_run(MACHINE) / "t.log"):
                lost.append(int(output.parts[2]))
    monkeypatch.undo()
    second = ShareServer(paths, list)
    await second.open()
    assert os.waitstatus_to_exitcode(os.waitpid(*lost, 0)[1]) == -signal.SIGKILL
    assert not paths.machine_run(MACHINE).exists()
    await first.close()
    await second.close()


async def test_a_pid_that_means_another_process_now_is_not_adopted(paths: Paths) -> None:
    run = paths.machine_run(MACHINE)
    run.mkdir(parents=True)
    record = {"machine_id": MACHINE, "tag": "t", "socket": str(run / "t.sock"), "started": 1}
    (run / "t.pid").write_text(json.dumps(record | {"pid": os.getpid()}))
    server = ShareServer(paths, list)
    await server.open()
    await server.stop(MACHINE, "t")
    assert not run.exists()
    await server.close()


async def test_a_killed_server_is_reported_and_a_finished_one_is_not(
    paths: Paths, directory: Path
) -> None:
    lost: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
    server = ShareServer(paths, lambda: [sys.executable, "-c", SERVER])
    server.on_lost(lambda *what: lost.put_nowait(what))
    await server.open()
    path = await serve(server, paths, directory, "finished")
    finished = server._servers[MACHINE, "finished"]
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(b"x")
    await asyncio.wait_for(finished.gone.wait(), 5)
    writer.close()
    await serve(server, paths, directory, "killed")
    os.kill(pid_of(paths, "killed"), signal.SIGKILL)
    assert await asyncio.wait_for(lost.get(), 5) == (
        *(MACHINE, "killed"),
        "the share's file server got signal 9",
    )
    assert lost.empty()
    assert not paths.machine_run(MACHINE).exists()  # though nobody stopped them
    for tag in ("finished", "killed"):
        await server.stop(MACHINE, tag)
    await server.close()


async def test_a_server_that_does_not_start_says_why(paths: Paths, directory: Path) -> None:
    script = "import sys; print('first'); print('Operation not permitted'); sys.exit(1)"
    server = ShareServer(paths, lambda: [sys.executable, "-c", script])
    await server.open()
    with pytest.raises(Unavailable, match=f"cannot share {directory}: Operation not permitted"):
        await serve(server, paths, directory)
    assert not paths.machine_run(MACHINE).exists()
    with pytest.raises(NotFound, match="no such directory or regular file"):
        await serve(server, paths, directory / "none")
    await server.close()


async def test_nothing_is_left_of_a_start_that_is_given_up(paths: Paths, directory: Path) -> None:
    slow = [sys.executable, "-c", "import time; time.sleep(60)", "marked-" + str(os.getpid())]
    server = ShareServer(paths, lambda: slow)
    await server.open()
    starting = asyncio.create_task(serve(server, paths, directory))
    await asyncio.sleep(0)  # its thread is at work now
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert server.serving() == []
    assert not paths.machine_run(MACHINE).exists()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            assert slow[-1].encode() not in file.read_bytes()


async def test_volumes_are_closed_to_the_hosts_users(paths: Paths) -> None:
    server = ShareServer(paths, list)
    await server.open()
    assert (paths.root / "volumes").stat().st_mode & 0o777 == 0o700
    await server.close()


def test_the_command_line_keeps_the_sandbox() -> None:
    line = shares.arguments(["/t/ld.so", "/t/virtiofsd"], Path("/d"), 1024, True)
    assert line[:2] == ["/t/ld.so", "/t/virtiofsd"]
    assert {"--fd=3", "--shared-dir=/d", "--sandbox=namespace", "--seccomp=kill"} < set(line)
    assert {"--modcaps=-mknod", "--rlimit-nofile=1024", "--readonly"} < set(line)
    assert "--readonly" not in shares.arguments(["v"], Path("/d"), 1024, False)


def test_id_maps() -> None:
    subuid = "root:1:1\nalice:100000:65536\n# x\n1001:300000:1000\nbob:x:1\n"
    assert shares.subordinate_range(subuid, "alice", 1000) == (100000, 65535)
    assert shares.subordinate_range(subuid, "carol", 1001) == (300000, 1000)
    assert shares.subordinate_range(subuid, "bob", 1002) is None
    assert shares.id_map(1000, (100000, 65535)) == "0 1000 1\n1 100000 65535\n"
    assert shares.id_map(1000, None) == "0 1000 1\n"


def test_start_times_survive_odd_process_names() -> None:
    assert shares.start_time("7 (a) b) S " + " ".join(str(n) for n in range(4, 30))) == 22


async def test_a_servers_log_is_bounded(
    paths: Paths, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "_LOG_PERIOD", 0.05)
    chatty = SERVER.replace(
        "listener =", f"print('x' * {shares._LOG_BOUND}, flush=True); listener ="
    )
    server = ShareServer(paths, lambda: [sys.executable, "-c", chatty])
    await server.open()
    await serve(server, paths, directory)
    log = paths.machine_run(MACHINE) / "t.log"
    async with asyncio.timeout(10):
        while log.stat().st_size:
            await asyncio.sleep(0.02)
    await server.stop(MACHINE, "t")
    await server.close()
