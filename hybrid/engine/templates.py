"""What guests are cloned from, for whoever asks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from hybrid.engine import names
from hybrid.engine.backends import Backends, GuestSize
from hybrid.errors import Unsupported
from hybrid.machine import profile as profiles
from hybrid.machine.provider import (
    Cloning,
    MachineRequest,
    Nic,
    PoolInfo,
    Pooling,
    Rehearsal,
    SpareInfo,
    TemplateInfo,
)


class TemplateKeeper:
    """The templates of the provider of guests."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    def _cloning(self) -> Cloning:
        guest: object = self._backends.guest
        if isinstance(guest, Cloning):
            return guest
        raise Unsupported("this daemon has no provider that clones guests: see 'hybrid info'")

    def state(self) -> str:
        """For people: whether new guests are cloned, and if not, why."""
        try:
            reason = self._cloning().not_cloning()
        except Unsupported as error:
            reason = error.message
        return f"no: {reason}" if reason else "yes"

    def all(self) -> list[TemplateInfo]:
        return self._cloning().templates()

    async def build(self, size: GuestSize) -> TemplateInfo:
        """The template of guests of that size; Unavailable, with the reason, if there can be none."""
        return await self._cloning().build_template(self._request(size))

    def _request(self, size: GuestSize, nics: tuple[Nic, ...] = ()) -> MachineRequest:
        profile = profiles.load(size.profile)
        return MachineRequest(
            id=names.new_machine_id(),
            name=size.profile,
            profile=profile,
            memory=max(size.memory, profile.memory),
            cpus=max(size.cpus, profile.cpus),
            boot=self._backends.boot(),
            nics=nics,
            shares_later=False,
        )

    def remove(self, reference: str) -> str:
        """Drops one; its key. NotFound if there is no such one."""
        return self._cloning().remove_template(reference)

    # --- the pool ---

    def _pooling(self) -> Pooling | None:
        guest: object = self._backends.guest
        return guest if isinstance(guest, Pooling) else None

    async def take(self, size: GuestSize, nics: list[Nic]) -> str:
        """The id of a clone that stands ready for a guest of that size, without shares; "" if there is none."""
        pooling = self._pooling()
        return "" if pooling is None else await pooling.take(self._request(size, tuple(nics)))

    def rehearse(self, container: Rehearsal) -> None:
        """Clones that stand ready have run that container once, where that pays."""
        if (pooling := self._pooling()) is not None:
            pooling.rehearse(container)

    def starting(self) -> AbstractContextManager[None]:
        """To be held while a container is started: it must not wait for the pool."""
        pooling = self._pooling()
        return nullcontext() if pooling is None else pooling.starting()

    def pool(self) -> PoolInfo:
        pooling = self._pooling()
        return PoolInfo(0, 0, 0) if pooling is None else pooling.pool()

    def spares(self) -> list[SpareInfo]:
        """The clones that stand ready. They are nobody's, and no machines yet."""
        pooling = self._pooling()
        return [] if pooling is None else pooling.spares()
