"""Compose files: read, checked, and brought up through the Engine API."""
