"""The image store: an OCI image layout, and what Docker means by images, names and ids.

An image is the config blob's digest (its id) and one manifest. ``index.json`` lists every image,
once for each of its names and once without any if it has none; it is replaced atomically, after the
blobs it needs and before those it no longer needs are deleted. So at any moment the layout is
whole, and what a crash leaves over is swept at the next start (blobs nobody lists: at the next
``collect``).

All methods are for the event loop's thread, which never waits for the disk but to read a small
document. ``load`` may run several at a time; nothing is collected meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from hybrid.errors import Conflict, HybridError, Internal, InvalidInput, NotFound
from hybrid.image import digest as digests
from hybrid.image import manifest as manifests
from hybrid.image import reference
from hybrid.image.archive import Archive, Unpacked
from hybrid.image.blobs import Blobs, disk_errors, replace_file, room
from hybrid.image.config import ImageConfig
from hybrid.image.export import Exported, stream
from hybrid.image.layer import Bounds, LayerConverter, SquashfsConverter, compression
from hybrid.image.manifest import Descriptor, Index, Manifest
from hybrid.paths import Paths

_NAME, _TAGGED = "org.opencontainers.image.ref.name", "hybrid.tagged"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_SHORT = 12
Progress = Callable[[str], None]
Removed = list[dict[str, str]]
Files = list[Path]
Names = list[str]
Documents = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it is listed. ``references`` are its names in full."""

    id: str
    manifest: Descriptor
    references: tuple[str, ...]
    size: int  # bytes of its layers as they are stored
    tagged: str  # RFC 3339, when it last got a name

    @property
    def names(self) -> list[str]:
        """As people write them: ``busybox:latest``."""
        return [reference.parse(name).familiar for name in self.references]

    @property
    def short_id(self) -> str:
        return digests.hexadecimal(self.id)[:_SHORT]


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image that ``load`` found, once for each name (familiar) it came with; "" for none."""

    id: str
    name: str = ""


Loaded = list[LoadedImage]


@dataclass(slots=True)
class _Record:
    manifest: Descriptor
    parsed: Manifest
    config: ImageConfig
    names: dict[str, str] = field(default_factory=dict)  # full reference → when it was given


class ImageStore:
    """``pinned`` tells which layers (diff ids) containers still use: they survive the removal of
    their image.
    """

    def __init__(
        self,
        paths: Paths,
        convert: LayerConverter | None = None,
        bounds: Bounds | None = None,
        pinned: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._directory = paths.images
        self._layers = paths.layers
        self._bounds = bounds or Bounds()
        self._spooler = SquashfsConverter(paths, self._bounds)
        self._convert: LayerConverter = convert or self._spooler
        self._blobs = Blobs(paths.images)
        self._images: dict[str, _Record] = {}
        self._loads = 0
        self._collecting = asyncio.Lock()  # held by whoever deletes, and to begin a load
        self._writing = asyncio.Lock()
        self.pinned = pinned
        self._open()

    def _open(self) -> None:
        """Reads the index (made if there is none) and sweeps what a crash left half-written."""
        with disk_errors(self._directory):
            for path in (self._directory, self._blobs.directory, self._layers):
                path.mkdir(parents=True, exist_ok=True)
            if not (self._directory / "oci-layout").exists():
                replace_file(self._directory / "oci-layout", _LAYOUT)
            for path in self._directory.glob(".*"):
                path.unlink()
            self._blobs.sweep()
            self._spooler.sweep()
        index = self._directory / "index.json"
        if index.exists():
            self._read_index(index.read_bytes())

    def _read_index(self, data: bytes) -> None:
        try:
            for descriptor in manifests.parse(Index, data, "index.json").manifests:
                annotations = descriptor.annotations or {}
                record = self._record(descriptor.model_copy(update={"annotations": None}))
                if name := annotations.get(_NAME):
                    record.names[name] = annotations.get(_TAGGED, "")
        except InvalidInput as error:
            raise Internal(f"{self._directory}/index.json is damaged: {error.message}") from error

    def _record(self, descriptor: Descriptor) -> _Record:
        """The record of the image behind a stored manifest, made if it is new."""
        data = self._blobs.read(descriptor.digest, manifests.MAX_DOCUMENT)
        manifest = manifests.parse(Manifest, data, "the manifest")
        config = self._blobs.read(manifest.config.digest, manifests.MAX_DOCUMENT)
        parsed = manifests.parse(ImageConfig, config, "the image's config")
        return self._images.setdefault(
            manifest.config.digest, _Record(descriptor, manifest, parsed)
        )

    async def _write_index(self) -> None:
        async with self._writing:
            await _finished(replace_file, self._directory / "index.json", self._index())

    def _index(self) -> bytes:
        entries: Documents = []
        for record in self._images.values():
            base = {
                "mediaType": record.manifest.media_type,
                "digest": record.manifest.digest,
                "size": record.manifest.size,
            }
            for name, tagged in record.names.items():
                entries.append({**base, "annotations": {_NAME: name, _TAGGED: tagged}})
            if not record.names:
                entries.append(base)
        document = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": entries}
        return json.dumps(document, indent=1).encode()

    # --- what there is ---------------------------------------------------------------------------

    def list(self) -> list[Image]:
        """All images, newest first."""
        images = [self._image(image_id) for image_id in self._images]
        return sorted(
            images, key=lambda image: self._images[image.id].config.created_ns, reverse=True
        )

    def _image(self, image_id: str) -> Image:
        record = self._images[image_id]
        return Image(
            id=image_id,
            manifest=record.manifest,
            references=tuple(sorted(record.names)),
            size=sum(layer.size for layer in record.parsed.layers),
            tagged=max(record.names.values(), default=""),
        )

    def resolve(self, text: str) -> Image:
        """The image of a name, an id, an id's prefix or a digest; NotFound, or InvalidInput when
        ambiguous.

        As Docker: a name wins over an id's prefix.
        """
        bare = text.removeprefix(digests.PREFIX)
        is_id = bool(bare) and len(bare) <= 64 and not bare.strip("0123456789abcdef")
        if is_id and digests.PREFIX + bare in self._images:
            return self._image(digests.PREFIX + bare)
        if not (is_id and (text != bare or len(bare) == 64)):
            found = self._named(reference.parse(text))
            if found:
                return self._image(found)
        matches = [
            key for key in self._images if is_id and digests.hexadecimal(key).startswith(bare)
        ]
        if len(matches) > 1:
            raise InvalidInput(
                f"image id prefix {bare} is ambiguous: {len(matches)} images begin so"
            )
        if not matches:
            raise NotFound(f"No such image: {_shown(text, is_id)}")
        return self._image(matches[0])

    def _named(self, ref: reference.Reference) -> str | None:
        for image_id, record in self._images.items():
            if ref.digest:
                names = {reference.parse(name).name for name in record.names}
                if ref.digest in (record.manifest.digest, image_id) and ref.name in names:
                    return image_id
            elif str(ref) in record.names:
                return image_id
        return None

    def config(self, image: Image) -> ImageConfig:
        """The image's configuration."""
        return self._known(image).config

    def raw_config(self, image: Image) -> dict[str, Any]:
        """The config document as it is stored, with what ``ImageConfig`` does not model."""
        document: dict[str, Any] = json.loads(self._blobs.read(image.id, manifests.MAX_DOCUMENT))
        return document

    def manifest(self, image: Image) -> Manifest:
        """The manifest: the layers' blobs, lowest first."""
        return self._known(image).parsed

    def blob(self, digest: str) -> Path:
        """The file of a stored blob."""
        return self._blobs.path(digest)

    async def layers(self, image: Image) -> Files:
        """The layers' squashfs files, lowest first; those not yet there are converted now.

        NotFound if the image was removed, be it meanwhile.
        """
        record = self._known(image)
        pairs = zip(record.parsed.layers, record.config.diff_ids, strict=True)
        try:
            return [
                await self._convert.convert(self._blobs.path(layer.digest), diff_id)
                for layer, diff_id in pairs
            ]
        except HybridError:
            self._known(image)
            raise

    def _known(self, image: Image) -> _Record:
        record = self._images.get(image.id)
        if record is None:
            raise NotFound(f"No such image: {image.id}")
        return record

    def save(self, texts: Sequence[str]) -> AsyncIterator[bytes]:
        """An archive of these images, as ``docker save``: a name goes out with itself, an id with
        no name. NotFound before the first byte.
        """
        chosen: dict[str, Names] = {}
        for text in texts:
            image = self.resolve(text)
            names = chosen.setdefault(image.id, [])
            if not self._is_id(text, image):
                names.append(str(reference.parse(text)))
        exported = [
            Exported(self._images[key].manifest, self._images[key].parsed, names)
            for key, names in chosen.items()
        ]
        return stream(exported, self._directory)

    # --- names and removal -----------------------------------------------------------------------

    async def tag(self, source: Image | str, target: str) -> Image:
        """Gives ``source`` the name ``target``, taking it from the image that had it."""
        image = self.resolve(source.id if isinstance(source, Image) else source)
        ref = reference.parse(target)
        if ref.digest:
            raise InvalidInput("refusing to create a tag with a digest reference")
        self._name(image.id, [str(ref)])
        await self._write_index()
        return self._image(image.id)

    def _name(self, image_id: str, references: Iterable[str]) -> None:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        for name in references:
            for record in self._images.values():
                record.names.pop(name, None)
            self._images[image_id].names[name] = now

    async def remove(self, text: str, force: bool = False) -> Removed:
        """Docker's answer to ``rmi``: what was untagged and, with an image's last name, deleted.

        Whether containers use the image is the caller's to ask first. Three cases: a name of
        several is only untagged; the last name, or the id of an image with names in one repository,
        deletes; the id of an image in several repositories needs ``force``.
        """
        image = self.resolve(text)
        record = self._images[image.id]
        by_id = self._is_id(text, image)
        repositories = {reference.parse(name).name for name in record.names}
        if by_id and len(repositories) > 1 and not force:
            raise Conflict(
                f"conflict: unable to delete {image.short_id} (must be forced) - "
                "image is referenced in multiple repositories"
            )
        names = list(record.names) if by_id else [str(reference.parse(text))]
        names = [name for name in names if name in record.names] or list(record.names)
        for name in names:
            del record.names[name]
        removed = [{"Untagged": reference.parse(name).familiar} for name in names]
        if not record.names:
            del self._images[image.id]
        await self._write_index()
        if not record.names:
            removed.append({"Deleted": image.id})
            removed += [{"Deleted": layer} for layer in self._gone_layers(record)]
        await self.collect()
        return removed

    @staticmethod
    def _is_id(text: str, image: Image) -> bool:
        bare = text.removeprefix(digests.PREFIX)
        if not digests.hexadecimal(image.id).startswith(bare):
            return False
        return (
            text != bare or str(reference.parse(text)) not in image.references
            if len(bare) < 64
            else True
        )

    def _gone_layers(self, record: _Record) -> Iterable[str]:
        """Chain ids of the layers that no other image has."""
        kept = {
            chain
            for other in self._images.values()
            for chain in digests.chain_ids(other.config.diff_ids)
        }
        chain_ids = reversed(digests.chain_ids(record.config.diff_ids))
        return [chain for chain in chain_ids if chain not in kept]

    async def collect(self) -> None:
        """Deletes blobs and layer files that no image and no container needs; nothing while a load
        runs.
        """
        async with self._collecting:
            if not self._loads:
                await _finished(self._delete_all_but, *self._needed())

    def _needed(self) -> tuple[set[str], set[str]]:
        """Digests of blobs, and names of layers."""
        blobs: set[str] = set()
        diff_ids = set(self.pinned())
        for image_id, record in self._images.items():
            blobs |= {
                image_id,
                record.manifest.digest,
                *(layer.digest for layer in record.parsed.layers),
            }
            diff_ids |= set(record.config.diff_ids)
        return blobs, {digests.hexadecimal(diff_id) for diff_id in diff_ids}

    def _delete_all_but(self, blobs: set[str], layers: set[str]) -> None:
        with disk_errors(self._directory):
            for digest in self._blobs.all() - blobs:
                self._blobs.delete(digest)
            for path in self._layers.glob("*.squashfs"):
                if path.stem not in layers:
                    path.unlink()

    # --- loading ---------------------------------------------------------------------------------

    async def load(
        self, source: Path | AsyncIterable[bytes], progress: Progress = lambda _: None
    ) -> Loaded:
        """Loads every image of an archive, perhaps compressed, and converts its layers.

        All or nothing: on any error the store is as before. InvalidInput says what is wrong with
        the archive, Unavailable that the disk is full.
        """
        async with self._collecting:
            self._loads += 1
        try:
            async with self._plain(source, progress) as plain:
                length = os.fstat(plain.fileno()).st_size
                progress("Reading the archive")
                unpacked = await asyncio.to_thread(_unpack, plain, length, self._blobs)
            return await self._adopt(unpacked, progress)
        finally:
            self._loads -= 1
            await self.collect()

    async def _adopt(self, unpacked: Sequence[Unpacked], progress: Progress) -> Loaded:
        known = set(self._images)
        ids: Names = []
        try:
            for item in unpacked:
                image_id = self._id_of(self._record(item.manifest))
                ids.append(image_id)
                layers = self._images[image_id].parsed.layers
                for number, (layer, diff_id) in enumerate(
                    zip(layers, self._images[image_id].config.diff_ids, strict=True), 1
                ):
                    progress(f"Converting layer {number} of {len(layers)}")
                    await self._convert.convert(self._blobs.path(layer.digest), diff_id)
        except BaseException:
            for image_id in set(ids) - known:
                self._images.pop(image_id, None)
            raise
        loaded = []
        for image_id, item in zip(ids, unpacked, strict=True):
            self._name(image_id, item.references)
            names = [reference.parse(name).familiar for name in item.references]
            loaded += [LoadedImage(image_id, name) for name in names or [""]]
        await self._write_index()
        return loaded

    @staticmethod
    def _id_of(record: _Record) -> str:
        return record.parsed.config.digest

    @contextlib.asynccontextmanager
    async def _plain(
        self, source: Path | AsyncIterable[bytes], progress: Progress
    ) -> AsyncIterator[IO[bytes]]:
        """The archive as a seekable plain tar file: a stream is spooled, a compressed one is
        decompressed.
        """
        with contextlib.ExitStack() as stack:
            if isinstance(source, Path):
                try:
                    file: IO[bytes] = stack.enter_context(source.open("rb"))
                except OSError as error:
                    raise NotFound(f"open {source}: {(error.strerror or '').lower()}") from error
            else:
                file = stack.enter_context(await self._spool(source))
            if kind := compression(file.read(8)):
                progress("Decompressing the archive")
                file.seek(0)
                limit = self._bounds.archive
                file = stack.enter_context(await self._spooler.plain(file, kind, None, limit))
            yield file

    async def _spool(self, source: AsyncIterable[bytes]) -> IO[bytes]:
        with disk_errors(self._directory), contextlib.ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(dir=self._directory))
            total = 0
            async for chunk in source:
                total += len(chunk)
                if total > self._bounds.archive:
                    raise InvalidInput(
                        f"the archive is larger than {self._bounds.archive >> 30} GiB"
                    )
                if total >> 26 != (total - len(chunk)) >> 26:
                    room(self._directory, 0)
                await asyncio.to_thread(file.write, chunk)
            file.seek(0)
            stack.pop_all()
            return file


async def _finished(work: Callable[..., None], *arguments: Any) -> None:
    """Does it in a thread. Whoever is cancelled meanwhile waits for it: a thread cannot be stopped."""
    doing = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait({doing})
        doing.exception()
        raise


def _unpack(source: IO[bytes], length: int, blobs: Blobs) -> list[Unpacked]:
    room(blobs.directory, length)
    try:
        return Archive(source, length).unpack(blobs)
    except HybridError:
        raise
    except (ValueError, RecursionError, UnicodeError) as error:
        raise InvalidInput(f"the archive is damaged: {error}") from error


def _shown(text: str, is_id: bool) -> str:
    """A missing image's name as Docker shows it: with its tag."""
    if is_id and text.startswith(digests.PREFIX):
        return text
    try:
        return reference.parse(text).familiar
    except InvalidInput:
        return text
