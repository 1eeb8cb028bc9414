"""What crosses the provider's interface is checked where it is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid.errors import InvalidInput
from hybrid.machine import profile
from hybrid.machine.provider import Disk, MachineRequest, Nic, ShareDevice


@pytest.mark.parametrize("serial", ["", "a b", "x" * 37, "a/b", "a\n"])
def test_serials(serial: str) -> None:
    with pytest.raises(InvalidInput, match="disk serial"):
        Disk(serial, Path("/x"), True)


@pytest.mark.parametrize("mac", ["", "02:00", "02:00:00:00:00:0G", "02:00:00:00:00:0A"])
def test_mac_addresses(mac: str) -> None:
    with pytest.raises(InvalidInput, match="MAC"):
        Nic(mac, "tap0")


@pytest.mark.parametrize("tap", ["", "a/b", "x" * 16])
def test_taps(tap: str) -> None:
    with pytest.raises(InvalidInput, match="network device"):
        Nic("02:00:00:00:00:01", tap)


@pytest.mark.parametrize("tag", ["", "a b", "x" * 37, "../x"])
def test_tags(tag: str) -> None:
    with pytest.raises(InvalidInput, match="share tag"):
        ShareDevice(tag, Path("/x"))


@pytest.mark.parametrize("machine_id", ["", "../x", "a/b", "-x"])
def test_machine_ids(machine_id: str) -> None:
    with pytest.raises(InvalidInput, match="machine id"):
        MachineRequest(machine_id, "n", profile.load("small"), 1 << 28, 1)
