from __future__ import annotations

from collections.abc import Callable

import pytest

from hybrid.client.address import UnixAddress
from hybrid.client.engine import Engine, exit_code
from hybrid.errors import (
    Conflict,
    Forbidden,
    HybridError,
    Internal,
    InvalidInput,
    NotFound,
    Unavailable,
    Unsupported,
)
from tests.unit.memorydaemon import Call, HttpServer, MemoryDaemon, Reply

Serve = Callable[[Callable[[Call], Reply]], HttpServer]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (500, Internal),
        (501, Unsupported),
        (503, Unavailable),
        (418, Internal),
    ],
)
def test_statuses_become_kinds_with_the_daemons_words(
    serve: Serve, status: int, kind: type[HybridError]
) -> None:
    server = serve(lambda _: Reply(status, {"message": "so it is"}))
    with pytest.raises(kind, match="so it is") as caught:
        Engine(UnixAddress(server.path)).container("x")
    assert type(caught.value) is kind


def test_an_error_that_is_not_json_is_shown_as_it_is(serve: Serve) -> None:
    server = serve(lambda _: Reply(raw=b"HTTP/1.1 500 X\r\n\r\nplain words\n"))
    with pytest.raises(Internal, match="plain words"):
        Engine(UnixAddress(server.path)).container("x")


def test_already_so_counts_as_done(serve: Serve) -> None:
    server = serve(lambda _: Reply(raw=b"HTTP/1.1 304 Not Modified\r\n\r\n"))
    Engine(UnixAddress(server.path)).start("x")


def test_an_answer_of_the_wrong_shape_is_an_error(serve: Serve) -> None:
    server = serve(lambda _: Reply(200, [1]))
    with pytest.raises(Unavailable, match="not an object"):
        Engine(UnixAddress(server.path)).container("x")
    with pytest.raises(Unavailable, match="not a list"):
        Engine(UnixAddress(serve(lambda _: Reply(200, {})).path)).containers()


def test_names_cannot_reach_other_paths(serve: Serve) -> None:
    seen: list[str] = []

    def answer(call: Call) -> Reply:
        seen.append(call.path)
        return Reply(404, {"message": "no"})

    server = serve(answer)
    with pytest.raises(NotFound):
        Engine(UnixAddress(server.path)).container("../../hybrid/info?x#y")
    assert seen == ["/containers/../../hybrid/info?x#y/json"]  # one encoded component


def test_wait_is_answered_after_the_exit(daemon: MemoryDaemon) -> None:
    client = Engine(UnixAddress(daemon.http.path))
    created = client.create_container({"Image": "busybox"}, "x")
    waited = client.wait("x")
    daemon.finish(daemon.containers[created["Id"]], 7)
    assert exit_code(waited) == (7, "")


def test_load_reports_progress_and_failure(daemon: MemoryDaemon) -> None:
    client = Engine(UnixAddress(daemon.http.path))
    assert list(client.load_images([b"tar"])) == [{"stream": "Loaded image: a:latest\n"}]
    with pytest.raises(InvalidInput, match="empty archive"):
        list(client.load_images([]))
