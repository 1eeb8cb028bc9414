"""Shows that something is under way: on a terminal only, and only when it takes long enough to
wonder."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 0.7  # seconds of silence that need no explanation


class Progress:
    """The text being shown; may be changed from any thread."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.done = threading.Event()
        self.print_above: Callable[[str], None] | None = None

    def __repr__(self) -> str:
        return f"<Progress {self.text!r}>"

    def __call__(self, text: str) -> None:
        self.text = text

    def line(self, text: str) -> None:
        """A line that stays, above the spinner if there is one."""
        if self.print_above:
            self.print_above(text)
        else:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(text: str) -> Iterator[Progress]:
    """A spinner with ``text`` on stderr while the block runs; nothing when stderr is no
    terminal."""
    shown = Progress(text)
    if not sys.stderr.isatty():
        yield shown
        return
    thread = threading.Thread(target=_show, args=(shown,), daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        shown.done.set()
        thread.join()


def _show(shown: Progress) -> None:
    if shown.done.wait(PATIENCE):
        return
    from rich.console import Console
    from rich.status import Status

    console = Console(stderr=True, highlight=False, markup=False)
    with Status(shown.text, console=console) as status:
        shown.print_above = console.print
        while not shown.done.wait(0.1):
            status.update(shown.text)
        shown.print_above = None
