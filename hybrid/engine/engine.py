"""The engine: all nouns, joined; its start (reconciliation) and its end (which ends no container)."""

from __future__ import annotations

import logging

from hybrid.engine import rehearsal
from hybrid.engine.archives import Archives
from hybrid.engine.backends import Backends
from hybrid.engine.containers import Containers
from hybrid.engine.events import Events
from hybrid.engine.evidence import Prover
from hybrid.engine.execs import Execs
from hybrid.engine.health import HealthChecks
from hybrid.engine.images import Images
from hybrid.engine.launch import GUEST_IDS, Launcher, Settings
from hybrid.engine.machine import settle
from hybrid.engine.machines import Machines
from hybrid.engine.networks import Networks
from hybrid.engine.observe import Observation
from hybrid.engine.store import Store
from hybrid.engine.supervise import Supervisor
from hybrid.engine.system import System
from hybrid.engine.volumes import Volumes
from hybrid.image.store import ImageStore
from hybrid.network.network import Networks as Fabric
from hybrid.paths import Paths

log = logging.getLogger(__name__)


class Engine:
    """What the API calls. ``open`` before anything else."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        image_store: ImageStore,
        fabric: Fabric,
        backends: Backends,
    ) -> None:
        self.paths = paths
        self._store = Store(paths.database)
        self._fabric = fabric
        self.events = Events(self._store)
        self.containers = Containers(paths, self._store, self.events, settings)
        find, save, publish = self.containers.find, self.containers.save, self.containers.publish
        self.images = Images(image_store, paths.layers, self.events, self.containers.records)
        self.volumes = Volumes(paths, self._store, self.events, self.containers.records)
        self.networks = Networks(self._store, self.events, fabric, self.containers.records)
        self.machines = Machines(paths, self._store, self.events, backends)
        self.machines.templates.rehearse(
            lambda layer: rehearsal.request(settings.policy, layer, GUEST_IDS[0])
        )
        self.execs = Execs(self._store, find, publish)
        self.observation = Observation(self.containers)
        self.prover = Prover(self.containers, lambda: settings.policy, backends.probe)
        self.launcher = Launcher(
            paths,
            settings,
            self.images,
            self.volumes,
            self.networks,
            self.machines,
            find,
            save,
            self.containers.records,
        )
        self.archives = Archives(self.containers, self.launcher)
        self._supervisor = Supervisor(
            events=self.events,
            machines=self.machines,
            networks=self.networks,
            launcher=self.launcher,
            execs=self.execs,
            health=HealthChecks(self.execs, save, publish),
            find=self.containers.get,
            save=save,
            publish=publish,
            remove=self.containers.remove_ended,
        )
        self.containers.wire(
            self.images,
            self.volumes,
            self.networks,
            self.launcher,
            self._supervisor,
            self.execs.forget_container,
        )
        self.machines.watch(
            self._supervisor, self._supervisor.machine_lost, self.containers.kept_on
        )
        self.system = System(paths, self)

    async def open(self) -> None:
        """Reconciliation: what the store knows and the host has is adopted, all else is removed or marked ended."""
        await self.volumes.reconcile()
        await self.machines.adopt()
        await self.networks.reconcile()
        self.execs.adopt(self.machines.get)
        containers = self.containers.all()
        await settle(*(self._supervisor.adopt(container) for container in containers))
        await self.machines.sweep()
        await settle(*map(self._supervisor.remove_strangers, self.machines.all()))
        self.machines.watch_adopted()
        await settle(self.images.collect())
        self._supervisor.restart_what_should_run(containers)
        self.events.publish("daemon", "start", self.paths.instance)

    async def warnings(self) -> list[str]:
        """What of this host's set-up keeps hybrid from working as it should."""
        return await self._fabric.check()

    async def close(self) -> None:
        """Lets go of everything; containers, guests and networks run on."""
        await self._supervisor.close(self.containers.all())
        await self.execs.close()
        await self.machines.close()
        await self._fabric.close()
        self._store.close()
