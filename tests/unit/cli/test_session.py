from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cli import tty as terminal
from hybrid.cli.session import DetachKeys, Ended, Session, parse_detach_keys
from hybrid.client.http import Hijacked

KEYS = b"\x10\x11"  # ctrl-p, ctrl-q


@given(st.lists(st.binary(max_size=6)))
def test_detach_keys_are_found_wherever_the_reads_fall(typed: list[bytes]) -> None:
    whole, passed, keys = b"".join(typed), b"", DetachKeys()
    for block in typed:
        out, detach = keys.feed(block)
        passed += out
        if detach:
            assert passed == whole[: whole.index(KEYS)]
            return
    assert KEYS not in whole
    assert whole.startswith(passed)
    assert len(whole) - len(passed) <= 1  # a ctrl-p that may still become the sequence


@given(st.lists(st.sampled_from([b"\x10", b"\x11", b"\x10\x10\x11", b"a"])))
def test_a_false_start_is_given_back(typed: list[bytes]) -> None:
    keys, whole, passed = DetachKeys("ctrl-p,ctrl-p,ctrl-q"), b"".join(typed), b""
    for block in typed:
        out, detach = keys.feed(block)
        passed += out
        if detach:
            return
    assert whole.startswith(passed)


def test_detach_key_names() -> None:
    assert parse_detach_keys("ctrl-p,ctrl-q") == KEYS
    assert parse_detach_keys("ctrl-@,ctrl-[,a,ctrl-_") == b"\0\x1ba\x1f"
    assert parse_detach_keys("") == b""
    assert DetachKeys("").feed(KEYS) == (KEYS, False)
    for text in ("ctrl-", "ctrl-!", "shift-a", "ctrl-pq"):
        with pytest.raises(ValueError, match="invalid detach keys"):
            parse_detach_keys(text)


class Ends:
    """A session's surroundings: pipes for 0, 1 and 2, and the far end of its stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        here, self.far = socket.socketpair()
        self.stream = Hijacked(here, b"")
        stdin, self.typed = os.pipe()
        self.shown, stdout = os.pipe()
        self.errors, stderr = os.pipe()
        self._open = [stdin, stdout, stderr, self.shown, self.errors]
        monkeypatch.setattr(terminal, "STDIN", stdin)
        monkeypatch.setattr(terminal, "STDOUT", stdout)
        self._stderr = stderr

    def close(self) -> None:
        self.stream.close()
        self.far.close()
        for descriptor in self._open:
            os.close(descriptor)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    made = Ends(monkeypatch)
    yield made
    made.close()


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def beside(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_input_goes_out_and_its_end_too(ends: Ends) -> None:
    os.write(ends.typed, b"hello")
    os.close(ends.typed)
    received = []

    def far() -> None:
        while block := ends.far.recv(100):
            received.append(block)
        ends.far.sendall(frame(1, b"bye"))
        ends.far.shutdown(socket.SHUT_WR)

    thread = beside(far)
    assert Session(ends.stream, tty=False, stdin=True).run() == Ended()
    thread.join(5)
    assert b"".join(received) == b"hello"
    assert os.read(ends.shown, 10) == b"bye"


def test_both_directions_full_do_not_stop_each_other(ends: Ends) -> None:
    """`cat` of more than all buffers hold: whoever waits for the other to read first hangs."""
    size = 4 << 20

    def type_it() -> None:
        block = b"x" * 65536
        for _ in range(size // len(block)):
            os.write(ends.typed, block)
        os.close(ends.typed)

    def cat() -> None:
        while block := ends.far.recv(65536):
            ends.far.sendall(frame(1, block))
        ends.far.shutdown(socket.SHUT_WR)

    total = []

    def show() -> None:
        count = 0
        while count < size:
            count += len(os.read(ends.shown, 65536))
        total.append(count)

    threads = [beside(type_it), beside(cat), beside(show)]
    assert Session(ends.stream, tty=False, stdin=True).run() == Ended()
    for thread in threads:
        thread.join(10)
    assert total == [size]


def test_a_process_that_does_not_read_loses_no_output(ends: Ends) -> None:
    def far() -> None:
        ends.far.shutdown(socket.SHUT_RD)
        ends.far.sendall(frame(1, b"out"))
        ends.far.shutdown(socket.SHUT_WR)

    os.write(ends.typed, b"y" * 1000)
    thread = beside(far)
    assert Session(ends.stream, tty=False, stdin=True).run() == Ended()
    thread.join(5)
    assert os.read(ends.shown, 10) == b"out"
    os.close(ends.typed)


def test_signals_are_handed_on_and_three_interrupts_leave(ends: Ends) -> None:
    handed: list[str] = []

    def forward(name: str) -> None:
        handed.append(name)
        if len(handed) < 4:
            os.kill(os.getpid(), signal.SIGINT if len(handed) > 1 else signal.SIGUSR1)

    def far() -> None:
        while signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = beside(far)
    ended = Session(ends.stream, tty=False, stdin=False, forward=forward).run()
    thread.join(5)
    assert handed[:2] == ["SIGTERM", "SIGUSR1"]
    assert ended.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    os.close(ends.typed)


def test_detach_keys_end_the_session_and_never_arrive(ends: Ends) -> None:
    os.write(ends.typed, b"ab\x10\x11cd")
    ended = Session(ends.stream, tty=True, stdin=True, keys=DetachKeys()).run()
    assert ended == Ended(detached=True)
    ends.stream.close()
    assert ends.far.recv(10) == b""
    os.close(ends.typed)
