"""The terminal: raw mode that is always undone, its size, and signals as bytes in a pipe."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import tty
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

STDIN, STDOUT = 0, 1


@contextmanager
def raw(descriptor: int = STDIN) -> Iterator[None]:
    """Raw mode while the block runs: Ctrl-C is a byte for the container, nothing is echoed here."""
    before = termios.tcgetattr(descriptor)
    try:
        # TCSADRAIN, not the default TCSAFLUSH: what was typed ahead is for the container.
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def size(descriptor: int = STDOUT) -> tuple[int, int]:
    """(rows, columns); (0, 0) when it is no terminal."""
    try:
        packed = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return 0, 0
    rows, columns, _, _ = struct.unpack("HHHH", packed)
    return rows, columns


@contextmanager
def signals(wanted: Iterable[signal.Signals]) -> Iterator[int]:
    """A descriptor from which the numbers of the signals that came in are read, one byte each."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    woken_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _noted) for number in wanted}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken_before)
        os.close(reader)
        os.close(writer)


def _noted(number: int, frame: FrameType | None) -> None:
    """The number is in the pipe already (``set_wakeup_fd``)."""
