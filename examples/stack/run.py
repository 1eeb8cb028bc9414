#!/usr/bin/env python3
"""What ``make run`` does once hybrid is installed: guest, images, daemon, stack, proof. Root.

Each step finds out by itself that it has nothing to do, so that a second run takes seconds.
Environment: HYBRID_ROOT (state directory), STACK_PORT (port on 127.0.0.1; 8088).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

from hybrid.client.address import local_root
from hybrid.guest.imagebuild import build_image
from hybrid.paths import Paths, data_dir

HERE = Path(__file__).resolve().parent
HYBRID = [sys.executable, "-m", "hybrid.cli.main"]
IMAGES = ("busybox", "postgres", "app", "nginx")
URL_DEADLINE = 120.0


def main() -> int:
    paths = Paths.of(local_root(None, os.environ))
    url = f"http://127.0.0.1:{os.environ.get('STACK_PORT', '8088')}/"
    step("guest image")
    run("guest", "build")
    step("example images")
    for name in IMAGES:
        load_image(paths, name)
    step("stack")
    run("up", "-f", str(HERE / "compose.yaml"), "--remove-orphans")
    step("proof")
    run("verify", "--all")
    step("a note, through the front to the database and back")
    if not json.loads(ask(url))["notes"]:
        add_note(url, "kept behind two walls")
    print(ask(url))
    step(f"try it: curl {url}")
    return 0


def load_image(paths: Paths, name: str) -> None:
    """Builds the image's archive unless its recipe is unchanged, loads it unless it is there."""
    archive = paths.root / "examples" / f"{name}.tar"
    before = archive.stat().st_mtime_ns if archive.exists() else 0
    build_image(paths, data_dir() / "images" / name, archive, note)
    loaded = archive.with_suffix(".loaded")
    unchanged = loaded.exists() and archive.stat().st_mtime_ns == before
    if unchanged and present(loaded.read_text().split()):
        note(f"{name} is loaded")
        return
    output = run("image", "load", "-q", "-i", str(archive), capture=True).strip()
    note(output)
    loaded.write_text("\n".join(line.partition(": ")[2] for line in output.splitlines()))


def present(references: list[str]) -> bool:
    command = [*HYBRID, "image", "inspect", *references]
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
    print(textwrap.indent(text, "   "), flush=True)


def step(text: str) -> None:
    print(f"== {text}", flush=True)


def run(*arguments: str, capture: bool = False) -> str:
    """Runs a hybrid command to its end; its failure is ours, with the same exit code."""
    output = subprocess.PIPE if capture else None
    done = subprocess.run([*HYBRID, *arguments], stdout=output, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
