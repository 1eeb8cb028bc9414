"""An image's configuration: how it wants to be run, and what it is made of. Pure.

``ImageConfig`` reads the config document of OCI and of Docker and shows it in hybrid's own words.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from hybrid.image.manifest import MAX_LAYERS, Digest, Model, Text, Texts

_HEALTH = ("test", "interval", "timeout", "start_period", "start_interval", "retries")


class _Healthcheck(Model):
    """Durations are nanoseconds, 0 means the default."""

    test: Texts | None = Field(default=None, alias="Test")
    interval: int = Field(default=0, alias="Interval", ge=0)
    timeout: int = Field(default=0, alias="Timeout", ge=0)
    start_period: int = Field(default=0, alias="StartPeriod", ge=0)
    start_interval: int = Field(default=0, alias="StartInterval", ge=0)
    retries: int = Field(default=0, alias="Retries", ge=0)


class _Run(Model):
    user: Text = Field(default="", alias="User")
    env: Texts | None = Field(default=None, alias="Env")
    entrypoint: Texts | None = Field(default=None, alias="Entrypoint")
    cmd: Texts | None = Field(default=None, alias="Cmd")
    working_dir: Text = Field(default="", alias="WorkingDir")
    exposed_ports: dict[str, Any] | None = Field(default=None, alias="ExposedPorts")
    volumes: dict[str, Any] | None = Field(default=None, alias="Volumes")
    labels: dict[str, Text] | None = Field(default=None, alias="Labels")
    stop_signal: str = Field(default="", alias="StopSignal", max_length=64)
    healthcheck: _Healthcheck | None = Field(default=None, alias="Healthcheck")
    shell: Texts | None = Field(default=None, alias="Shell")
    on_build: Texts | None = Field(default=None, alias="OnBuild")

    @field_validator("user", "working_dir", "stop_signal", mode="before")
    @classmethod
    def _absent(cls, value: object) -> object:
        return "" if value is None else value


class History(Model):
    """One step of the image's making."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class _RootFs(Model):
    type: str = "layers"
    diff_ids: Annotated[list[Digest], Field(max_length=MAX_LAYERS)]


class ImageConfig(Model):
    """The document; the properties are what running and showing the image needs."""

    architecture: str = Field(max_length=64)
    os: str = Field(max_length=64)
    variant: str = ""
    created: str = ""
    author: str = ""
    config: _Run = _Run()
    rootfs: _RootFs
    history: Annotated[list[History], Field(default_factory=list, max_length=4096)]

    @field_validator("created", "author", "variant", "history", "config", mode="before")
    @classmethod
    def _absent(cls, value: object, info: ValidationInfo) -> object:
        if value is not None:
            return value
        return {"history": [], "config": {}}.get(info.field_name or "", "")

    @property
    def created_ns(self) -> int:
        """Nanoseconds since 1970; 0 if the document has no (valid) time."""
        try:
            return int(datetime.fromisoformat(self.created).timestamp() * 1_000_000) * 1000
        except (ValueError, OverflowError):
            return 0

    @property
    def env(self) -> list[str]:
        return self.config.env or []

    @property
    def entrypoint(self) -> list[str] | None:
        return self.config.entrypoint

    @property
    def command(self) -> list[str] | None:
        return self.config.cmd

    @property
    def user(self) -> str:
        return self.config.user

    @property
    def working_dir(self) -> str:
        return self.config.working_dir

    @property
    def exposed_ports(self) -> list[str]:
        return sorted(self.config.exposed_ports or {})

    @property
    def volumes(self) -> list[str]:
        return sorted(self.config.volumes or {})

    @property
    def labels(self) -> dict[str, str]:
        return self.config.labels or {}

    @property
    def stop_signal(self) -> str:
        return self.config.stop_signal

    @property
    def shell(self) -> list[str] | None:
        return self.config.shell

    @property
    def healthcheck(self) -> dict[str, Any] | None:
        """test, interval, timeout, start_period, start_interval and retries; None if the image has
        none.
        """
        check = self.config.healthcheck
        if check is None:
            return None
        return {name: getattr(check, name) for name in _HEALTH} | {"test": check.test or []}

    @property
    def diff_ids(self) -> list[str]:
        return self.rootfs.diff_ids
