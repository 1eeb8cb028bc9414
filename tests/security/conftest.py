"""One real daemon for the tests here: as a child process, with its agent on this host's kernel."""

from __future__ import annotations

from tests.functional.daemon.conftest import RunningDaemon, daemon, session_daemon

__all__ = ["RunningDaemon", "daemon", "session_daemon"]
