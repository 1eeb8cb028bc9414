"""Images as containers see them: thin over the image store, plus who uses what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from hybrid.engine.container import Record
from hybrid.engine.events import Events
from hybrid.errors import Conflict, NotFound
from hybrid.image.config import ImageConfig
from hybrid.image.store import Image, ImageStore, Loaded, Removed

Paths = list[Path]


class Images:
    """``containers`` gives every container's record: an image that one of them uses is not removed."""

    def __init__(
        self,
        store: ImageStore,
        layers: Path,
        events: Events,
        containers: Callable[[], Iterable[Record]],
    ) -> None:
        self._store = store
        self._layers = layers
        self._events = events
        self._containers = containers
        store.pinned = lambda: [layer for record in containers() for layer in record.layers]

    def all(self) -> list[Image]:
        return self._store.list()

    def find(self, reference: str) -> Image:
        return self._store.resolve(reference)

    def resolve(self, reference: str) -> tuple[str, ImageConfig]:
        """Image id and configuration; NotFound "No such image: …"."""
        image = self._store.resolve(reference)
        return image.id, self._store.config(image)

    def config(self, image: Image) -> ImageConfig:
        return self._store.config(image)

    async def layers(self, record: Record) -> Paths:
        """The layers' file-system images, lowest first, converted if they were not yet.

        A container outlives the forced removal of its image: its layers are kept for it.
        """
        try:
            return await self._store.layers(self._store.resolve(record.image))
        except NotFound:
            kept = [self._layers / f"{layer.partition(':')[2]}.squashfs" for layer in record.layers]
            if not all(path.exists() for path in kept):
                raise
            return kept

    async def load(self, archive: AsyncIterator[bytes], progress: Callable[[str], None]) -> Loaded:
        loaded = await self._store.load(archive, progress)
        for one in loaded:
            self._events.publish("image", "load", one.id, {"name": one.name})
        return loaded

    async def tag(self, reference: str, new: str) -> None:
        image = await self._store.tag(reference, new)
        self._events.publish("image", "tag", image.id, {"name": new})

    async def collect(self) -> None:
        """Deletes the layers that were kept for containers which are gone."""
        await self._store.collect()

    async def released(self, record: Record) -> None:
        """The container was removed: if its image was before it, its layers need not be kept any more."""
        try:
            self._store.resolve(record.image)
        except NotFound:
            await self._store.collect()

    def users(self, image_id: str) -> list[Record]:
        return [record for record in self._containers() if record.image == image_id]

    async def remove(self, reference: str, *, force: bool) -> Removed:
        """What was untagged and deleted; Conflict, in Docker's words, while a container uses it."""
        image = self._store.resolve(reference)
        last_name = len(image.references) <= 1 or image.id.removeprefix("sha256:").startswith(
            reference.removeprefix("sha256:")
        )
        if last_name:
            self._refuse_used(image, reference, force)
        removed = await self._store.remove(reference, force)
        for item in removed:
            action = "untag" if "Untagged" in item else "delete"
            self._events.publish("image", action, image.id, {"name": next(iter(item.values()))})
        return removed

    def _refuse_used(self, image: Image, reference: str, force: bool) -> None:
        short = image.id.removeprefix("sha256:")[:12]
        for record in self.users(image.id):
            if record.live:
                raise Conflict(
                    f"conflict: unable to delete {short} (cannot be forced) - image is being used by running container"
                    f" {record.short_id}"
                )
            if not force:
                raise Conflict(
                    f'conflict: unable to remove repository reference "{reference}" (must force) - container'
                    f" {record.short_id} is using its referenced image {short}"
                )
