"""Names: which are allowed, how one is made up, and how a reference finds its thing.

A reference is a full id, a name, or an unambiguous beginning of an id, in that order (as Docker's).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from typing import TypeVar

from hybrid.errors import InvalidInput, NotFound

T = TypeVar("T")
_NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_ID_PREFIX = re.compile(r"[0-9a-f]{1,64}")
NAME_MAX = 128
ADJECTIVES = (
    "amber brave brisk calm clear clever cosy crisp daring eager early fair fond frank fresh gentle glad grand"
    " happy humble jolly keen kind lively loyal lucid mellow merry mild modest neat noble patient plain polite"
    " prime proud quick quiet rapid ready royal sharp silent simple sleek smart snug solid spry steady still"
    " stout sunny swift tidy tough vivid warm wise witty young zesty"
).split()
SURNAMES = (
    "agnesi babbage backus bardeen boole borg bose cerf chandra cray curie darwin davinci diffie dijkstra einstein"
    " elion engelbart euclid euler faraday fermat fermi franklin galileo gauss goldberg hamilton hawking heisenberg"
    " hellman hopper hypatia jackson jennings johnson kalam kare keller kepler kilby knuth lamarr lamport lovelace"
    " mayer mcclintock mcnulty meitner mendel mirzakhani morse newton noether pascal perlman pike ptolemy raman"
    " ritchie rosalind shannon snyder thompson torvalds turing volta wiles wilson wozniak yalow"
).split()


def new_id() -> str:
    return secrets.token_hex(32)


def new_machine_id() -> str:
    """Shorter: it is part of the paths of sockets."""
    return secrets.token_hex(16)


def checked_name(name: str) -> str:
    """The name without its leading slash; InvalidInput if it is not allowed."""
    if len(name) > NAME_MAX or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    return name.removeprefix("/")


def made_up_name(taken: Callable[[str], bool]) -> str:
    """An adjective and a surname that nothing is called yet."""
    while True:
        name = f"{secrets.choice(ADJECTIVES)}_{secrets.choice(SURNAMES)}"
        if not taken(name):
            return name
        name += str(secrets.randbelow(10_000))
        if not taken(name):
            return name


def find(
    reference: str, things: Iterable[T], identity: Callable[[T], tuple[str, str]], missing: str
) -> T:
    """The thing that ``reference`` means; ``identity`` gives (id, name). NotFound with the text ``missing``."""
    by_name = by_prefix = None
    matches = 0
    bare = reference.removeprefix("/")
    for thing in things:
        key, name = identity(thing)
        if key == reference:
            return thing
        if name == bare:
            by_name = thing
        if key.startswith(reference):
            by_prefix, matches = thing, matches + 1
    if by_name is not None:
        return by_name
    if by_prefix is None or not _ID_PREFIX.fullmatch(reference):
        raise NotFound(missing)
    if matches > 1:
        raise InvalidInput(f"multiple IDs found with provided prefix: {reference}")
    return by_prefix
