#!/usr/bin/env python3
"""What ``make run`` does once hybrid is installed: guest, images, daemon, stack, proof. Root.

Each step finds out by itself that it has nothing to do, so that a second run takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
HYBRID = [sys.executable, "-m", "hybrid.cli.main"]
IMAGES = ("busybox", "postgres", "app", "nginx")
URL_DEADLINE = 120.0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--root", type=Path, help="state directory (/var/lib/hybrid)")
    options.add_argument("--port", default="8088", help="port on 127.0.0.1")
    given = options.parse_args()
    hybrid = [*HYBRID, *(["--root", str(given.root)] if given.root else [])]

    step("guest image")
    run([*hybrid, "guest", "build"])
    step("example images")
    for name in IMAGES:
        load_image(hybrid, name, given.root)
    step("stack")
    run(
        [*hybrid, "up", "-f", str(HERE / "compose.yaml"), "--remove-orphans"],
        environment={"STACK_PORT": given.port},
    )
    step("proof")
    run([*hybrid, "verify", "--all"])
    url = f"http://127.0.0.1:{given.port}/"
    step("a note, through the front to the database and back")
    if not json.loads(ask(url))["notes"]:
        add_note(url, "kept behind two walls")
    print(ask(url))
    step(f"try it: curl {url}")
    return 0


def load_image(hybrid: list[str], name: str, root: Path | None) -> None:
    """Builds the image's archive unless its recipe is unchanged, loads it unless it is there."""
    from hybrid.guest.imagebuild import build_image
    from hybrid.paths import Paths, data_dir

    paths = Paths.of(root)
    archive = paths.root / "examples" / f"{name}.tar"
    before = archive.stat().st_mtime_ns if archive.exists() else 0
    build_image(paths, data_dir() / "images" / name, archive, note)
    loaded = archive.with_suffix(".loaded")
    unchanged = loaded.exists() and archive.stat().st_mtime_ns == before
    if unchanged and present(hybrid, loaded.read_text().split()):
        note(f"{name} is loaded")
        return
    output = run([*hybrid, "image", "load", "-q", "-i", str(archive)], capture=True)
    note(output.strip())
    loaded.write_text("\n".join(line.partition(": ")[2] for line in output.splitlines()))


def present(hybrid: list[str], references: list[str]) -> bool:
    command = [*hybrid, "image", "inspect", *references]
    return bool(references) and subprocess.run(command, capture_output=True).returncode == 0


def ask(url: str) -> str:
    """The page, once the stack answers with one."""
    deadline = time.monotonic() + URL_DEADLINE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(answer.read(4096).decode(errors="replace"))
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{url} does not answer: {error}")
            time.sleep(0.5)


def add_note(url: str, text: str) -> None:
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(f"{url}notes", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=30).close()


def note(text: str) -> None:
    print(f"   {text}", flush=True)


def step(text: str) -> None:
    print(f"== {text}", flush=True)


def run(
    command: list[str], *, capture: bool = False, environment: dict[str, str] | None = None
) -> str:
    """Runs a command to its end; its failure is ours, with the same exit code."""
    output = subprocess.PIPE if capture else None
    done = subprocess.run(
        command, stdout=output, text=True, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
