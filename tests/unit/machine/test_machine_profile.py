"""Machine profiles: those that are shipped, and what a wrong one is told."""

from __future__ import annotations

import pytest

from hybrid.errors import InvalidInput, NotFound
from hybrid.machine import profile
from hybrid.machine.profile import Accelerator

GOOD = "name: a\ncpus: 1\nmemory: 128m\n"


def test_the_shipped_profiles() -> None:
    assert profile.names() == ["default", "large", "small"]
    for name in profile.names():
        assert profile.load(name).name == name
        assert profile.load(name).accelerator is Accelerator.AUTO


def test_the_default_file_spells_out_every_field() -> None:
    shape = profile.load("default")
    assert shape.model_fields_set == set(type(shape).model_fields)
    for part in (shape.devices, shape.hardening, shape.boot_timeout):
        assert part.model_fields_set == set(type(part).model_fields)


@pytest.mark.parametrize("name", ["nothing", "../policies/default", "", "Default"])
def test_an_unknown_profile(name: str) -> None:
    with pytest.raises(NotFound, match=r"No such machine profile: .*default, large, small"):
        profile.load(name)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("memory: 1k", "memory"),
        ("memory: lots", "memory"),
        ("cpus: 0", "cpus"),
        ("devices: {usb: true}", r"devices\.usb"),
        ("hardening: {sandbox: false}", r"hardening\.sandbox"),
        ('kernel_arguments: ["a b"]', r"kernel_arguments\.0"),
        ("accelerator: xen", "accelerator"),
        ("boot_timeout: {tcg: 0}", r"boot_timeout\.tcg"),
        ("name: ../x", "name"),
    ],
)
def test_a_wrong_field_is_named(change: str, field: str) -> None:
    key = change.partition(":")[0]
    kept = "".join(line + "\n" for line in GOOD.splitlines() if not line.startswith(key))
    with pytest.raises(InvalidInput, match=rf"^machine profile a\.yaml: {field}: "):
        profile.parse(kept + change, "a.yaml")


@pytest.mark.parametrize("text", ["a: [", "\t"])
def test_not_yaml(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"machine profile a\.yaml: not YAML"):
        profile.parse(text, "a.yaml")
    with pytest.raises(InvalidInput, match=r"machine profile a\.yaml: \(top\)"):
        profile.parse("- list", "a.yaml")
