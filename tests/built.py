"""Where tests keep what takes long to build: guest image, tools tree, example images. Unchanged ones stay."""

from __future__ import annotations

from pathlib import Path

from hybrid.paths import Paths

BUILT = Paths.of(Path("/var/tmp/hybrid-tests"))
