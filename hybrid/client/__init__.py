"""HTTP to the daemon: a Unix socket or mutual TLS, standard library only, so that the CLI starts
fast."""
