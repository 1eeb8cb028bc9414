"""hybrid image load, ls, inspect, rm, tag."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from hybrid.cli import format
from hybrid.cli.app import new, verb
from hybrid.cli.connect import complete_image, engine
from hybrid.cli.containers import Filters, Format, NoTrunc, Quiet, emit, filters, show_objects
from hybrid.cli.main import fail
from hybrid.cli.progress import progress
from hybrid.errors import HybridError, InvalidInput

app = new(help="Images: what containers are made from.")
BLOCK = 256 << 10

Names = Annotated[list[str], typer.Argument(metavar="IMAGE...", autocompletion=complete_image)]


@verb(
    app,
    "load",
    "hybrid image load -i busybox.tar",
    "docker save nginx | hybrid image load",
)
def load(
    ctx: typer.Context,
    input: Annotated[
        Path | None, typer.Option("--input", "-i", help="Archive; standard input otherwise.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Load images from a docker-archive or oci-archive."""
    client = engine(ctx)
    if input is None and sys.stdin.isatty():
        raise InvalidInput("no archive: name a file with --input, or send one to standard input")
    try:
        source = input.open("rb") if input else sys.stdin.buffer
    except OSError as error:
        raise InvalidInput(f"cannot read the archive {input}: {error.strerror}") from error
    total = input.stat().st_size if input else 0
    with source, progress(f"loading {input or 'standard input'}") as shown:
        for message in client.load_images(_blocks(source, total, shown if not quiet else _silent)):
            text = str(message.get("stream") or "").strip()
            if text.startswith("Loaded image"):
                print(text)
            elif text:
                shown(text)
            elif status := message.get("status"):
                shown(f"{status} {message.get('id', '')} {message.get('progress', '')}".strip())


def _blocks(source: BinaryIO, total: int, tell: Callable[[str], None]) -> Iterator[bytes]:
    sent = 0
    while block := source.read(BLOCK):
        sent += len(block)
        share = f" of {format.size(total)}" if total else ""
        tell(f"sent {format.size(sent)}{share}")
        yield block


def _silent(text: str) -> None:
    """For --quiet."""


@verb(app, "ls", "hybrid image ls", "hybrid image ls -q", "hybrid image ls --format json")
def ls(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[REPOSITORY[:TAG]]")] = "",
    all: Annotated[bool, typer.Option("--all", "-a", help="Untagged ones too.")] = False,
    filter: Filters = None,
    quiet: Quiet = False,
    no_trunc: NoTrunc = False,
    format_: Format = None,
) -> None:
    """List images."""
    wanted = filters(filter)
    if name:
        wanted.setdefault("reference", []).append(name)
    images = engine(ctx).images(all=all, filters=wanted)
    shown = str if no_trunc else format.short_id
    now = time.time()
    tagged = [
        (tag, image) for image in images for tag in image.get("RepoTags") or ["<none>:<none>"]
    ]
    rows, objects = [], []
    for reference, image in tagged:
        repository, _, tag = reference.rpartition(":")
        created, size = format.age(image.get("Created", 0), now), format.size(image.get("Size", 0))
        rows.append((repository, tag, shown(image["Id"]), created, size))
        objects.append(_object(repository, tag, image, created, size))
    names = list(dict.fromkeys(shown(image["Id"]) for image in images))
    headings = ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")
    emit(format.listing(format_, quiet, headings, rows, objects, names))


def _object(
    repository: str, tag: str, image: dict[str, Any], created: str, size: str
) -> dict[str, Any]:
    return {
        "Repository": repository,
        "Tag": tag,
        "ID": format.short_id(image["Id"]),
        "CreatedAt": image.get("Created", 0),
        "CreatedSince": created,
        "Size": size,
    }


@verb(app, "inspect", "hybrid image inspect busybox")
def inspect(ctx: typer.Context, names: Names) -> int:
    """Show everything that is known about images."""
    return show_objects(names, engine(ctx).image)


@verb(app, "rm", "hybrid image rm busybox", "hybrid image rm -f $(hybrid image ls -q)")
def rm(
    ctx: typer.Context,
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="Used ones too.")] = False,
    no_prune: Annotated[bool, typer.Option("--no-prune", help="Keep untagged parents.")] = False,
) -> int:
    """Remove images."""
    client = engine(ctx)
    code = 0
    for name in names:
        try:
            for done in client.remove_image(name, force=force, prune=not no_prune):
                for what, which in done.items():
                    print(f"{what}: {which}")
        except HybridError as error:
            code = fail(error.message)
    return code


@verb(app, "tag", "hybrid image tag busybox tools:1")
def tag(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", autocompletion=complete_image)],
    target: Annotated[str, typer.Argument(metavar="TARGET[:TAG]")],
) -> None:
    """Give an image one more name."""
    head, slash, last = target.rpartition("/")
    repository, _, version = last.partition(":")
    engine(ctx).tag_image(source, f"{head}{slash}{repository}", version or "latest")
