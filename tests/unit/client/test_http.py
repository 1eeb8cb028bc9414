from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.client.address import UnixAddress
from hybrid.client.http import HEAD_MAX, Http, NotListening
from hybrid.errors import Forbidden, Unavailable
from tests.unit.memorydaemon import Call, HttpServer, Reply

Serve = Callable[[Callable[[Call], Reply]], HttpServer]


def request(serve: Serve, raw: bytes, **more: object) -> bytes:
    server = serve(lambda _: Reply(raw=raw))
    return Http(UnixAddress(server.path)).request("GET", "/x").read(**more)  # type: ignore[arg-type]


def test_the_three_ways_a_body_is_delimited(serve: Serve) -> None:
    assert request(serve, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd") == b"abc"
    assert request(serve, b"HTTP/1.1 200 OK\r\n\r\nall of it") == b"all of it"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert request(serve, chunked + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\n") == b"abcde"


def test_bodyless_statuses(serve: Serve) -> None:
    assert request(serve, b"HTTP/1.1 204 No Content\r\n\r\n") == b""
    assert request(serve, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n") == b""


def test_interim_responses_are_skipped(serve: Serve) -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    assert request(serve, raw) == b"x"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nConte", "without an answer"),
        (b"SSH-2.0-x\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 abc\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "in the middle"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * HEAD_MAX, "too large"),
    ],
)
def test_broken_answers_are_one_clear_error(serve: Serve, raw: bytes, says: str) -> None:
    with pytest.raises(Unavailable, match=says):
        request(serve, raw)


def test_a_body_over_the_limit_is_refused(serve: Serve) -> None:
    with pytest.raises(Unavailable, match="larger than 2 bytes"):
        request(serve, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", limit=2)


def test_query_values_and_paths_are_encoded(serve: Serve) -> None:
    server = serve(lambda _: Reply(200, {}))
    query = {"a": "x&y=z", "b": True, "c": False, "n": 3, "none": None}
    Http(UnixAddress(server.path)).request("GET", "/p q/%2F", query=query).read()
    assert server.calls[0].query == {"a": "x&y=z", "b": "1", "c": "0", "n": "3"}
    assert server.calls[0].path == "/p q//"


def test_a_stream_is_sent_in_chunks(serve: Serve) -> None:
    server = serve(lambda _: Reply(200, {}))
    blocks = iter([b"ab", b"", b"c" * 100_000])
    Http(UnixAddress(server.path)).request("POST", "/load", stream=blocks).read()
    assert server.calls[0].body == b"ab" + b"c" * 100_000


def test_an_answer_before_the_whole_stream_was_read_is_seen(serve: Serve) -> None:
    """A refused upload must show the refusal, not a broken pipe."""

    def refuse(path: Path) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        ready.set()
        connection, _ = listener.accept()
        connection.recv(10)
        connection.sendall(b"HTTP/1.1 400 X\r\nContent-Length: 2\r\n\r\nno")
        connection.shutdown(socket.SHUT_RD)
        done.wait(10)
        connection.close()
        listener.close()

    server = serve(lambda _: Reply())
    path = server.path.parent / "refuse.sock"
    ready, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=refuse, args=(path,))
    thread.start()
    ready.wait(10)
    response = Http(UnixAddress(path)).request(
        "POST", "/", stream=(b"x" * 4096 for _ in range(10**4))
    )
    assert (response.status, response.read()) == (400, b"no")
    done.set()
    thread.join()


def test_hijack_keeps_bytes_that_came_with_the_head(serve: Serve) -> None:
    def echo(connection: socket.socket, _: bytes) -> None:
        connection.sendall(connection.recv(10))

    server = serve(
        lambda _: Reply(hijack=echo, head=b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\nearly")
    )
    stream = Http(UnixAddress(server.path)).request("POST", "/", upgrade=True).hijack()
    assert stream.pending
    assert stream.receive() == b"early"
    assert not stream.pending
    assert stream.send_some(b"late") == 4
    stream.close_write()
    assert stream.receive() == b"late"
    assert stream.receive() == b""
    stream.close()


def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(NotListening, match="no daemon listens on unix://"):
        Http(UnixAddress(tmp_path / "none.sock")).request("GET", "/")


def test_a_dead_socket_is_nothing_listening(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead.sock"))
    dead.close()
    with pytest.raises(NotListening):
        Http(UnixAddress(tmp_path / "dead.sock")).request("GET", "/")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to any socket")
def test_no_permission(serve: Serve) -> None:
    server = serve(lambda _: Reply())
    server.path.chmod(0)
    with pytest.raises(Forbidden, match="no permission on the daemon's socket"):
        Http(UnixAddress(server.path)).request("GET", "/")
