"""The JSON objects on stream 0, made and validated for both ends.

::

    {"hello": {…}}                                        each end's first message
    {"id": 7, "type": "StartContainer", "body": {…}}      host to agent
    {"id": 7, "ok": {…}}                                  agent to host
    {"id": 7, "error": {"kind": "not_found", "message": "…"}}
    {"event": "Exited", "body": {…}}                      agent to host
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from hybrid.errors import HybridError, InvalidInput, from_kind
from hybrid.wire import messages
from hybrid.wire.catalogue import EVENTS, REQUESTS
from hybrid.wire.codec import decode, plain
from hybrid.wire.frame import ProtocolError
from hybrid.wire.value import Request, Value, value

MAX_ID = 1 << 53
MAX_ERROR = 4096  # characters of an error's text
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=plain)


@value
class RequestEnvelope(Value):
    id: int
    request: Request[Any] | None  # None: refused; ``problem`` says why
    problem: HybridError | None = None


@value
class AnswerEnvelope(Value):
    """``body`` is not validated yet: only who asked knows its class."""

    id: int
    body: Any = None
    error: HybridError | None = None


@value
class EventEnvelope(Value):
    event: Any


def hello_message(hello: messages.Hello) -> bytes:
    return _dump({"hello": hello})


def request_message(number: int, request: Request[Any]) -> bytes:
    return _dump({"id": number, "type": type(request).__name__, "body": request})


def answer_message(number: int, answer: object) -> bytes:
    return _dump({"id": number, "ok": answer})


def error_message(number: int, error: HybridError) -> bytes:
    return _dump(
        {"id": number, "error": {"kind": error.kind, "message": error.message[:MAX_ERROR]}}
    )


def event_message(event: object) -> bytes:
    return _dump({"event": type(event).__name__, "body": event})


def parse_hello(payload: bytes) -> messages.Hello:
    """The peer's first message; ProtocolError if it is anything else."""
    message = _load(payload)
    if message.keys() != {"hello"}:
        raise ProtocolError("the first message is no hello")
    try:
        return decode(messages.Hello, message["hello"])
    except InvalidInput as error:
        raise ProtocolError(str(error)) from error


def parse_from_host(payload: bytes) -> RequestEnvelope:
    """What an agent gets after the hello. A bad request body is the request's problem, not the
    link's."""
    message = _load(payload)
    if message.keys() != {"id", "type", "body"}:
        raise ProtocolError("a message that is no request")
    number = _id(message)
    cls = REQUESTS.get(message["type"]) if isinstance(message["type"], str) else None
    if cls is None:
        return RequestEnvelope(
            number, None, InvalidInput(f"unknown request {_clean(message['type'])}")
        )
    try:
        return RequestEnvelope(number, decode(cls, message["body"]))
    except InvalidInput as error:
        return RequestEnvelope(number, None, error)


def parse_from_agent(payload: bytes) -> AnswerEnvelope | EventEnvelope:
    """What a host gets after the hello; ProtocolError for all that no honest agent sends."""
    message = _load(payload)
    keys = message.keys()
    if keys == {"id", "ok"}:
        return AnswerEnvelope(_id(message), message["ok"])
    if keys == {"id", "error"}:
        error = message["error"]
        if not isinstance(error, dict) or error.keys() != {"kind", "message"}:
            raise ProtocolError("a malformed error answer")
        return AnswerEnvelope(
            _id(message), error=from_kind(str(error["kind"]), _clean(error["message"]))
        )
    if keys == {"event", "body"}:
        cls = EVENTS.get(message["event"]) if isinstance(message["event"], str) else None
        if cls is None:
            raise ProtocolError(f"unknown event {_clean(message['event'])}")
        try:
            return EventEnvelope(decode(cls, message["body"]))
        except InvalidInput as problem:
            raise ProtocolError(_clean(problem)) from problem
    raise ProtocolError("a message that is neither answer nor event")


def _dump(message: dict[str, Any]) -> bytes:
    # File names that are not UTF-8 come as lone surrogates, which the other end refuses: they
    # become "?".
    return _JSON.encode(message).encode("utf-8", "replace")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_PARSER = json.JSONDecoder(parse_constant=_no_constant)


def _load(payload: bytes) -> dict[str, Any]:
    try:
        message = _PARSER.decode(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message that is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message that is no JSON object")
    return message


def _id(message: dict[str, Any]) -> int:
    number = message["id"]
    if type(number) is not int or not 0 < number <= MAX_ID:
        raise ProtocolError("a message with a malformed id")
    return number


def _clean(text: object) -> str:
    """Text of the peer's as one line that is safe to print: no control characters, not endless."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:MAX_ERROR]).strip()
