"""The only place that names concrete classes: the engine and all it stands on."""

from __future__ import annotations

import importlib.metadata
import logging

from hybrid.daemon.config import Config
from hybrid.engine.backends import Backends
from hybrid.engine.engine import Engine
from hybrid.engine.launch import Settings
from hybrid.guest import image as guest_image
from hybrid.guest import tools, zipapp
from hybrid.image.store import ImageStore
from hybrid.machine.pool import PoolLimits
from hybrid.machine.profile import Accelerator
from hybrid.machine.provider import Boot, Provider
from hybrid.machine.providers.host import HostProvider
from hybrid.machine.providers.pooled import PooledProvider
from hybrid.machine.providers.ssh import SshProvider
from hybrid.machine.shares import ShareServer
from hybrid.machine.template import Limits
from hybrid.network.network import Networks
from hybrid.paths import Paths

log = logging.getLogger(__name__)
UNINSTALLED = "0.0.0"


def version() -> str:
    """hybrid's own version."""
    try:
        return importlib.metadata.version("hybrid")
    except importlib.metadata.PackageNotFoundError:
        return UNINSTALLED


def engine(paths: Paths, config: Config) -> Engine:
    """The engine of one daemon; ``open`` it."""
    agent = zipapp.build(paths.root / "agent.pyz")
    guest: Provider = PooledProvider(
        paths,
        config.libvirt_uri,
        Accelerator(config.accelerator),
        limits=Limits(enabled=config.clones, max_age=config.template_max_age),
        pool=PoolLimits(config.pool_size, config.pool_memory),
    )

    def boot() -> Boot:
        current = guest_image.current(paths)
        return Boot(current.kernel, current.initrd, current.root, current.command_line)

    probe = paths.guest / "current" / "probe"
    backends = Backends(
        guest=guest,
        host=HostProvider(paths, agent, probe),
        remote=SshProvider(paths, agent),
        # Looked up at each use: the tools tree may be built while the daemon runs.
        shares=ShareServer(paths, lambda: tools.tool(paths, "virtiofsd")),
        boot=boot,
        probe=probe,
    )
    settings = Settings(
        policy=config.policy,
        host_ids=config.host_ids(paths.instance),
        writable_size=config.writable_size,
    )
    return Engine(paths, settings, ImageStore(paths), Networks(paths), backends)
