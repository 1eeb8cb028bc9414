"""The console log: bounded, kept in order, safe to show."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from hybrid.errors import Unavailable
from hybrid.machine.console import Console, ConsoleLog, printable


def test_the_log_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "console.log", 1000)
    for number in range(1000):
        log.append(b"%09d\n" % number)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    tail = log.tail(1000)
    assert tail.endswith(b"000000999\n")
    numbers = [int(line) for line in tail.splitlines()]
    assert numbers == list(range(numbers[0], 1000))
    assert len(tail) >= 400
    assert log.tail(10) == b"000000999\n"


def test_one_huge_write_is_cut(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "console.log", 1000)
    log.append(b"x" * 5000 + b"end")
    assert log.tail(5000) == b"x" * 497 + b"end"


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "console.log", 1000)
    assert log.tail(10) == b""
    log.append(b"x" * 600)
    log.append(b"y")
    log.remove()
    assert list(tmp_path.iterdir()) == []


async def test_what_the_guest_prints_ends_up_in_the_log(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        log = ConsoleLog(tmp_path / "state" / "console.log", 1 << 20)
        console = Console(tmp_path / "s", log)
        await console.open()
        guest, _ = listener.accept()
        guest.sendall(b"Kernel panic")
        guest.close()
        await console.close(drain=2)
        assert log.tail(100) == b"Kernel panic"
        assert log.path.stat().st_mode & 0o077 == 0


async def test_closing_does_not_wait_for_a_guest_that_lives(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        console = Console(tmp_path / "s", ConsoleLog(tmp_path / "console.log", 1 << 20))
        await console.open()
        await asyncio.wait_for(console.close(), 2)


async def test_a_full_disk_costs_output_and_nothing_else(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        log = ConsoleLog(tmp_path / "console.log", 1 << 20)
        console = Console(tmp_path / "s", log)
        await console.open()
        guest, _ = listener.accept()
        log.path.unlink()
        log.path.mkdir()  # as a full disk, it takes nothing
        guest.sendall(b"lost")
        await asyncio.sleep(0.1)
        log.path.rmdir()
        guest.sendall(b"kept")
        guest.close()
        await console.close(drain=2)
        assert log.tail(100) == b"kept"


async def test_no_qemu(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await Console(tmp_path / "s", ConsoleLog(tmp_path / "console.log", 1000)).open()


def test_console_text_is_made_safe() -> None:
    data = b"\x1b[2J one \r\n\n\xff two\x07\r\nthree\r\n"
    assert printable(data, 2) == "\ufffd two | three"
    assert "\x1b" not in printable(data, 5)
