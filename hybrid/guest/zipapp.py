"""The agent as one zip application: the same bytes from the same sources.

Standard-library Python only, so that it runs wherever a python3 is. Sources are stored
uncompressed: the archive is small, and reading it needs no zlib.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from hybrid.errors import Internal

PACKAGE = Path(__file__).resolve().parent.parent
_PARTS = ("__init__.py", "errors.py", "units.py", "agent/**/*.py", "wire/**/*.py")
_MAIN = b"import sys\n\nfrom hybrid.agent.main import main\n\nsys.exit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


def members(package: Path = PACKAGE) -> dict[str, bytes]:
    """The archive's files by name; Internal if the agent isn't there."""
    if not (package / "agent/main.py").exists():
        raise Internal(f"the agent's sources are missing: {package / 'agent/main.py'}")
    found = {
        f"hybrid/{path.relative_to(package)}": path.read_bytes()
        for part in _PARTS
        for path in package.glob(part)
    }
    return {"__main__.py": _MAIN} | dict(sorted(found.items()))


def write(target: Path, contents: dict[str, bytes]) -> Path:
    """Writes the archive in place of ``target``, at once or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data)
    partial.chmod(0o644)
    partial.replace(target)
    return target


def build(target: Path) -> Path:
    """The agent's zip application at ``target``."""
    return write(target, members())
