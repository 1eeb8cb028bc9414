"""The table is checked as a whole: two ends that follow it, in every order of steps and deliveries,
always agree."""

from __future__ import annotations

from collections import deque

from hybrid.wire.state import DISCARDING, TRANSITIONS, State, Step

SENDS = {
    Step.SEND_DATA: Step.RECEIVE_DATA,
    Step.SEND_EOF: Step.RECEIVE_EOF,
    Step.SEND_RESET: Step.RECEIVE_RESET,
}
World = tuple[State, State, tuple[Step, ...], tuple[Step, ...]]


def following(world: World, depth: int) -> list[World]:
    """All that can happen next: one end sends something, or a frame under way arrives."""
    out: list[World] = []
    for flip in (False, True):
        mine, yours, sent, coming = world if not flip else (world[1], world[0], world[3], world[2])
        options: list[World] = []
        for step, arrives in SENDS.items():
            if step in TRANSITIONS[mine] and len(sent) < depth:
                options.append((TRANSITIONS[mine][step], yours, (*sent, arrives), coming))
        if coming:
            options.append(arrive(mine, yours, sent, coming))
        out += options if not flip else [(b, a, d, c) for a, b, c, d in options]
    return out


def arrive(mine: State, yours: State, sent: tuple[Step, ...], coming: tuple[Step, ...]) -> World:
    step, rest = coming[0], coming[1:]
    if mine is State.CLOSED:
        assert step is Step.RECEIVE_RESET, f"{step} on a closed stream"
        return mine, yours, sent, rest
    assert step in TRANSITIONS[mine], f"{step} while {mine}"
    after = TRANSITIONS[mine][step]
    if step is Step.RECEIVE_RESET and mine not in DISCARDING:
        sent = (*sent, Step.RECEIVE_RESET)
    return after, yours, sent, rest


def test_two_ends_never_contradict_each_other_and_always_finish() -> None:
    start: World = (State.OPEN, State.OPEN, (), ())
    seen, todo = {start}, deque([start])
    while todo:
        world = todo.popleft()
        # Nothing under way and one end done: the other must be done too, or wait for ever.
        if not world[2] and not world[3] and State.CLOSED in world[:2]:
            assert world[0] is world[1] is State.CLOSED, world
        for one in following(world, depth=3):
            if one not in seen:
                seen.add(one)
                todo.append(one)
    assert (State.CLOSED, State.CLOSED, (), ()) in seen
    assert {world[0] for world in seen} == set(State)


def test_every_state_but_closed_can_be_left() -> None:
    for state in State:
        assert bool(TRANSITIONS[state]) is (state is not State.CLOSED)
