"""The Docker Engine API over an engine, as one aiohttp application."""

from __future__ import annotations

from aiohttp import web

from hybrid.api import middleware
from hybrid.api.respond import ENGINE
from hybrid.api.routes import (
    archives,
    containers,
    hybrid,
    images,
    networks,
    streams,
    system,
    volumes,
)
from hybrid.engine.engine import Engine


def build(engine: Engine, hybrid_version: str) -> web.Application:
    """Serve it behind ``hybrid.api.stream.front_factory``: attach and exec need that."""
    app = web.Application(
        middlewares=[middleware.give_back, middleware.docker_form], client_max_size=1 << 62
    )
    app[ENGINE] = engine
    app.on_response_prepare.append(middleware.add_headers)
    for noun in (containers, streams, archives, images, networks, volumes):
        noun.setup(app)
    system.setup(app, hybrid_version)
    hybrid.setup(app, hybrid_version)
    return app
