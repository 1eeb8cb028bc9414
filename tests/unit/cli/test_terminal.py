"""A terminal works as a person expects: a real pty, the command as a process, the in-memory
daemon."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from tests.unit.memorydaemon import MemoryDaemon

DEADLINE = 20.0


class Terminal:
    """A pty with ``hybrid`` in it."""

    def __init__(self, daemon: MemoryDaemon, *arguments: str) -> None:
        self.near, self.far = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(self.far)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "hybrid.cli.main",
                "-H",
                f"unix://{daemon.http.path}",
                *arguments,
            ],
            stdin=self.far,
            stdout=self.far,
            stderr=self.far,
            start_new_session=True,
        )
        os.set_blocking(self.near, False)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.far, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.near, data)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain; seen: {self.seen!r}"
            self.read()
            time.sleep(0.01)

    def read(self) -> None:
        try:
            self.seen += os.read(self.near, 65536)
        except (BlockingIOError, OSError):
            return

    def shows(self, text: bytes) -> None:
        self.until(lambda: text in self.seen)

    def raw(self) -> bool:
        return not termios.tcgetattr(self.far)[3] & termios.ICANON

    def ends(self) -> int:
        self.until(lambda: self.process.poll() is not None)
        self.read()
        return self.process.returncode

    def restored(self) -> bool:
        return termios.tcgetattr(self.far) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.near)
        os.close(self.far)


@pytest.fixture
def terminal(daemon: MemoryDaemon) -> Iterator[Callable[..., Terminal]]:
    """Starts ``hybrid`` in a terminal."""
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(daemon, *arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


Start = Callable[..., Terminal]


def test_what_is_typed_comes_back_and_the_terminal_is_as_before(terminal: Start) -> None:
    shell = terminal("run", "-it", "busybox")
    shell.until(shell.raw)
    shell.type(b"hello")
    shell.shows(b"hello")
    shell.type(b"\x04")
    assert shell.ends() == 0
    assert shell.restored()


def test_ctrl_c_is_a_byte_for_the_container(terminal: Start) -> None:
    shell = terminal("run", "-it", "busybox")
    shell.until(shell.raw)
    shell.type(b"\x03x")
    shell.shows(b"\x03x")
    shell.type(b"\x04")
    assert shell.ends() == 0


def test_the_exit_code_comes_through(terminal: Start, daemon: MemoryDaemon) -> None:
    daemon.process = lambda record, data: (b"", 42)
    shell = terminal("run", "-it", "--rm", "busybox")
    shell.until(shell.raw)
    shell.type(b"\x04")
    assert shell.ends() == 42


def test_resizes_are_passed_on(terminal: Start, daemon: MemoryDaemon) -> None:
    shell = terminal("run", "-it", "busybox")
    shell.until(lambda: daemon.resizes == [(24, 80)])
    shell.resize(30, 100)
    os.kill(shell.process.pid, signal.SIGWINCH)
    shell.until(lambda: daemon.resizes[-1] == (30, 100))


def test_detach_keys_leave_it_running(terminal: Start, daemon: MemoryDaemon) -> None:
    shell = terminal("run", "-it", "busybox")
    shell.until(shell.raw)
    shell.type(b"\x10\x11")
    assert shell.ends() == 0
    assert shell.restored()
    assert next(iter(daemon.containers.values())).status == "running"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_killed_client_restores_the_terminal(terminal: Start, number: signal.Signals) -> None:
    shell = terminal("run", "-it", "busybox")
    shell.until(shell.raw)
    os.kill(shell.process.pid, number)
    assert shell.ends() == 128 + number
    assert shell.restored()


def test_without_a_terminal_inside_ctrl_c_is_a_signal_for_it(
    terminal: Start, daemon: MemoryDaemon
) -> None:
    shell = terminal("run", "-i", "busybox")
    shell.until(lambda: any(path.endswith("/start") for _, path in daemon.calls))
    shell.until(lambda: daemon.containers != {} and not shell.raw())
    time.sleep(0.3)  # it is in its loop a moment after the daemon has answered
    os.kill(shell.process.pid, signal.SIGINT)
    shell.until(lambda: daemon.killed == ["SIGINT"])
