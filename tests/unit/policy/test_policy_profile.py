from __future__ import annotations

import pytest

from hybrid.errors import Forbidden, InvalidInput, NotFound
from hybrid.policy import profile


@pytest.mark.parametrize("name", profile.names())
def test_every_profile_loads_with_its_filter(name: str) -> None:
    loaded = profile.load(name)
    assert loaded.description
    assert loaded.seccomp_profile().default_action == "SCMP_ACT_ERRNO"
    assert "/proc/kcore" in loaded.masked_paths
    assert "/proc/sysrq-trigger" in loaded.readonly_paths
    assert loaded.user_namespace
    assert loaded.no_new_privileges


def test_strict_allows_nothing_to_be_relaxed() -> None:
    assert not any(profile.load("strict").may.model_dump().values())


@pytest.mark.parametrize("name", ["nosuch", "../policies/default", "Default", ""])
def test_other_names_are_not_found(name: str) -> None:
    with pytest.raises(NotFound, match="there are: default"):
        profile.load(name)


@pytest.mark.parametrize(
    "source",
    [
        "/",
        "/proc",
        "/proc/1",
        "/sys/fs",
        "/dev/vda",
        "/run",
        "/run/docker.sock",
        "/srv/own/images",
        "/srv",
    ],
)
def test_sources_that_show_the_host_are_refused(source: str) -> None:
    with pytest.raises(Forbidden, match="is refused"):
        profile.check_source(profile.load(), source, own=["/srv/own"])


@pytest.mark.parametrize("source", ["/srv/data", "/home/a", "/processes", "/srv/owner"])
def test_other_sources_are_fine(source: str) -> None:
    profile.check_source(profile.load(), source, own=["/srv/own"])


@pytest.mark.parametrize("source", ["data", "/a/../proc", "/a\0b"])
def test_sources_must_be_resolved(source: str) -> None:
    with pytest.raises(InvalidInput, match="invalid mount source"):
        profile.check_source(profile.load(), source)
