"""``hybrid daemon`` where another runs, or was killed."""

from __future__ import annotations

import signal

import pytest

from tests.livedaemon import LiveDaemon

pytestmark = pytest.mark.root


def test_a_second_daemon_of_a_root_is_refused_in_one_line(live: LiveDaemon) -> None:
    live.start()
    done = live.run("daemon")
    assert done.returncode != 0 and done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"hybrid: a daemon runs already for this root (pid {live.pid}, ")


def test_a_stale_pid_file_is_in_nobodys_way(live: LiveDaemon) -> None:
    live.start()
    live.end(signal.SIGKILL)
    before = live.pid
    live.start()
    assert live.pid != before
