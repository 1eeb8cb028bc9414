"""From a request and an image to a container's record: merged, completed and checked, with nothing made yet."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable
from pathlib import Path

from hybrid.engine import boxes, bundle, health, names, restart, signals
from hybrid.engine.container import Endpoint, HealthCheck, Mount, Record, Spec
from hybrid.engine.images import Images
from hybrid.engine.launch import Launcher, Settings
from hybrid.engine.live import Container
from hybrid.engine.networks import DEFAULT, Networks
from hybrid.engine.volumes import Volumes
from hybrid.errors import InvalidInput
from hybrid.image.config import ImageConfig
from hybrid.instance import DEFAULT_RUN
from hybrid.paths import Paths
from hybrid.policy import isolation as isolations
from hybrid.policy import mounts as mount_rules
from hybrid.policy import profile as profiles
from hybrid.policy import runtime_spec
from hybrid.policy.process import merge_command, merge_env

_ANY_ID = 100_000  # where a user-namespace range might begin, for a request that has no machine yet


class Drafts:
    """Drafts records. ``find`` gives a container by reference (for joined namespaces)."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        images: Images,
        volumes: Volumes,
        networks: Networks,
        launcher: Launcher,
        find: Callable[[str], Container],
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._images = images
        self._volumes = volumes
        self._networks = networks
        self._launcher = launcher
        self._find = find

    def draft(self, name: str, spec: Spec) -> tuple[Record, list[str]]:
        """The record, and the warnings about it. Whatever can be refused before there is a machine is refused here."""
        image_id, config = self._images.resolve(spec.image)
        container_id = names.new_id()
        _merge(spec, config, container_id)
        entrypoint, command = merge_command(
            (config.entrypoint, config.command), (spec.entrypoint, spec.command)
        )
        spec.entrypoint, spec.command = entrypoint or None, command or None
        args = [*entrypoint, *command]
        if not args:
            raise InvalidInput("no command specified")
        self._check(spec)
        record = Record(
            id=container_id,
            name=name,
            created_ns=time.time_ns(),
            image=image_id,
            layers=list(config.diff_ids),
            spec=spec,
            path=args[0],
            args=args[1:],
        )
        record.endpoints = self._endpoints(spec)
        warnings = self._warnings(record)
        spec.mounts = self._mounts(spec)
        return record, warnings

    def _check(self, spec: Spec) -> None:
        isolations.parse(spec.isolation)
        if box := self._launcher.box(spec.isolation):
            boxes.settle_network(spec)
            boxes.check(spec, box)
        restart.checked(spec.restart.name, spec.restart.maximum)
        if spec.auto_remove and spec.restart.name != "no":
            raise InvalidInput("can't create 'AutoRemove' container with restart policy")
        if spec.health is not None:
            health.checked(spec.health)
        if spec.stop_signal:
            signals.parse(spec.stop_signal)
        if spec.network_mode.startswith("container:") and (spec.ports or spec.publish_all):
            raise InvalidInput(
                "conflicting options: port publishing and the container type network mode"
            )
        for reference in bundle.joined_containers(spec):
            self._find(reference)

    def _warnings(self, record: Record) -> list[str]:
        """Has the policy look at the request before there is a machine, so that a refusal comes now."""
        profile = profiles.load(self._settings.policy)
        requests = [
            mount_rules.MountRequest("tmpfs", mount.target, options=",".join(mount.options))
            if mount.kind == "tmpfs"
            else mount_rules.MountRequest(
                "share", mount.target, share=0, propagation=mount.propagation
            )
            for mount in record.spec.mounts
        ]
        request = bundle.spec_request(record, profile, None, requests, id_base=_ANY_ID)
        runtime_spec.build(request)
        for mount in record.spec.mounts:
            if mount.kind == "bind":
                self._check_bind(mount, profile)
        found = runtime_spec.warnings(request)
        box = self._launcher.box(record.spec.isolation)
        return [boxes.warning(box), *found] if box else found

    def _check_bind(self, mount: Mount, profile: profiles.Profile) -> None:
        """The source is looked up now and held to: what is checked is what will be served."""
        source = Path(mount.source)
        if not source.is_absolute():
            raise InvalidInput(f"invalid mount path: '{mount.source}' mount path must be absolute")
        try:
            resolved = source.resolve()
            exists = source.exists()
        except (OSError, RuntimeError, ValueError) as error:  # too long, or symlinks in a circle
            reason = error.strerror if isinstance(error, OSError) else "it cannot be resolved"
            raise InvalidInput(f"invalid mount source {mount.source[:200]!r}: {reason}") from error
        # Of every instance: whoever talks to a daemon has its rights.
        runs = glob.glob(f"{DEFAULT_RUN}*")
        own = [str(self._paths.root), str(self._paths.run), *runs]
        profiles.check_source(profile, str(resolved), own)
        if not exists:
            # Only root gets directories made: they are made with the daemon's rights.
            if not mount.create_source or mount.uid != 0:
                raise InvalidInput(
                    'invalid mount config for type "bind": bind source path does not exist: '
                    + mount.source
                )
            try:
                source.mkdir(parents=True)
            except OSError as error:
                raise InvalidInput(
                    f"cannot make the bind source {source}: {error.strerror}"
                ) from error
        mount.source = str(source.resolve())

    def _mounts(self, spec: Spec) -> list[Mount]:
        """With names for the volumes that have none, the image's among them."""
        wanted = list(spec.mounts)
        taken = {mount.target for mount in wanted}
        for target in spec.anonymous:
            if mount_rules.destination(target) not in taken:
                wanted.append(Mount("volume", "", target, anonymous=True))
        for mount in wanted:
            if mount.kind == "volume" and not mount.source:
                mount.source, mount.anonymous = names.new_id(), True
            elif mount.kind == "volume":
                self._volumes.check(mount.source)
        return wanted

    def _endpoints(self, spec: Spec) -> dict[str, Endpoint]:
        kind, _ = bundle.network_kind(spec)
        if kind != "own":
            others = spec.networks_asked.keys() - {spec.network_mode}
            if others and kind != "host":
                raise InvalidInput(
                    "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
                )
            return {}
        if spec.network_mode in ("", "default"):
            spec.network_mode = DEFAULT
        asked = dict(spec.networks_asked)
        if spec.network_mode not in asked:
            asked = {spec.network_mode: {}, **asked}
        endpoints = {}
        for reference, settings in asked.items():
            network = self._networks.find(reference)
            if not network.bridged:
                raise InvalidInput(f"network {network.name} cannot be combined with others")
            endpoints[network.name] = endpoint_of(network.id, settings)
        return endpoints


def endpoint_of(network_id: str, settings: dict[str, object]) -> Endpoint:
    """What the user wants of the endpoint: keys aliases, ip, mac, options."""
    return Endpoint(
        network=network_id,
        aliases=list(settings.get("aliases") or []),  # type: ignore[call-overload]
        wanted_ip=str(settings.get("ip") or ""),
        wanted_mac=str(settings.get("mac") or ""),
        driver_options=dict(settings.get("options") or {}),  # type: ignore[call-overload]
    )


def _merge(spec: Spec, image: ImageConfig, container_id: str) -> None:
    """Docker's rules for what the image says and the request doesn't."""
    spec.hostname = spec.hostname or container_id[:12]
    spec.env = merge_env(image.env, spec.env)
    spec.user = spec.user or image.user
    spec.working_dir = spec.working_dir or image.working_dir
    spec.stop_signal = spec.stop_signal or image.stop_signal
    spec.labels = {**image.labels, **spec.labels}
    spec.exposed = sorted({*image.exposed_ports, *spec.exposed})
    spec.anonymous = sorted({*image.volumes, *spec.anonymous})
    own = image.healthcheck
    spec.health = health.merge(HealthCheck(**own) if own else None, spec.health)
