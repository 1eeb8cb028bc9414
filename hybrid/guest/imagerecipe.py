"""What an image recipe (``images/NAME/recipe.yaml``) may say. Pure but for ``load``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from hybrid.errors import InvalidInput


def _relative(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("a path below the image's root is needed, without a leading slash")
    return path


Relative = Annotated[str, AfterValidator(_relative)]
Mode = Annotated[str, StringConstraints(pattern=r"^[0-7]{4}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class User(_Model):
    """A line of /etc/passwd, and a group of the same name and id."""

    name: Name
    id: Annotated[int, Field(ge=0, le=65535)]
    home: str = "/nonexistent"
    shell: str = "/usr/sbin/nologin"


class Directory(_Model):
    """A directory that no package brings, or brings with other rights."""

    path: Relative
    owner: Name = "root"
    mode: Mode = "0755"


class Config(_Model):
    """The ``config`` object of the image, in the image specification's own words."""

    User: str = ""
    WorkingDir: str = ""
    Entrypoint: list[str] = []
    Cmd: list[str] = []
    Env: list[str] = []
    ExposedPorts: dict[str, dict[str, Any]] = {}
    Volumes: dict[str, dict[str, Any]] = {}
    StopSignal: str = ""
    Healthcheck: dict[str, Any] = {}
    Labels: dict[str, str] = {}


class ImageRecipe(_Model):
    """One image: layers of Debian packages, a list each, on ``base``'s; then one of own files.

    ``exclude`` and ``keep`` are globs (``**`` spans directories); with ``keep`` only what matches
    it is taken. ``compile`` names directories of Python modules to byte-compile; ``applets`` a
    busybox to link.
    """

    name: Name
    tags: list[str] = ["latest"]
    base: Name | None = None
    layers: list[list[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]+$")]]]
    exclude: list[Relative] = []
    keep: list[Relative] = []
    compile: list[Relative] = []
    applets: Relative | None = None
    users: list[User] = []
    directories: list[Directory] = []
    links: dict[Relative, str] = {}
    config: Config = Config()


def parse(text: str, where: str) -> ImageRecipe:
    """The recipe in YAML text; InvalidInput names the field that is wrong."""
    try:
        return ImageRecipe.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InvalidInput(f"{where}: not YAML: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{where}: {field}: {first['msg']}") from error


def load(directory: Path) -> ImageRecipe:
    """The recipe in that folder."""
    path = directory / "recipe.yaml"
    try:
        return parse(path.read_text(), str(path))
    except OSError as error:
        raise InvalidInput(f"no image recipe: {path}: {error.strerror}") from error
