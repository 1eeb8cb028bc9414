"""The machine's apt sources, turned to the guests' release."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid.errors import Unavailable
from hybrid.guest.aptsources import KEYRING, Source, for_guest, parse_deb822, parse_list, read_host

ONE_LINE = """
# a comment
deb http://mirror.example/debian bookworm main contrib  # and why
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.example/apt bookworm main
 deb http://mirror.example/security bookworm-security main
"""

DEB822 = """# Debian
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main non-free-firmware
# one key for both
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://inline.example/debian
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
"""


def test_one_line_style_is_read_with_options_and_comments() -> None:
    assert parse_list(ONE_LINE) == [
        Source("http://mirror.example/debian", "bookworm", ("main", "contrib")),
        Source(
            "http://vendor.example/apt", "bookworm", ("main",), "/usr/share/keyrings/vendor.gpg"
        ),
        Source("http://mirror.example/security", "bookworm-security", ("main",)),
    ]


def test_deb822_style_is_read_without_disabled_stanzas() -> None:
    sources = parse_deb822(DEB822)
    assert [(source.uri, source.suite) for source in sources] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://inline.example/debian", "bookworm-security"),
    ]
    assert sources[0].signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert sources[2].signed_by == ""


def test_only_the_debian_archive_is_taken_over_and_only_main() -> None:
    guest = for_guest(parse_list(ONE_LINE), "bookworm")
    assert [(source.uri, source.suite, source.components) for source in guest] == [
        ("http://mirror.example/debian", "trixie", ("main",)),
        ("http://mirror.example/security", "trixie-security", ("main",)),
    ]


def test_a_host_of_the_guests_own_release_keeps_its_sources() -> None:
    source = Source("http://mirror.example/debian", "trixie", ("main",))
    assert for_guest([source, source], "trixie") == [source]


def test_other_suites_do_not_count() -> None:
    odd = [
        Source("http://a.example", "bookworm-backports", ("main",)),
        Source("http://a.example", "bookworm-pgdg", ("main",)),
        Source("http://a.example", "bookworm", ("stable",)),
    ]
    with pytest.raises(Unavailable, match="no Debian archive for 'bookworm'"):
        for_guest(odd, "bookworm")


def test_a_source_line_always_names_its_key() -> None:
    plain = Source("http://mirror.example/debian", "trixie", ("main",))
    assert plain.line() == f"deb [signed-by={KEYRING}] http://mirror.example/debian trixie main"


def test_the_host_is_read_from_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    (tmp_path / "apt/sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "apt/sources.list.d/old.sources.bak").write_text("Types: nonsense")
    assert {source.suite for source in read_host(tmp_path)} == {
        "trixie",
        "trixie-updates",
        "trixie-security",
    }


def test_a_host_that_is_not_debian_is_refused(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text("ID=other\nVERSION_CODENAME=bookworm\n")
    with pytest.raises(Unavailable, match="built on Debian"):
        read_host(tmp_path)
