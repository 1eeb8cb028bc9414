"""Image archives: what ``docker save``, ``podman save`` and ``skopeo`` write, taken apart into
blobs.

docker-archive: ``manifest.json`` naming a config and layers per image. oci-archive: an OCI image
layout (``index.json`` and ``blobs/``). What Docker 25 and later write is both; ``manifest.json``
decides. All members are located first (bounded in number, checked names, links resolved inside the
archive), then only what is referenced is read.
"""

from __future__ import annotations

import json
import platform
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, BinaryIO, TypeVar, cast

from pydantic import BaseModel, RootModel

from hybrid.errors import InvalidInput
from hybrid.image import digest as digests
from hybrid.image import manifest as manifests
from hybrid.image import reference, tarstream
from hybrid.image.blobs import Blobs
from hybrid.image.config import ImageConfig
from hybrid.image.layer import compression
from hybrid.image.manifest import Descriptor, Index, Manifest

MAX_MEMBERS = 1 << 16
_MAX_LINKS = 16
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
M = TypeVar("M", bound=BaseModel)


class _ArchiveImages(RootModel[list[manifests.ArchiveImage]]):
    pass


@dataclass(frozen=True, slots=True)
class Unpacked:
    """One image of an archive, its blobs stored: the manifest's descriptor and the names it came
    with.
    """

    manifest: Descriptor
    references: list[str] = field(default_factory=list)


class Archive:
    """A plain tar archive of ``length`` bytes, its members located."""

    def __init__(self, source: IO[bytes], length: int) -> None:
        self._source = cast(BinaryIO, source)
        self._members: dict[str, tarstream.Entry] = {}
        for entry in tarstream.entries(self._source, length, MAX_MEMBERS):
            self._members[_member_name(entry.name)] = entry
        if not self._members:
            raise InvalidInput("the archive is empty")

    def unpack(self, blobs: Blobs) -> list[Unpacked]:
        """Stores the blobs of all images; InvalidInput if it is no image archive or anything in it
        is wrong.
        """
        if "manifest.json" in self._members:
            return list(self._unpack_docker(blobs))
        if "index.json" in self._members:
            return list(self._unpack_oci(blobs))
        raise InvalidInput("not an image archive: it has neither manifest.json nor index.json")

    def _find(self, name: str) -> tarstream.Entry:
        """The regular file ``name``, through the archive's own links (old docker archives share
        layers so).
        """
        where = _member_name(name.encode())
        for _ in range(_MAX_LINKS):
            entry = self._members.get(where)
            if entry is None:
                raise InvalidInput(f"the archive is incomplete: it has no {where[:200]}")
            if entry.kind == tarstream.FILE and entry.runs is None:
                return entry
            if entry.kind == tarstream.SYMLINK:
                target = entry.link.decode(errors="replace")
                where = posixpath.normpath(posixpath.join(posixpath.dirname(where), target))
            elif entry.kind == tarstream.LINK:
                where = _member_name(entry.link)
            else:
                break
        raise InvalidInput(f"the archive's {name[:200]} is not a regular file")

    def _read(self, name: str) -> bytes:
        entry = self._find(name)
        if entry.size > manifests.MAX_DOCUMENT:
            raise InvalidInput(f"{name} is larger than {manifests.MAX_DOCUMENT >> 20} MiB")
        self._source.seek(entry.offset)
        return self._source.read(entry.size)

    def _parsed(self, model: type[M], name: str) -> M:
        return manifests.parse(model, self._read(name), name)

    def _unpack_docker(self, blobs: Blobs) -> Iterator[Unpacked]:
        images = self._parsed(_ArchiveImages, "manifest.json").root
        if not images:
            raise InvalidInput("the archive holds no image")
        for image in images:
            data = self._read(image.config)
            named = posixpath.basename(image.config).removesuffix(".json")
            if len(named) == 64 and digests.of(data) != digests.PREFIX + named:
                raise InvalidInput(
                    f"wrong digest: {image.config} has the content of {digests.of(data)}"
                )
            config = manifests.parse(ImageConfig, data, image.config)
            if len(image.layers) != len(config.diff_ids):
                raise InvalidInput(
                    f"invalid manifest, layers length mismatch: expected {len(config.diff_ids)}, "
                    f"got {len(image.layers)}"
                )
            layers = [
                self._store_layer(blobs, name, diff_id)
                for name, diff_id in zip(image.layers, config.diff_ids, strict=True)
            ]
            names = [str(reference.parse(name)) for name in image.repo_tags or []]
            yield Unpacked(_store_manifest(blobs, blobs.write(data), len(data), layers), names)

    def _store_layer(self, blobs: Blobs, name: str, diff_id: str) -> Descriptor:
        """A plain layer must be its diff id; a compressed one is compared when it is converted."""
        entry = self._find(name)
        self._source.seek(entry.offset)
        kind = compression(self._source.read(min(8, entry.size)))
        expected = "" if kind else diff_id
        if not (expected and blobs.has(expected)):
            expected = blobs.copy(self._source, entry.offset, entry.size, expected)
        media_type = manifests.OCI_LAYER + ("+" + kind if kind else "")
        return Descriptor(media_type=media_type, digest=expected, size=entry.size)

    def _unpack_oci(self, blobs: Blobs) -> Iterator[Unpacked]:
        found = False
        for descriptor in self._parsed(Index, "index.json").manifests:
            chosen = self._choose(descriptor, depth=0)
            if chosen is None:
                continue
            found = True
            manifest = manifests.parse(Manifest, self._verified(chosen), "the manifest")
            data = self._verified(manifest.config)
            config = manifests.parse(ImageConfig, data, "the image's config")
            if len(manifest.layers) != len(config.diff_ids):
                raise InvalidInput(
                    f"invalid manifest, layers length mismatch: expected {len(config.diff_ids)}, "
                    f"got {len(manifest.layers)}"
                )
            for layer in manifest.layers:
                self._copy_blob(blobs, layer)
            blobs.write(data)
            blobs.write(self._verified(chosen))
            yield Unpacked(chosen, _oci_names(descriptor))
        if not found:
            raise InvalidInput(f"the archive holds no image for linux/{_architecture()}")

    def _choose(self, descriptor: Descriptor, depth: int) -> Descriptor | None:
        """The image manifest behind ``descriptor`` that this host's platform can run."""
        wanted = descriptor.platform
        if wanted and (wanted.os, wanted.architecture) != ("linux", _architecture()):
            return None
        if descriptor.media_type in manifests.MANIFESTS:
            return descriptor
        if descriptor.media_type not in manifests.INDEXES or depth > 1:
            return None
        index = manifests.parse(Index, self._verified(descriptor), "the index")
        choices = (self._choose(inner, depth + 1) for inner in index.manifests)
        return next((choice for choice in choices if choice), None)

    def _verified(self, descriptor: Descriptor) -> bytes:
        data = self._read(_blob_name(descriptor))
        if digests.of(data) != descriptor.digest:
            raise InvalidInput(
                f"wrong digest: {descriptor.digest} has the content of {digests.of(data)}"
            )
        return data

    def _copy_blob(self, blobs: Blobs, descriptor: Descriptor) -> None:
        entry = self._find(_blob_name(descriptor))
        if entry.size != descriptor.size:
            raise InvalidInput(
                f"wrong size: {descriptor.digest} has {entry.size} bytes, not {descriptor.size}"
            )
        if not blobs.has(descriptor.digest):
            blobs.copy(self._source, entry.offset, entry.size, descriptor.digest)


def _member_name(name: bytes) -> str:
    """A member's normalised name; one that leaves the archive's root is refused."""
    text = posixpath.normpath(name.decode("utf-8", errors="replace"))
    if text.startswith("/") or text.split("/", 1)[0] == "..":
        raise InvalidInput(f"the archive's member {text[:200]!r} leaves its root directory")
    return text


def _blob_name(descriptor: Descriptor) -> str:
    return "blobs/sha256/" + digests.hexadecimal(descriptor.digest)


def _architecture() -> str:
    machine = platform.machine()
    return _MACHINES.get(machine, machine)


def _oci_names(descriptor: Descriptor) -> list[str]:
    """The names in a descriptor's annotations. A bare word may be just a tag, as the OCI spec has
    it: no name.
    """
    for key in _NAMES:
        text = (descriptor.annotations or {}).get(key, "")
        if "/" in text or ":" in text:
            return [str(reference.parse(text))]
    return []


def _store_manifest(blobs: Blobs, config: str, size: int, layers: list[Descriptor]) -> Descriptor:
    """Writes the OCI manifest for what a docker-archive held."""
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_MANIFEST,
        "config": {"mediaType": manifests.OCI_CONFIG, "digest": config, "size": size},
        "layers": [
            {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
            for layer in layers
        ],
    }
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    return Descriptor(media_type=manifests.OCI_MANIFEST, digest=blobs.write(data), size=len(data))
