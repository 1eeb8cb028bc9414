from __future__ import annotations

import pytest

from hybrid.errors import Forbidden, InvalidInput
from hybrid.policy import capabilities


def test_names_are_taken_with_and_without_prefix_in_any_case() -> None:
    assert capabilities.name("net_admin") == "CAP_NET_ADMIN"
    assert capabilities.name("CAP_SYS_TIME") == "CAP_SYS_TIME"
    assert capabilities.name("all") == "ALL"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidInput, match='unknown capability "CAP_FLY"'):
        capabilities.select(capabilities.DEFAULT, add=["CAP_FLY"])


def test_default_is_dockers_fourteen() -> None:
    assert len(capabilities.DEFAULT) == 14
    assert set(capabilities.DEFAULT) <= set(capabilities.ALL)
    assert capabilities.select(capabilities.DEFAULT) == [
        name for name in capabilities.ALL if name in capabilities.DEFAULT
    ]


def test_the_kernel_knows_41() -> None:
    assert len(capabilities.ALL) == len(set(capabilities.ALL)) == 41


def test_drop_all_leaves_only_the_added() -> None:
    assert capabilities.select(capabilities.DEFAULT, add=["CHOWN"], drop=["ALL"]) == ["CAP_CHOWN"]


def test_add_all_leaves_out_the_dropped() -> None:
    chosen = capabilities.select(capabilities.DEFAULT, add=["ALL"], drop=["SYS_ADMIN"])
    assert "CAP_SYS_ADMIN" not in chosen
    assert len(chosen) == 40


def test_a_policy_bounds_what_is_added() -> None:
    assert capabilities.select([], add=["KILL"], allowed=["KILL"]) == ["CAP_KILL"]
    for wish in ("SYS_ADMIN", "ALL"):
        with pytest.raises(Forbidden, match="does not allow"):
            capabilities.select([], add=[wish], allowed=["KILL"])
