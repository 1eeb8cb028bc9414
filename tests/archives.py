"""Layer tars and image archives, made by code: no network, no registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member; ``xattrs`` are added as pax records."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.pop("xattrs", {}).items():
        info.pax_headers["SCHILY.xattr." + key] = value.decode("utf-8", "surrogateescape")
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, mode: int = 0o755, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tree(files: dict[str, bytes]) -> bytes:
    """An archive of plain files."""
    return tar(member(name, data) for name, data in files.items())


@dataclass
class ImageMade:
    """An image: layers are plain tars; ``change`` may spoil the archive's files before they are
    packed.
    """

    layers: list[bytes]
    names: list[str] = field(default_factory=lambda: ["made:1"])
    config: dict[str, Any] = field(default_factory=dict)
    architecture: str = "amd64"

    @property
    def document(self) -> bytes:
        return json.dumps(
            {
                "architecture": self.architecture,
                "os": "linux",
                "created": "2024-05-01T00:00:00Z",
                "config": self.config,
                "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in self.layers]},
                "history": [{"created_by": "made by a test"}],
            }
        ).encode()

    @property
    def id(self) -> str:
        return digest(self.document)

    def docker_files(self, *, compress: bool = False) -> dict[str, bytes]:
        files = {f"{n}/layer.tar": data for n, data in enumerate(self.layers)}
        name = self.id.removeprefix("sha256:") + ".json"
        manifest = [{"Config": name, "RepoTags": self.names or None, "Layers": list(files)}]
        packed = {key: gzip.compress(data) for key, data in files.items()} if compress else files
        return {**packed, name: self.document, "manifest.json": json.dumps(manifest).encode()}

    def docker_archive(self, *, compress: bool = False) -> bytes:
        return tree(self.docker_files(compress=compress))

    def oci_files(self) -> dict[str, bytes]:
        packed = [gzip.compress(layer, mtime=0) for layer in self.layers]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": descriptor(self.document, "application/vnd.oci.image.config.v1+json"),
                "layers": [
                    descriptor(data, "application/vnd.oci.image.layer.v1.tar+gzip")
                    for data in packed
                ],
            }
        ).encode()
        top = descriptor(manifest, "application/vnd.oci.image.manifest.v1+json")
        if self.names:
            top["annotations"] = {"org.opencontainers.image.ref.name": self.names[0]}
        files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
        for data in (*packed, self.document, manifest):
            files["blobs/sha256/" + digest(data).removeprefix("sha256:")] = data
        return files

    def oci_archive(self) -> bytes:
        return tree(self.oci_files())


def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def simple(names: list[str] | None = None, content: bytes = b"hello\n") -> ImageMade:
    """Two small layers."""
    base = tar([directory("etc/"), member("etc/motd", content)])
    top = tar([member("bin/tool", b"#!/bin/sh\n", mode=0o755)])
    return ImageMade([base, top], names if names is not None else ["made:1"], {"Cmd": ["sh"]})


async def stream(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
