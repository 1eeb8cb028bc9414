"""How two ends find each other on a byte stream that may hold rests of an earlier connection.

A virtio-serial port is one byte stream for the life of the guest: a daemon that was killed may have
left half a frame in it, in either direction. So each connection starts with a mark::

    host    MARK nonce
    agent   throws away all up to a MARK, answers MARK nonce, then speaks frames
    host    throws away all up to MARK and its newest nonce, then speaks frames

The agent looks for a mark at its start, when its port was re-opened, and whenever something other
than a frame header is where one must be: a mark is no frame header. If the agent hangs in the
middle of a payload that will never come, it takes the mark for payload; so the host repeats after
``REPEAT_AFTER`` seconds (then after twice that, and so on: an agent may be slow to answer), with
zeros in front that complete any payload (and are no header either) and with a new nonce, for
answers to the old one may be followed by bytes that the agent did not mean.

When the agent ends a connection it writes ``BREAK``, which is no frame header: should the host
still take that connection for good (the agent saw the hang-up of the one before too late), it knows
at once.

On transports that start afresh with each connection the mark costs nothing and is used all the
same.
"""

from __future__ import annotations

import os
import re

from hybrid.wire.frame import MAX_DATA, MAX_MESSAGE

MARK = b"\xf7hybrid-resync\r\n"
NONCE_SIZE = 16
BREAK = bytes(12)
REPEAT_AFTER = 1.0
REPEAT_AT_MOST = 8.0
# The nonce is hexadecimal: so a mark that was cut off, with another behind it, can't be taken for a
# whole one.
_MARK_AND_NONCE = re.compile(re.escape(MARK) + rb"([0-9a-f]{%d})" % NONCE_SIZE)
_WHOLE = len(MARK) + NONCE_SIZE


class Initiator:
    """The host's side of one connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._nonce = b""
        self._asked = 0
        self.rest = b""

    def ask(self, *, flush: bool) -> bytes:
        """What to write first, and again whenever ``REPEAT_AFTER`` has passed. ``flush`` on a
        re-used byte stream."""
        self._nonce = os.urandom(NONCE_SIZE // 2).hex().encode()
        self._asked += 1
        zeros = 0
        if flush and self._asked > 1:
            # Half a DATA frame is the usual case, half a large message a rare one.
            zeros = 2 * MAX_DATA if self._asked == 2 else MAX_MESSAGE + MAX_DATA
        return bytes(zeros) + MARK + self._nonce

    def receive(self, data: bytes) -> bool:
        """Whether the answer has come; then ``rest`` is what followed it. Keeps fewer than 32
        bytes."""
        self._buffer += data
        wanted = MARK + self._nonce
        at = self._buffer.find(wanted)
        if at < 0:
            self._buffer = self._buffer[-(_WHOLE - 1) :]
            return False
        self.rest = self._buffer[at + _WHOLE :]
        self._buffer = b""
        return True


class Acceptor:
    """The agent's side: one for the life of a byte stream, used before each connection on it."""

    def __init__(self) -> None:
        self._buffer = b""
        self.rest = b""

    def receive(self, data: bytes) -> bytes | None:
        """The answer to write once a mark was found (``rest`` is what followed it), else None."""
        self._buffer += data
        match = _MARK_AND_NONCE.search(self._buffer)
        if match is None:
            self._buffer = self._buffer[-(_WHOLE - 1) :]
            return None
        self.rest = self._buffer[match.end() :]
        self._buffer = b""
        return match[0]
