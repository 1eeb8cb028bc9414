"""Guests taken from a pool of clones that stand ready, frozen and linked to; else cloned, else booted.

A spare clone has nothing of any container's: no identity, no disk, no network. It got as far as its agent's greeting
and stands still since, so that it costs no processor time. Whoever takes it lets it run, tells it who it is, like any
clone, and plugs in what the container needs.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from hybrid.errors import HybridError, Unavailable
from hybrid.link.client import AgentClient
from hybrid.machine import evidence, hostfacts
from hybrid.machine.design import HostFacts
from hybrid.machine.pool import Pool, PoolLimits, Spare
from hybrid.machine.profile import Accelerator
from hybrid.machine.provider import (
    Disk,
    MachineRequest,
    PoolInfo,
    Rehearsal,
    SpareInfo,
    TemplateInfo,
)
from hybrid.machine.providers.cloned import ClonedProvider
from hybrid.machine.template import Template
from hybrid.wire.messages import CreateContainer, Delete, ReadOutput, StartContainer

log = logging.getLogger(__name__)
_ANSWER = 60.0  # seconds for a clone's agent to answer
_NAME = "spare"
_ROOT = "rehearsal"  # the serial of the disk that a rehearsal's container is on


class PooledProvider(ClonedProvider):
    """Implements ``hybrid.machine.provider.Pooling`` as well."""

    def __init__(self, *arguments: Any, pool: PoolLimits | None = None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._pool = Pool(pool or PoolLimits(), self.destroy)
        self._taken: set[str] = set()  # given out; ``create`` has not been asked for them yet
        self._clients: dict[str, AgentClient] = {}
        self._rehearsal: Rehearsal | None = None

    async def open(self) -> None:
        await super().open()
        self._pool.open()

    async def close(self) -> None:
        await self._pool.close()
        await super().close()

    # The pool

    def pool(self) -> PoolInfo:
        return PoolInfo(self._pool.limits.size, self._pool.limits.memory, self._pool.memory)

    def spares(self) -> list[SpareInfo]:
        return [SpareInfo(spare.id, key, spare.made, spare.cost) for key, spare in self._pool.all()]

    def templates(self) -> list[TemplateInfo]:
        return [replace(one, ready=len(self._pool.ready(one.key))) for one in super().templates()]

    def remove_template(self, reference: str) -> str:
        key = super().remove_template(reference)
        self._pool.look()
        return key

    async def build_template(self, request: MachineRequest) -> TemplateInfo:
        made = await super().build_template(request)
        self._want(made.key, request, await self._facts(request))
        return made

    def rehearse(self, container: Rehearsal) -> None:
        self._rehearsal = container

    def starting(self) -> AbstractContextManager[None]:
        return self._pool.starting()

    async def take(self, request: MachineRequest) -> str:
        if self.not_cloning() or request.shares or request.shares_later:
            return ""
        spare = self._pool.take(self._key(request, await self._facts(request)))
        if spare is None:
            return ""
        self._taken.add(spare.id)
        guest = self._guests[spare.id]
        guest.origin = replace(guest.origin, taken=int(time.time()))
        return spare.id

    def client(self, machine_id: str) -> AgentClient | None:
        client = self._clients.pop(machine_id, None)
        return None if client is None or client.closed else client

    # A machine's life

    async def create(self, request: MachineRequest) -> None:
        if request.id in self._taken:
            self._taken.discard(request.id)
            if await self._use(request):
                return
        await super().create(request)

    async def destroy(self, machine_id: str) -> None:
        self._taken.discard(machine_id)
        client = self._clients.pop(machine_id, None)
        if client is not None:
            await client.close()
        await super().destroy(machine_id)

    async def _use(self, request: MachineRequest) -> bool:
        """Makes a spare clone the machine of the request; False, and nothing is left of it, if it cannot be used."""
        try:
            await self._hypervisor.resume(self._guest(request.id).name)
            await self._plug(request)
        except HybridError as error:
            log.warning("clone %s of the pool cannot be used: %s", request.id[:12], error)
            await self.destroy(request.id)
            return False
        return True

    async def _clone(self, request: MachineRequest, facts: HostFacts, template: Template) -> None:
        await super()._clone(request, facts, template)
        if not request.shares and not request.shares_later:
            self._want(template.key, request, facts)

    async def _rehearse(
        self, request: MachineRequest, client: AgentClient, container: CreateContainer
    ) -> None:
        assert request.boot is not None
        await self.attach_disk(request.id, Disk(_ROOT, request.boot.root, True))
        await client.call(container)
        output = client.open()
        await client.call(ReadOutput(container.container, output.id))
        await client.call(StartContainer(container.container))
        try:
            async with asyncio.timeout(_ANSWER):
                async for _ in client.events():
                    break  # its end, the only one there is
        except TimeoutError:
            raise Unavailable(f"its rehearsal did not end within {_ANSWER:g} s") from None
        await output.reset()
        await client.call(Delete(container.container))
        await self.detach_disk(request.id, _ROOT)

    def _want(self, key: str, request: MachineRequest, facts: HostFacts) -> None:
        shape = replace(request, name=_NAME, disks=(), nics=(), shares=(), shares_later=False)
        self._pool.want(key, functools.partial(self._spare, key, shape, facts))

    async def _spare(self, key: str, shape: MachineRequest, facts: HostFacts) -> Spare | None:
        request = replace(shape, id=secrets.token_hex(16))
        hostfacts.check_memory(request)
        template = await self._templates.borrow(key)
        if template is None:
            return None
        try:
            await super()._clone(request, facts, template)
        finally:
            self._templates.release(template)
        guest = self._guests[request.id]
        async with self._destroyed_on_failure(guest):
            client = self._clients[request.id] = await AgentClient.connect(
                await self.connect(request.id), timeout=_ANSWER, name=f"{_NAME} {request.id[:12]}"
            )
            if self._rehearsal is not None and facts.accelerator is Accelerator.TCG:
                await self._rehearse(request, client, self._rehearsal(_ROOT))
            await self._hypervisor.freeze(guest.name)

        def problem() -> str:
            if guest.dead.is_set() or guest.stopped.is_set():
                return "its QEMU process died"
            if template.dropped or template.is_old(self._templates.limits.max_age):
                return "its template is gone, or old"
            return ""

        cost = 0 if guest.pid is None else evidence.private_memory(guest.pid)
        return Spare(request.id, cost, problem)
