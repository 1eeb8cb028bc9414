"""What a layer's tar archive means: its members in order, resolved to one tree for overlayfs. Pure.

Rules, those of the OCI image spec ("Representing Changes", "Whiteouts") and of Docker's unpacking:

- names are relative to the root: a leading ``/`` does nothing, a name that climbs out (``../x``) is
  refused;
- a parent that is a symlink *of this layer* is followed, inside the root only, as in a chroot;
- a later member replaces an earlier one of its name; two directories merge, with the attributes of
  the later one;
- ``.wh.NAME`` becomes a character device 0/0, ``.wh..wh..opq`` the xattr ``trusted.overlay.opaque``
  of its directory. Both hide lower layers only: members of the same layer win in any order, and a
  directory beside its own whiteout is opaque. Other ``.wh..wh.`` names (aufs) are dropped;
- a hard link shares the file it names at that moment, also when that name is replaced later. One to
  a file of a lower layer is refused, as by Docker's overlay2;
- xattrs: ``security.capability`` and ``user.*`` stay. ``trusted.*`` would let an image steer
  overlayfs; labels and signatures are of the machine that made the image: dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from hybrid.errors import InvalidInput
from hybrid.image.tarstream import CHARACTER, DIRECTORY, FILE, LINK, SYMLINK, Entry

MAX_DEPTH = 256
MAX_COMPONENT = 255  # NAME_MAX
_MAX_SYMLINKS = 40  # as the kernel
_WHITEOUT, _AUFS, _OPAQUE = b".wh.", b".wh..wh.", b".wh..wh..opq"
_OPAQUE_XATTR = {b"trusted.overlay.opaque": b"y"}


@dataclass(slots=True, eq=False)
class _Node:
    """A name in the tree. ``entry`` None: a directory that is only implied, or a whiteout. Hard
    links share it.
    """

    entry: Entry | None
    children: dict[bytes, _Node] | None = None  # None: not a directory
    opaque: bool = False
    whiteout: bool = False


@dataclass(slots=True)
class LayerTree:
    """Members go in with ``add``, in the archive's order; ``plan`` gives what to write."""

    root: _Node = field(default_factory=lambda: _Node(None, {}))

    def add(self, entry: Entry) -> None:
        """Applies one member; InvalidInput says which and why."""
        parts = _parts(entry.name)
        if not parts:
            if entry.kind == DIRECTORY:
                self.root.entry = entry
            return
        *parents, name = parts
        if name.startswith(_WHITEOUT):
            self._whiteout(parents, name)
            return
        directory = self._directory(parents, entry.name)
        if entry.kind == LINK:
            self._place(directory, name, _Node(self._linked(entry)))
        elif entry.kind == DIRECTORY:
            self._place_directory(directory, name, entry)
        else:
            self._place(directory, name, _Node(entry))

    def plan(self) -> Iterator[Entry]:
        """All names, parents first, ready to be written: hard links point at the first name of
        their file.
        """
        first_names: dict[int, bytes] = {}
        if self.root.entry:
            yield _cleaned(replace(self.root.entry, name=b"./"), opaque=False)
        stack = [(b"", iter(_children(self.root).items()))]
        while stack:
            prefix, rest = stack[-1]
            for name, node in rest:
                path = prefix + name
                yield _written(node, path, first_names)
                if node.children:
                    stack.append((path + b"/", iter(node.children.items())))
                    break
            else:
                stack.pop()

    def _whiteout(self, parents: list[bytes], name: bytes) -> None:
        if name == _OPAQUE:
            self._directory(parents, name).opaque = True
            return
        hidden = name[len(_WHITEOUT) :]
        if name.startswith(_AUFS):
            return
        if hidden in (b"", b".", b".."):
            raise InvalidInput(f"the layer has a malformed whiteout: {name!r}")
        siblings = _children(self._directory(parents, name))
        present = siblings.get(hidden)
        if present is None:
            siblings[hidden] = _Node(None, whiteout=True)
        elif present.children is not None:
            present.opaque = True

    def _directory(self, parts: list[bytes], why: bytes) -> _Node:
        """The directory ``parts``, made (only implied) where it is missing."""
        node = self._find(parts, why, make=True)
        assert node is not None  # make
        return node

    def _find(self, parts: list[bytes], why: bytes, *, make: bool) -> _Node | None:
        """The directory ``parts``, through this layer's symlinks; None if it is missing."""
        trail = [self.root]
        rest, followed = list(reversed(parts)), 0
        while rest:
            part = rest.pop()
            if part == b"..":
                trail = trail[:-1] or [self.root]
                continue
            siblings = _children(trail[-1])
            child = siblings.get(part)
            if child is None or child.whiteout:
                if not make:
                    return None
                child = siblings[part] = _Node(None, {}, opaque=child is not None)
            if child.children is not None:
                trail.append(child)
            elif child.entry is not None and child.entry.kind == SYMLINK:
                followed += 1
                target = child.entry.link
                trail = [self.root] if target.startswith(b"/") else trail
                rest += reversed([p for p in target.split(b"/") if p not in (b"", b".")])
            else:
                followed = _MAX_SYMLINKS + 1
            if followed > _MAX_SYMLINKS or len(trail) > MAX_DEPTH:
                raise InvalidInput(
                    f"the layer's member {why[:200]!r} is below something that is no directory, "
                    "or too deep"
                )
        return trail[-1]

    def _linked(self, entry: Entry) -> Entry:
        *parents, name = _parts(entry.link) or [b""]
        directory = self._find(parents, entry.name, make=False)
        target = _children(directory).get(name) if directory else None
        if target is None or target.entry is None or target.children is not None:
            raise InvalidInput(
                f"the layer's hard link {entry.name[:200]!r} names {entry.link[:200]!r}, "
                "which is not a file of the layer"
            )
        return target.entry

    @staticmethod
    def _place(directory: _Node, name: bytes, node: _Node) -> None:
        siblings = _children(directory)
        siblings.pop(name, None)  # so that it comes after what it may share with
        siblings[name] = node

    @staticmethod
    def _place_directory(directory: _Node, name: bytes, entry: Entry) -> None:
        siblings = _children(directory)
        present = siblings.get(name)
        if present is not None and present.children is not None:
            present.entry = entry
        else:
            hidden = present is not None and present.whiteout
            siblings[name] = _Node(entry, {}, opaque=hidden)


def _children(node: _Node) -> dict[bytes, _Node]:
    if node.children is None:
        raise InvalidInput("the layer treats a file as a directory")
    return node.children


def _parts(name: bytes) -> list[bytes]:
    """The components of ``name`` from the root; empty for the root itself."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts and not name.startswith(b"/"):
                raise InvalidInput(f"the layer's member {name[:200]!r} leaves the root directory")
            parts = parts[:-1]
        elif len(part) > MAX_COMPONENT:
            raise InvalidInput(
                f"the layer has a name of more than {MAX_COMPONENT} bytes: {part[:60]!r}…"
            )
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


def _written(node: _Node, path: bytes, first_names: dict[int, bytes]) -> Entry:
    if node.whiteout:
        return Entry(path, CHARACTER, mode=0)
    if node.children is not None:
        entry = node.entry or Entry(path, DIRECTORY, mode=0o755)
        return _cleaned(replace(entry, name=path + b"/"), opaque=node.opaque)
    assert node.entry is not None  # only directories and whiteouts have none
    first = first_names.setdefault(id(node.entry), path)
    if first != path and node.entry.kind == FILE:
        return Entry(path, LINK, mode=node.entry.mode, link=first)
    return _cleaned(replace(node.entry, name=path), opaque=False)


def _cleaned(entry: Entry, *, opaque: bool) -> Entry:
    kept = {
        key: value
        for key, value in entry.xattrs.items()
        if key == b"security.capability" or key.startswith(b"user.")
    }
    return replace(entry, xattrs={**kept, **(_OPAQUE_XATTR if opaque else {})})


def resolve(entries: Iterable[Entry]) -> LayerTree:
    """The tree of all ``entries``."""
    tree = LayerTree()
    for entry in entries:
        tree.add(entry)
    return tree
