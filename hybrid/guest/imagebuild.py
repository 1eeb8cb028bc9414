"""Builds an example image from its recipe: a file that is both an OCI archive and a docker archive.

The same recipe and packages give the same bytes, so also the same image id.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybrid.guest import bootstrap, imagerecipe, layers
from hybrid.guest.imagerecipe import ImageRecipe
from hybrid.guest.recipe import Recipe
from hybrid.paths import Paths

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


def build_image(paths: Paths, recipe_dir: Path, out: Path, progress: Callable[[str], None]) -> Path:
    """The image's archive at ``out``;

    Nothing is done if it was built there from the same recipe.
    """
    recipe = imagerecipe.load(recipe_dir)
    base_dir = recipe_dir.parent / recipe.base if recipe.base else None
    more = [("base", Recipe(base_dir).digest().encode())] if base_dir else []
    inputs = Recipe(recipe_dir).digest(more)
    stamp = out.with_name(out.name + ".inputs")
    if out.exists() and stamp.exists() and stamp.read_text() == inputs:
        return out
    progress(f"building image {recipe.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix="build-") as scratch:
        stack, created = _stack(paths, recipe, recipe_dir, base_dir, progress)
        files = []
        for number, layer in enumerate(stack):
            files.append(Path(scratch) / f"layer-{number}.tar")
            layers.write(layer, files[-1])
        archive = Path(scratch) / "image.tar"
        write_archive(recipe, files, created, archive)
        archive.replace(out)
    stamp.write_text(inputs)
    return out


def _stack(
    paths: Paths,
    recipe: ImageRecipe,
    recipe_dir: Path,
    base_dir: Path | None,
    progress: Callable[[str], None],
) -> tuple[list[layers.Layer], int]:
    """The layers, lowest first. Images of one base have its layers in common, byte for byte."""
    stack: list[layers.Layer] = []
    below: layers.Layer = {}
    packages: list[str] = []
    exclude: list[str] = []
    sources = [(imagerecipe.load(base_dir), base_dir)] if base_dir else []
    newest = 0
    for source, directory in [*sources, (recipe, recipe_dir)]:
        exclude += source.exclude
        tar = Path()
        for names in source.layers:
            packages += names
            tar = bootstrap.packages_tar(paths.root / "cache", packages, progress)
            layer, newest = layers.from_packages(tar, source.keep, exclude)
            stack.append(layers.without(layer, below))
            below = below | stack[-1]
        stack.append(layers.own_layer(source, directory, below, tar, newest))
        below = below | stack[-1]
    return [layer for layer in stack if layer], newest


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_archive(recipe: ImageRecipe, files: list[Path], created: int, target: Path) -> None:
    """One tar with the layers; readers of either format find their own index in it."""
    architecture = bootstrap.architecture().oci
    when = datetime.datetime.fromtimestamp(created, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    digests = [_file_digest(path) for path in files]
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "created": when,
            "config": recipe.config.model_dump(exclude_defaults=True),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
            "history": [{"created": when, "created_by": "hybrid image recipe"} for _ in digests],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, _digest(config), len(config)),
            "layers": [
                _descriptor(_LAYER, digest, path.stat().st_size)
                for digest, path in zip(digests, files, strict=True)
            ],
        }
    )
    tags = [f"{recipe.name}:{tag}" for tag in recipe.tags]
    blobs: dict[str, bytes | Path] = {_digest(config): config, _digest(manifest): manifest}
    blobs |= dict(zip(digests, files, strict=True))
    index = {
        "schemaVersion": 2,
        "manifests": [
            _descriptor(_MANIFEST, _digest(manifest), len(manifest))
            | {"annotations": {"org.opencontainers.image.ref.name": tag}}
            for tag in tags
        ],
    }
    docker = [
        {
            "Config": f"blobs/sha256/{_digest(config)}",
            "RepoTags": tags,
            "Layers": [f"blobs/sha256/{digest}" for digest in digests],
        }
    ]
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for digest, content in sorted(blobs.items()):
            _add(archive, f"blobs/sha256/{digest}", content, created)
        _add(archive, "index.json", _json(index), created)
        _add(archive, "manifest.json", _json(docker), created)
        _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}), created)


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _add(archive: tarfile.TarFile, name: str, content: bytes | Path, mtime: int) -> None:
    info = tarfile.TarInfo(name)
    info.mtime, info.mode = mtime, 0o644
    if isinstance(content, bytes):
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
        return
    info.size = content.stat().st_size
    with content.open("rb") as file:
        archive.addfile(info, file)
