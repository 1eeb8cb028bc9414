"""Byte-compiles Python modules of a Debian tree with that tree's own interpreter."""

from __future__ import annotations

from pathlib import Path

from hybrid.guest import bootstrap, command


def compile_modules(
    tree: Path, directory: Path, strip: Path, shown_as: str, *, beside: bool
) -> None:
    """Compiles all modules below ``directory``; tracebacks show ``strip`` as ``shown_as``.

    ``beside`` puts ``x.pyc`` next to ``x.py``, else it goes to ``__pycache__``. The byte code is
    never checked against its source (no time stamp is in it), so it belongs into images only.
    """
    command.run(
        [
            *bootstrap.program(tree, next(tree.glob("usr/bin/python3.*"))),
            *("-S", "-m", "compileall", "-q", "-j1", "--invalidation-mode", "unchecked-hash"),
            *(["-b"] if beside else []),
            *("-s", strip, "-p", shown_as, directory),
        ],
        # the same hash seed gives the same order, hence the same bytes
        {
            "PYTHONHOME": str(tree / "usr"),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
