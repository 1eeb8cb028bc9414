"""Where tests keep what takes long to build: guest image, tools tree, example images. Unchanged ones stay.

``python -m tests.built`` builds all of it, before tests that run side by side ask for it. Checkouts of different
sources that are tested at the same time need places of their own: TESTS_BUILT names one.
"""

from __future__ import annotations

import os
from pathlib import Path

from hybrid.guest.build import build_guest
from hybrid.guest.imagebuild import build_image
from hybrid.guest.tools import build_tools
from hybrid.paths import Paths, data_dir

BUILT = Paths.of(Path(os.environ.get("TESTS_BUILT", "/var/tmp/hybrid-tests")))
EXAMPLES = ("busybox", "postgres", "app", "nginx")


def example(name: str) -> Path:
    """The archive of an example image."""
    archive = BUILT.root / "archives" / f"{name}.tar"
    build_image(BUILT, data_dir() / "images" / name, archive, print)
    return archive


if __name__ == "__main__":
    build_guest(BUILT, print)
    build_tools(BUILT, print)
    for name in EXAMPLES:
        print(example(name))
