from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import Conflict, HybridError, Internal, InvalidInput
from hybrid.wire import envelope
from hybrid.wire.frame import ProtocolError
from hybrid.wire.messages import Exited, Hello, ProcessState, Signal, Started, Truth


def test_each_kind_of_message_comes_back_as_it_was() -> None:
    hello = Hello(1, "boot", ["vsock"])
    assert envelope.parse_hello(envelope.hello_message(hello)) == hello
    request = Signal("c", 15)
    assert envelope.parse_from_host(envelope.request_message(3, request)).request == request
    exited = Exited(ProcessState("c", "", "stopped", 0, exit_code=137))
    event = envelope.parse_from_agent(envelope.event_message(exited))
    assert event == envelope.EventEnvelope(exited)
    answer = envelope.parse_from_agent(envelope.answer_message(3, Started(1, 2)))
    assert answer == envelope.AnswerEnvelope(3, {"pid": 1, "started_ns": 2})


def test_errors_keep_their_kind() -> None:
    answer = envelope.parse_from_agent(envelope.error_message(9, Conflict("is running")))
    assert isinstance(answer, envelope.AnswerEnvelope)
    assert type(answer.error) is Conflict and answer.error.message == "is running"


def test_an_error_of_unknown_kind_is_internal_and_safe_to_print() -> None:
    text = json.dumps({"id": 1, "error": {"kind": "??", "message": "a\x1b[2Jb\n" + "x" * 9999}})
    answer = envelope.parse_from_agent(text.encode())
    assert isinstance(answer, envelope.AnswerEnvelope)
    assert type(answer.error) is Internal
    assert answer.error.message.startswith("a [2Jb x")
    assert len(answer.error.message) <= envelope.MAX_ERROR


def test_a_bad_request_is_refused_but_keeps_its_id() -> None:
    for body in ({"type": "Nonsense", "body": {}}, {"type": "Signal", "body": {"container": 1}}):
        got = envelope.parse_from_host(json.dumps({"id": 4, **body}).encode())
        assert got.id == 4 and got.request is None and isinstance(got.problem, InvalidInput)


BAD_FROM_AGENT = [
    b"",
    b"\xff",
    b"[]",
    b"nonsense",
    b"{}",
    b'{"id":1}',
    b'{"id":0,"ok":{}}',
    b'{"id":true,"ok":{}}',
    b'{"id":1.0,"ok":{}}',
    b'{"id":1,"ok":{},"error":{}}',
    b'{"id":1,"error":"text"}',
    b'{"id":1,"error":{"kind":"internal"}}',
    b'{"id":1,"ok":NaN}',
    b'{"event":"Exited","body":{}}',
    b'{"event":"Started","body":{}}',
    b'{"event":["Exited"],"body":{}}',
    b'{"hello":{"version":1,"boot":""}}',
    b'{"event":"OutOfMemory","body":{"container":"\\ud800"}}',
    b'{"id":1,"ok":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"id":' + b"9" * 100_000 + b',"ok":{}}',
]


@pytest.mark.parametrize("payload", BAD_FROM_AGENT, ids=range(len(BAD_FROM_AGENT)))
def test_what_no_honest_agent_sends_is_a_breach(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        envelope.parse_from_agent(payload)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    for parse in (envelope.parse_from_agent, envelope.parse_from_host, envelope.parse_hello):
        with pytest.raises(ProtocolError):
            parse(payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values, st.sampled_from(["Exited", "OutOfMemory", "x"]))
def test_no_json_raises_anything_else(value: object, name: str) -> None:
    for message in (
        {"id": 1, "ok": value},
        {"id": 1, "error": value},
        {"id": 1, "error": {"kind": value, "message": value}},
        {"event": name, "body": value},
        {"id": value, "type": "Signal", "body": value},
        {"hello": value},
    ):
        for parse in (
            envelope.parse_from_agent,
            envelope.parse_from_host,
            envelope.parse_hello,
        ):
            with contextlib.suppress(ProtocolError):
                parse(json.dumps(message).encode())


def test_text_that_is_no_unicode_leaves_as_question_marks() -> None:
    message = envelope.error_message(1, HybridError("no file \udcff"))
    answer = envelope.parse_from_agent(message)
    assert isinstance(answer, envelope.AnswerEnvelope) and answer.error is not None
    assert answer.error.message == "no file ?"


def test_a_truth() -> None:
    assert envelope.answer_message(1, Truth(True)) == b'{"id":1,"ok":{"value":true}}'
