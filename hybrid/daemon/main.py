"""``hybrid daemon``: locks its root, opens the engine, serves the API until SIGTERM; containers run on.

Runs in the foreground and logs to standard error. One daemon a root: the pid file is locked for as long as it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from hybrid.api import app as api
from hybrid.api.stream import front_factory
from hybrid.daemon import config as configuration
from hybrid.daemon import listeners, wiring
from hybrid.engine.machine import settle
from hybrid.errors import Conflict, Forbidden, Unavailable
from hybrid.instance import StrPath
from hybrid.machine import orphans
from hybrid.paths import Paths

log = logging.getLogger(__name__)
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
SHUTDOWN_TIMEOUT = 2.0
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
NOISY = ("pyroute2", "asyncio")  # they log every message at debug level
# What it logs beside our own middleware is what clients send that is no HTTP, with a traceback each.
QUIET = ("aiohttp.server",)


def _make_directories(paths: Paths) -> None:
    """Closed to other users. QEMU and file servers, each a user of its own, pass through those that they must."""
    os.umask(0o022)
    containers, machines = paths.container("x").parent, paths.machine("x").parent
    through = (paths.root, paths.run, paths.layers, containers, machines)
    for directory in (*through, paths.images):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o711 if directory in through else 0o700)


class PlainFormatter(logging.Formatter):
    """One line a message, whatever clients and guests put into it: control characters are escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(_escaped(line) for line in super().formatException(ei).split("\n"))


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run(root: StrPath | None, hosts: list[str], *, log_level: str | None = None) -> int:
    """Serves until SIGTERM or SIGINT; the exit code. HybridError if it cannot start."""
    if os.geteuid():
        raise Forbidden("the daemon needs root: use 'sudo hybrid daemon'")
    os.environ["PATH"] = search_path(os.environ.get("PATH", ""))
    paths = Paths.of(root)
    _make_directories(paths)
    config = configuration.load(paths.config)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter(FORMAT))
    logging.basicConfig(handlers=[handler], level=(log_level or config.log_level).upper())
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for quiet in QUIET:
        logging.getLogger(quiet).setLevel(logging.CRITICAL)
    sockets = [listeners.parse(host) for host in hosts] or [paths.socket]
    with _locked(paths.pid_file):
        orphans.become_subreaper()
        try:
            asyncio.run(_serve(paths, config, sockets))
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise Unavailable(f"the daemon of {paths.root} cannot go on: {what}") from error
    return 0


def search_path(inherited: str) -> str:
    """Where the daemon's programs are looked for: also in sbin, which is not on root's path after
    a plain ``su``.
    """
    found = [place for place in inherited.split(":") if place] or [
        "/usr/local/bin",
        "/usr/bin",
        "/bin",
    ]
    return ":".join([*found, *(place for place in SBIN if place not in found)])


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the pid file; Conflict if another daemon does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(descriptor, 16, 0).decode(errors="replace").strip()
            raise Conflict(
                f"a daemon runs already for this root (pid {pid or 'not known yet'}, {path}):"
                " stop it first, or use another --root"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


async def _serve(paths: Paths, config: configuration.Config, sockets: list[Path]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    engine = wiring.engine(paths, config)
    version = wiring.version()
    await engine.open()
    reaping = asyncio.create_task(orphans.reap_forgotten_for_ever(), name="orphans")
    runner = web.AppRunner(
        api.build(engine, version), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT
    )
    await runner.setup()
    assert runner.server is not None
    servers = []
    try:
        for path in sockets:
            servers.append(await listeners.listen(path, front_factory(runner.server)))
            log.info("hybrid %s listens on unix://%s", version, path)
        await stopping.wait()
        log.info("stopping; containers run on")
    finally:
        for server in servers:
            server.close()
        await runner.cleanup()
        reaping.cancel()
        await settle(engine.close())
        for path in sockets if servers else []:
            path.unlink(missing_ok=True)
