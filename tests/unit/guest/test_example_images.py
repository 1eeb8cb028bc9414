"""Example images: recipes, layers and archives. No package is fetched: a small tar stands for them."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
from pathlib import Path

import pytest

from hybrid.errors import InvalidInput
from hybrid.guest import imagebuild, imagerecipe, layers
from hybrid.guest.imagerecipe import Config, ImageRecipe

MASTER = "root:*:0:0:root:/root:/bin/bash\nwww-data:*:33:33:www-data:/var/www:/usr/sbin/nologin\n"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """What mmdebstrap would write, with files that must not get into an image."""
    path = tmp_path / "packages.tar"
    with tarfile.open(path, "w") as archive:
        for name, data, mode, mtime in [
            ("./usr", None, 0o755, 9999),
            ("./usr/bin", None, 0o755, 9999),
            ("./usr/bin/tool", b"tool", 0o755, 100),
            ("./usr/share", None, 0o755, 9999),
            ("./usr/share/doc", None, 0o755, 9999),
            ("./usr/share/doc/tool", b"read me", 0o644, 100),
            ("./usr/share/base-passwd", None, 0o755, 9999),
            ("./usr/share/base-passwd/passwd.master", MASTER.encode(), 0o644, 200),
            ("./usr/share/base-passwd/group.master", b"root:*:0:\nwww-data:*:33:\n", 0o644, 200),
            ("./tmp", None, 0o1777, 9999),
            ("./etc", None, 0o755, 9999),
            ("./etc/resolv.conf", b"nameserver 192.0.2.1", 0o644, 9999),
        ]:
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = mode, mtime
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))
    return path


def recipe(**fields: object) -> ImageRecipe:
    return ImageRecipe.model_validate({"name": "x", "layers": [["tool"]], **fields})


@pytest.mark.parametrize("name", ["busybox", "debian", "nginx", "postgres", "app"])
def test_the_repositorys_recipes_are_well_formed(top: Path, name: str) -> None:
    loaded = imagerecipe.load(top / "images" / name)
    assert loaded.name == name
    assert loaded.config.Cmd


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("name: x\nlayers: []\nlayer: 1", "layer: Extra inputs"),
        ("name: x\nlayers: [[UPPER]]", r"layers\.0\.0"),
        ("name: x\nlayers: []\nexclude: [../etc/**]", r"exclude\.0.*without a leading slash"),
        ("name: x\nlayers: []\ndirectories: [{path: /etc}]", r"directories\.0\.path"),
        ("name: [", "not YAML"),
    ],
)
def test_a_bad_recipe_names_its_field(text: str, field: str) -> None:
    with pytest.raises(InvalidInput, match=f"recipe.yaml: {field}"):
        imagerecipe.parse(text, "recipe.yaml")


def test_unpacked_leftovers_and_documents_stay_out(packages: Path) -> None:
    layer, newest = layers.from_packages(packages, [], [])
    assert newest == 200
    assert "usr/bin/tool" in layer
    assert not {"usr/share/doc/tool", "etc/resolv.conf", "."} & layer.keys()
    assert layer["tmp"].mode == stat.S_IFDIR | 0o1777
    assert layer["usr"].mtime == 200, "the time of unpacking is not the package's"


def test_keep_takes_only_what_it_names_and_its_directories(packages: Path) -> None:
    layer, _ = layers.from_packages(packages, ["usr/bin/*"], [])
    assert sorted(layer) == ["usr", "usr/bin", "usr/bin/tool"]


def test_an_upper_layer_repeats_only_the_directories_it_needs(packages: Path) -> None:
    layer, _ = layers.from_packages(packages, [], [])
    new = layers.without(layer, set(layer) - {"usr/bin/tool"})
    assert sorted(new) == ["usr", "usr/bin", "usr/bin/tool"]


def test_own_layer_has_users_files_directories_and_links(packages: Path, tmp_path: Path) -> None:
    below, newest = layers.from_packages(packages, [], [])
    files = tmp_path / "recipe/files/usr/local/bin"
    files.mkdir(parents=True)
    (files / "start").write_text("#!/bin/sh\n")
    (files / "start").chmod(0o700)
    wanted = recipe(
        users=[{"name": "app", "id": 1000, "home": "/srv"}],
        directories=[
            {"path": "var/lib/data", "owner": "app", "mode": "0700"},
            {"path": "tmp/sub", "owner": "www-data"},
        ],
        links={"usr/bin/alias": "tool"},
    )
    layer = layers.own_layer(wanted, tmp_path / "recipe", below, packages, newest)
    passwd = layer["etc/passwd"].data().decode()
    assert passwd.startswith("root:x:0:0:") and "app:x:1000:1000::/srv:" in passwd
    assert layer["usr/local/bin/start"].mode == stat.S_IFREG | 0o755
    assert (layer["var/lib/data"].uid, layer["var/lib/data"].mode & 0o777) == (1000, 0o700)
    assert layer["tmp/sub"].uid == 33
    assert layer["tmp"].mode == stat.S_IFDIR | 0o1777, "a parent keeps the lower layer's mode"
    assert layer["usr/bin/alias"].link == "tool"


def test_a_layers_tar_is_the_same_each_time(packages: Path, tmp_path: Path) -> None:
    layer, _ = layers.from_packages(packages, [], [])
    for name in ("one", "two"):
        layers.write(layer, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as archive:
        assert archive.getnames() == sorted(layer)
        tool = archive.extractfile("usr/bin/tool")
        assert tool is not None and tool.read() == b"tool"


def test_the_archive_is_an_oci_layout_and_a_docker_archive(tmp_path: Path) -> None:
    files = [tmp_path / "0.tar", tmp_path / "1.tar"]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * 512)
    config = Config(Cmd=["tool"], ExposedPorts={"80/tcp": {}})
    imagebuild.write_archive(
        recipe(tags=["latest", "1"], config=config), files, 0, tmp_path / "out.tar"
    )
    with tarfile.open(tmp_path / "out.tar") as archive:
        content = {
            member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
        }
    for name, data in content.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    (docker,) = json.loads(content["manifest.json"])
    assert docker["RepoTags"] == ["x:latest", "x:1"]
    assert [content[name] for name in docker["Layers"]] == [path.read_bytes() for path in files]
    image = json.loads(content[docker["Config"]])
    assert image["config"] == {"Cmd": ["tool"], "ExposedPorts": {"80/tcp": {}}}
    assert image["rootfs"]["diff_ids"] == [
        name.replace("blobs/sha256/", "sha256:") for name in docker["Layers"]
    ]
    index = json.loads(content["index.json"])
    manifest = json.loads(content[f"blobs/sha256/{index['manifests'][0]['digest'][7:]}"])
    assert manifest["config"]["digest"][7:] in docker["Config"]
    assert json.loads(content["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
