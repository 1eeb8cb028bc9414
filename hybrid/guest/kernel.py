"""The kernel and its modules, out of an unpacked linux-image package."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import Internal
from hybrid.guest import elf


@dataclass(frozen=True)
class Module:
    name: str
    path: str  # below lib/modules/RELEASE, uncompressed name
    data: bytes


class Kernel:
    """One kernel:

    Its image, and its modules by name (``-`` and ``_`` are the same, as for modprobe).
    """

    def __init__(self, tree: Path) -> None:
        images = sorted(tree.glob("boot/vmlinu[xz]-*"))
        if len(images) != 1:
            raise Internal(
                f"guest image: {len(images)} kernels in the kernel package, one was expected"
            )
        self.image = images[0]
        self.release = self.image.name.partition("-")[2]
        self._base = tree / "usr/lib/modules" / self.release
        self._files = {
            path.name.split(".ko")[0].replace("-", "_"): path
            for path in sorted(self._base.glob("kernel/**/*.ko*"))
        }
        self._builtin = {
            Path(line).stem.replace("-", "_")
            for line in (self._base / "modules.builtin").read_text().splitlines()
        }

    def closure(self, names: list[str]) -> list[Module]:
        """The modules and all they depend on, in an order in which they can be loaded."""
        loaded: dict[str, Module] = {}
        for name in names:
            self._add(name.replace("-", "_"), loaded)
        return list(loaded.values())

    def _add(self, name: str, loaded: dict[str, Module]) -> None:
        if name in loaded or name in self._builtin:
            return
        if name not in self._files:
            raise Internal(f"guest image: kernel {self.release} has no module {name}")
        module = self._read(name)
        for dependency in elf.module_depends(module.data):
            self._add(dependency.replace("-", "_"), loaded)
        loaded[name] = module

    def _read(self, name: str) -> Module:
        path = self._files[name]
        data = path.read_bytes()
        relative = str(path.relative_to(self._base))
        if path.suffix == ".xz":
            return Module(name, relative.removesuffix(".xz"), lzma.decompress(data))
        if path.suffix == ".ko":
            return Module(name, relative, data)
        raise Internal(f"guest image: module {path.name} is compressed in an unknown way")


def dependency_file(modules: list[Module]) -> str:
    """``modules.dep`` for these modules (a closure):

    Each path, then what to load before it, nearest first.
    """
    by_name = {module.name: module for module in modules}
    lines = []
    for module in modules:
        order: dict[str, None] = {}
        _collect(module, by_name, order)
        lines.append(
            f"{module.path}: {' '.join(by_name[name].path for name in reversed(order))}".rstrip()
        )
    return "\n".join(sorted(lines)) + "\n"


def _collect(module: Module, by_name: dict[str, Module], order: dict[str, None]) -> None:
    for dependency in elf.module_depends(module.data):
        found = by_name.get(dependency.replace("-", "_"))
        if found is not None:
            _collect(found, by_name, order)
            order[found.name] = None
