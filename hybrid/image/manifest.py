"""Manifests and indexes, of OCI and of Docker, as bounded models. Pure: bytes in,
checked data out.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hybrid.errors import InvalidInput

MAX_DOCUMENT = 4 << 20
MAX_LAYERS = 127  # as Docker
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES, MANIFESTS = (OCI_INDEX, DOCKER_INDEX), (OCI_MANIFEST, DOCKER_MANIFEST)
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, lt=1 << 50)]
Text = Annotated[str, Field(max_length=1 << 20)]
Texts = Annotated[list[Text], Field(max_length=4096)]
M = TypeVar("M", bound=BaseModel)


class Model(BaseModel):
    """Unknown fields are ignored, as both specifications demand."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Platform(Model):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(Model):
    """Points at a blob: what it is, its digest and size."""

    media_type: str = Field(default="", alias="mediaType", max_length=255)
    digest: Digest
    size: Size
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Manifest(Model):
    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: str = Field(default="", alias="mediaType")
    config: Descriptor
    layers: Annotated[list[Descriptor], Field(max_length=MAX_LAYERS)]


class Index(Model):
    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: str = Field(default="", alias="mediaType")
    manifests: Annotated[list[Descriptor], Field(max_length=4096)]


class ArchiveImage(Model):
    """One element of a docker-archive's manifest.json."""

    config: str = Field(alias="Config", max_length=4096)
    repo_tags: Texts | None = Field(default=None, alias="RepoTags")
    layers: Annotated[list[Text], Field(max_length=MAX_LAYERS)] = Field(alias="Layers")


def parse(model: type[M], data: bytes, what: str) -> M:
    """``data`` as ``model``; InvalidInput names ``what`` and its first bad field."""
    if len(data) > MAX_DOCUMENT:
        raise InvalidInput(f"{what} is larger than {MAX_DOCUMENT >> 20} MiB")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(
            f"{what} is invalid: {where + ': ' if where else ''}{first['msg']}"
        ) from error
