from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid.compose.load import Project, dotenv, find_cycle, load, parse, project_name
from hybrid.compose.model import Mount, Port
from hybrid.errors import InvalidInput, NotFound


def service(**keys: Any) -> Any:
    return parse({"services": {"a": {"image": "i", **keys}}}, {}, "f").services["a"]


def write(directory: Path, text: str) -> Path:
    path = directory / "compose.yaml"
    path.write_text(text)
    return path


def read(directory: Path, text: str, **environment: str) -> Project:
    write(directory, text)
    return load(None, None, environment, directory)


def test_the_example_stack_is_valid(top: Path) -> None:
    project = load(Path("examples/stack/compose.yaml"), None, {}, top)
    assert project.name == "stack"
    assert project.order() == ["db", "app", "front"]
    assert [project.services[name].isolation for name in project.order()] == [
        "vm",
        "vm:apps",
        "container",
    ]


def test_short_and_long_forms_are_one() -> None:
    short = parse(
        {
            "services": {
                "a": {
                    "image": "i",
                    "ports": ["127.0.0.1:1:2/udp", 80],
                    "volumes": ["n:/n:ro", "./x:/x", "/anonymous"],
                    "environment": ["A=1", "B"],
                    "command": "sh -c 'a b'",
                    "env_file": "e",
                    "ulimits": {"nofile": 5},
                    "healthcheck": {"test": "true", "interval": "1m30s"},
                    "mem_limit": "64m",
                }
            },
            "volumes": {"n": None},
        },
        {},
        "f",
    ).services["a"]
    assert short.ports == [
        Port(target=2, published="1", host_ip="127.0.0.1", protocol="udp"),
        Port(target=80),
    ]
    assert short.volumes == [
        Mount(type="volume", source="n", target="/n", read_only=True),
        Mount(type="bind", source="./x", target="/x"),
        Mount(type="volume", target="/anonymous"),
    ]
    assert short.environment == {"A": "1", "B": None}
    assert short.command == ["sh", "-c", "a b"]
    assert short.env_file[0].path == "e"
    assert (short.ulimits["nofile"].soft, short.ulimits["nofile"].hard) == (5, 5)
    assert short.healthcheck.test == ["CMD-SHELL", "true"]
    assert short.healthcheck.interval == 90 * 10**9
    assert short.mem_limit == 64 << 20


def test_yaml_scalars_become_text() -> None:
    made = service(environment={"A": 1, "B": True, "C": None}, user=1000, restart="no")
    assert made.environment == {"A": "1", "B": "true", "C": None}
    assert made.user == "1000"


def test_extensions_are_allowed_everywhere() -> None:
    raw = {"x-a": 1, "services": {"s": {"image": "i", "x-b": {}}}, "version": "3.8"}
    assert list(parse(raw, {}, "f").services) == ["s"]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ([], "is a mapping"),
        ({}, "services: is required"),
        ({"services": {"a": {"image": "i", "colour": 1}}}, "services.a.colour: this key is not"),
        ({"services": {"a": {"image": "i", "build": "."}}}, "services.a.build: this key is not"),
        ({"services": {"a": {}}}, "services.a.image: is required"),
        ({"services": {"a": {"image": "i", "ports": ["x"]}}}, "services.a.ports: invalid port"),
        ({"services": {"a": {"image": "i", "volumes": ["a:b"]}}}, "must be an absolute path"),
        ({"services": {"a": {"image": "i", "volumes": ["n:/n:z"]}}}, "option 'z' is not supported"),
        ({"services": {"a": {"image": "i", "volumes": ["n:/n"]}}}, "volume 'n' is not defined"),
        ({"services": {"a": {"image": "i", "networks": ["n"]}}}, "network 'n' is not defined"),
        ({"services": {"a": {"image": "i", "depends_on": ["b"]}}}, "no such service: b"),
        ({"services": {"a": {"image": "i", "mem_limit": "lots"}}}, "mem_limit: invalid size"),
        ({"services": {"a": {"image": "i", "healthcheck": {"test": ["x"]}}}}, "must begin with"),
        ({"services": {"a/b": {"image": "i"}}}, "not a valid service name"),
        (
            {"services": {"a": {"image": "i", "network_mode": "none", "networks": ["default"]}}},
            "exclude each other",
        ),
        ({"services": {"a": {"image": "i"}}, "networks": {"n": {"driver": "overlay"}}}, "driver"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(raw: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse(raw, {}, "f")


def test_a_cycle_is_named() -> None:
    raw = {
        "services": {
            name: {"image": "i", "depends_on": [on]}
            for name, on in (("a", "b"), ("b", "c"), ("c", "b"))
        }
    }
    with pytest.raises(InvalidInput, match="in a cycle: b -> c -> b"):
        parse(raw, {}, "f")
    assert find_cycle({"a": ["a"]}) == ["a", "a"]
    assert find_cycle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_order_puts_dependencies_first(tmp_path: Path) -> None:
    project = read(
        tmp_path,
        yaml.safe_dump(
            {
                "services": {
                    "front": {"image": "i", "depends_on": ["app"]},
                    "other": {"image": "i"},
                    "app": {"image": "i", "depends_on": {"db": None}},
                    "db": {"image": "i"},
                }
            }
        ),
    )
    assert project.order() == ["db", "app", "front", "other"]
    assert project.with_dependencies(["app"]) == ["db", "app"]
    with pytest.raises(NotFound, match="no such service: nope"):
        project.with_dependencies(["nope"])


def test_the_file_is_found_here_or_above(tmp_path: Path) -> None:
    write(tmp_path, "services: {a: {image: i}}")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    assert load(None, None, {}, tmp_path / "deep" / "er").file == tmp_path / "compose.yaml"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"cannot read .*x\.yaml"):
        load(Path("x.yaml"), None, {}, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not valid YAML"),
        ("services: {a: {image: i}, a: {image: j}}", "duplicate key 'a'"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
        ("x" * (1 << 20) + "y", "larger than"),
    ],
)
def test_broken_files_are_one_clear_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        read(tmp_path, text)
    assert "\n" not in caught.value.message


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    text = "x-b: &b {image: i, user: u}\nservices: {a: {<<: *b, user: v}}"
    assert read(tmp_path, text).services["a"].user == "v"


def test_dotenv_is_used_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=file\nB='quoted # not'\nexport C=c # comment\n#x\n")
    text = "services: {a: {image: '$A $B $C'}}"
    assert read(tmp_path, text).services["a"].image == "file quoted # not c"
    assert read(tmp_path, text, A="mine").services["a"].image == "mine quoted # not c"
    assert dotenv(tmp_path / "none") == {}


def test_project_names(tmp_path: Path) -> None:
    assert project_name("", Path("/x/My App")) == "myapp"
    assert project_name("given", Path("/x")) == "given"
    for wanted, directory in (("Bad", "/x"), ("", "/___")):
        with pytest.raises(InvalidInput, match="project name"):
            project_name(wanted, Path(directory))
    text = "name: infile\nservices: {a: {image: i}}"
    assert read(tmp_path, text).name == "infile"
    assert read(tmp_path, text, COMPOSE_PROJECT_NAME="env").name == "env"
