"""Images out: one archive that is both an OCI image layout and what ``docker load`` has always
read.

Members are the stored blobs as they are, then ``index.json``, ``oci-layout`` and ``manifest.json``;
times and owners are zero, so the same images give the same bytes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.image import digest as digests
from hybrid.image import manifest as manifests
from hybrid.image import reference, tarstream
from hybrid.image.blobs import CHUNK, disk_errors
from hybrid.image.manifest import Descriptor, Manifest


@dataclass(frozen=True, slots=True)
class Exported:
    """An image and the names (in full) it goes out with."""

    descriptor: Descriptor
    manifest: Manifest
    references: Sequence[str]


def documents(images: Sequence[Exported]) -> dict[str, bytes]:
    """The archive's small files."""
    index: list[dict[str, Any]] = []
    listing: list[dict[str, Any]] = []
    for image in images:
        base = image.descriptor.model_dump(by_alias=True, exclude_none=True)
        for name in image.references:
            ref = reference.parse(name)
            annotations = {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": ref.tag,
            }
            index.append({**base, "annotations": annotations})
        if not image.references:
            index.append(base)
        listing.append(
            {
                "Config": blob_name(image.manifest.config.digest),
                "RepoTags": [reference.parse(name).familiar for name in image.references] or None,
                "Layers": [blob_name(layer.digest) for layer in image.manifest.layers],
            }
        )
    top = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": index}
    return {
        "index.json": json.dumps(top).encode(),
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "manifest.json": json.dumps(listing).encode(),
    }


def blob_name(digest: str) -> str:
    """Where a blob is in an image layout."""
    return "blobs/sha256/" + digests.hexadecimal(digest)


def blobs(images: Sequence[Exported]) -> list[str]:
    """The digests of all blobs of ``images``, each once, in order."""
    found: dict[str, None] = {}
    for image in images:
        found[image.descriptor.digest] = None
        found[image.manifest.config.digest] = None
        found |= dict.fromkeys(layer.digest for layer in image.manifest.layers)
    return sorted(found)


async def stream(images: Sequence[Exported], layout: Path) -> AsyncIterator[bytes]:
    """The archive of ``images``, whose blobs are in ``layout``."""
    for digest in blobs(images):
        path = layout / blob_name(digest)
        with disk_errors(path), path.open("rb") as file:
            size = path.stat().st_size
            yield _header(blob_name(digest), size)
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk
            yield tarstream.padding(size)
    for name, data in documents(images).items():
        yield _header(name, len(data)) + data + tarstream.padding(len(data))
    yield b"\0" * 1024


def _header(name: str, size: int) -> bytes:
    return tarstream.header(tarstream.Entry(name.encode(), size=size))
