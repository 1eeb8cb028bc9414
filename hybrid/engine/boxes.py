"""What a container can have on a box that is reached over the network: nothing that is on this host. Pure.

Such a box has its own disk, networks and names. Its containers get their layers by copy and keep their changes there.
By default they have a network namespace with nothing but loopback; ``--network host`` is the box's own network.
"""

from __future__ import annotations

from hybrid.engine.container import Spec
from hybrid.errors import Unsupported
from hybrid.machine.provider import Feature

DEFAULT = "default"


def is_box(features: frozenset[Feature]) -> bool:
    """Whether machines of these features share neither files nor devices with this host."""
    return Feature.BLOBS in features and not features & {Feature.DIRECTORIES, Feature.DISKS}


def settle_network(spec: Spec) -> None:
    """The default network, where nothing else is asked for."""
    asked = [value for endpoint in spec.networks_asked.values() for value in endpoint.values()]
    if spec.network_mode == DEFAULT and not any(asked):
        spec.network_mode, spec.networks_asked = "none", {}


def warning(box: str) -> str:
    """What must not be taken for more than it is."""
    return f"isolation machine:{box}: the box's own kernel runs this container; one boundary only"


def check(spec: Spec, box: str) -> None:
    """Unsupported, with the reason and what to do instead, for what only this host has. ``box`` is its name."""
    mode = spec.network_mode
    if mode not in ("none", "host") and not mode.startswith("container:"):
        raise Unsupported(
            f"network {mode}: machine {box} is a box reached over SSH and is not on this host's networks;"
            " use --network host (the box's own) or --network none (the default there)"
        )
    if (spec.ports or spec.publish_all) and mode != "host":
        raise Unsupported(
            f"published ports: machine {box} is a box reached over SSH and is not on this host's networks; use"
            " --network host, and reach the service at the box's address"
        )
    in_memory = {mount.target for mount in spec.mounts if mount.kind == "tmpfs"}
    from_here = {mount.target: mount.kind for mount in spec.mounts if mount.kind != "tmpfs"}
    from_here |= dict.fromkeys({*spec.anonymous} - in_memory, "volume")
    if from_here:
        target, kind = next(iter(from_here.items()))
        raise Unsupported(
            f"{kind} mount at {target}: its files would be on this host, and machine {box} is a box reached over"
            f" SSH; use --tmpfs {target}, or have the files in the image"
        )
