from __future__ import annotations

import pytest

from hybrid.cli import format
from hybrid.errors import InvalidInput


def test_a_table_is_as_wide_as_its_cells() -> None:
    assert format.table(("A", "LONGER"), [("xyz", "1"), ("", "")]) == "A     LONGER\nxyz   1\n"


def test_a_table_is_cut_to_the_terminal() -> None:
    assert format.table(("A",), [("123456",), ("12345",)], 5) == "A\n1234…\n12345"


def test_escape_sequences_of_others_stop_here() -> None:
    assert format.table(("A",), [("x\x1b[2Jy\n",)]) == "A\nx\\x1b[2Jy\\n"


def test_a_listing_has_three_styles() -> None:
    arguments = (("A",), [("1",)], [{"a": 1}], ["one"])
    assert format.listing(None, False, *arguments) == "A\n1"
    assert format.listing("json", False, *arguments) == '{"a": 1}'
    assert format.listing(None, True, *arguments) == "one"
    with pytest.raises(InvalidInput, match="no Go templates"):
        format.listing("{{.ID}}", False, *arguments)


def test_times() -> None:
    assert format.timestamp("2025-01-01T00:00:00.123456789Z") == pytest.approx(1735689600.123456)
    assert format.timestamp("2025-01-01T01:00:00+01:00") == 1735689600
    assert format.timestamp("never") == 0
    assert format.age("2025-01-01T00:00:00Z", 1735689605) == "5 seconds ago"
    assert format.age(1735689700, 1735689605) == "Less than a second ago"  # clocks differ


def test_sizes() -> None:
    assert [format.size(n) for n in (0, 999, 1234, 4_260_000, 10**13)] == [
        "0B",
        "999B",
        "1.23kB",
        "4.26MB",
        "10TB",
    ]


def test_commands_are_quoted_and_cut() -> None:
    assert format.command_text(["sh", "-c", "a b"], whole=False) == "\"sh -c 'a b'\""
    assert format.command_text("x" * 30, whole=False) == f'"{"x" * 19}…"'
    assert format.command_text("x" * 30, whole=True) == f'"{"x" * 30}"'


def test_ports() -> None:
    ports = [
        {"PrivatePort": 80, "Type": "tcp", "PublicPort": 8080, "IP": "127.0.0.1"},
        {"PrivatePort": 80, "Type": "tcp", "PublicPort": 8080, "IP": "::"},
        {"PrivatePort": 53, "Type": "udp"},
    ]
    assert format.ports_text(ports) == "127.0.0.1:8080->80/tcp, 53/udp, [::]:8080->80/tcp"


def test_ready_after() -> None:
    assert format.ready_after(1.239) == "1.24s"
    assert format.ready_after(None) == format.ready_after(0) == "-"
