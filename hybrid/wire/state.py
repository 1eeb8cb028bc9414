"""The life of one stream, as one end sees it: the only table of it.

::

    OPEN ── we send EOF ──▶ HALF_LOCAL ── they send EOF ──▶ CLOSED
      └──── they send EOF ─▶ HALF_REMOTE ── we send EOF ──▶ CLOSED
    any of these ── we send RESET ──▶ RESET_SENT ── their RESET ──▶ CLOSED
    any of these ── their RESET (we answer with RESET) ──▶ CLOSED

After our RESET what the peer had under way still comes in and is thrown away, until its RESET: so
no frame is ever ambiguous. A peer whose own EOF crossed ours holds the stream as closed and answers
nothing; that is RESET_SENT_HALF, ended by the peer's EOF.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    OPEN = "open"
    HALF_LOCAL = "half-closed by us"
    HALF_REMOTE = "half-closed by the peer"
    RESET_SENT = "reset by us"
    RESET_SENT_HALF = "reset by us after EOF"
    CLOSED = "closed"


class Step(enum.Enum):
    SEND_DATA = "send data"
    SEND_EOF = "send EOF"
    SEND_RESET = "send RESET"
    RECEIVE_DATA = "receive DATA"
    RECEIVE_EOF = "receive EOF"
    RECEIVE_RESET = "receive RESET"


TRANSITIONS: dict[State, dict[Step, State]] = {
    State.OPEN: {
        Step.SEND_DATA: State.OPEN,
        Step.SEND_EOF: State.HALF_LOCAL,
        Step.SEND_RESET: State.RESET_SENT,
        Step.RECEIVE_DATA: State.OPEN,
        Step.RECEIVE_EOF: State.HALF_REMOTE,
        Step.RECEIVE_RESET: State.CLOSED,
    },
    State.HALF_LOCAL: {
        Step.SEND_RESET: State.RESET_SENT_HALF,
        Step.RECEIVE_DATA: State.HALF_LOCAL,
        Step.RECEIVE_EOF: State.CLOSED,
        Step.RECEIVE_RESET: State.CLOSED,
    },
    State.HALF_REMOTE: {
        Step.SEND_DATA: State.HALF_REMOTE,
        Step.SEND_EOF: State.CLOSED,
        Step.SEND_RESET: State.RESET_SENT,
        Step.RECEIVE_RESET: State.CLOSED,
    },
    State.RESET_SENT: {
        Step.RECEIVE_DATA: State.RESET_SENT,
        Step.RECEIVE_EOF: State.RESET_SENT,
        Step.RECEIVE_RESET: State.CLOSED,
    },
    State.RESET_SENT_HALF: {
        Step.RECEIVE_DATA: State.RESET_SENT_HALF,
        Step.RECEIVE_EOF: State.CLOSED,
        Step.RECEIVE_RESET: State.CLOSED,
    },
    State.CLOSED: {},
}

DISCARDING = frozenset({State.RESET_SENT, State.RESET_SENT_HALF})
