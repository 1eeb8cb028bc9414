"""A throw-away container that a guest which stands ready runs once, before it is anybody's.

An emulated processor runs code that it has run before several times faster. So the guest does what it will be asked
for, under the same policy, on its own root image; nothing of it is left.
"""

from __future__ import annotations

import platform

from hybrid.engine.machine import ID_RANGE
from hybrid.policy import profile as profiles
from hybrid.policy import runtime_spec
from hybrid.policy.runtime_spec import SpecRequest
from hybrid.wire.messages import CreateContainer, IdMap, Source

_NAME = "rehearsal"
_PROGRAM = "/bin/true"


def request(policy: str, layer: str, first_id: int) -> CreateContainer:
    """``policy``: the profile's name; ``layer``: the serial of the disk that is its root; ``first_id``: of the range of
    ids that the guest's first container gets.
    """
    wanted = SpecRequest(
        container=_NAME,
        profile=profiles.load(policy),
        args=[_PROGRAM],
        architecture=platform.machine(),
        id_map=(first_id, ID_RANGE),
        hostname=_NAME,
    )
    mapped = runtime_spec.uses_user_namespace(wanted.profile, "", False)
    return CreateContainer(
        container=_NAME,
        config=runtime_spec.build(wanted),
        layers=[Source("disk", layer)],
        writable=None,
        id_map=IdMap(first_id) if mapped else None,
        network="own",
        files=dict.fromkeys(("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"), ""),
    )
