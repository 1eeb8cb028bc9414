"""The ``hybrid`` command: one more client of the daemon, importing as little as it can."""
