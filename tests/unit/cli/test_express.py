"""The plain exec that needs no command table: what it takes, and what it leaves to the table."""

from __future__ import annotations

import pytest

from hybrid.cli.express import Plain, execute, parse


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("exec web ls -l", Plain({}, "", "web", ["ls", "-l"])),
        ("exec -it web sh", Plain({}, "it", "web", ["sh"])),
        ("exec -t --interactive web sh", Plain({}, "ti", "web", ["sh"])),
        (
            "--root /r -H unix:///s exec web true",
            Plain({"root": "/r", "host": "unix:///s"}, "", "web", ["true"]),
        ),
    ],
)
def test_a_plain_exec(line: str, expected: Plain) -> None:
    assert parse(line.split()) == expected


@pytest.mark.parametrize(
    "line",
    [
        "run web exec sh",
        "machine exec web",
        "exec",
        "exec web",
        "exec --help",
        "exec -d web true",
        "exec -u 1 web true",
        "exec web -- true",
        "exec web --help",
        "--root exec web true",
        "--root=/r exec web true",
    ],
)
def test_all_else_is_left_to_the_table(line: str) -> None:
    assert parse(line.split()) is None


def test_without_a_daemon_the_table_takes_over() -> None:
    assert execute(["--host", "unix:///nonexistent/hybrid.sock", "exec", "web", "true"]) is None
