"""Guests that are cloned from templates, and booted where that cannot be.

A clone is a domain like any other: a user, a system-call filter and a monitor of its own. It differs in how its memory
begins (the template's, mapped privately or copied) and in that its QEMU reads a device state instead of booting. What
only one container needs (disks, interfaces, shares) is plugged in while it stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from hybrid.errors import HybridError, Unavailable
from hybrid.link.client import AgentClient
from hybrid.machine import design, hostfacts, memory
from hybrid.machine.design import Frozen, HostFacts
from hybrid.machine.hypervisor import passes_files
from hybrid.machine.memory import Backing
from hybrid.machine.provider import MachineRequest, Origin, TemplateInfo
from hybrid.machine.providers.libvirt import LibvirtProvider
from hybrid.machine.template import BUILDING, Limits, Template, Templates, check_digest, key_of
from hybrid.wire.messages import Prepare

_ANSWER = 60.0  # seconds for a template's agent to answer
_PREPARING = 120.0
_SAVING = 60.0


class ClonedProvider(LibvirtProvider):
    """Implements ``hybrid.machine.provider.Cloning`` as well."""

    def __init__(self, *arguments: Any, limits: Limits | None = None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._templates = Templates(limits or Limits())
        self._emulator: tuple[str, ...] = ()

    async def open(self) -> None:
        await super().open()
        self._emulator = await self._hypervisor.emulator()
        if not self._templates.unavailable:
            self._templates.unavailable = self._missing()

    async def close(self) -> None:
        self._templates.close()
        await super().close()

    def _missing(self) -> str:
        if not self._embedded:
            return "only the embedded libvirt driver can hand a template to a guest"
        if not passes_files():
            return "libvirt is older than 8.2 and cannot pass files to QEMU"
        try:
            os.close(memory.create("probe"))
        except Unavailable as error:
            return error.message
        return ""

    # Cloning

    def not_cloning(self) -> str:
        return self._templates.unavailable

    def origin(self, machine_id: str) -> Origin | None:
        guest = self._guests.get(machine_id)
        return guest.origin if guest is not None else None

    def templates(self) -> list[TemplateInfo]:
        return [_info(template) for template in self._templates.all()]

    def remove_template(self, reference: str) -> str:
        return self._templates.remove(reference).key

    async def build_template(self, request: MachineRequest) -> TemplateInfo:
        hostfacts.check_memory(request)
        facts = await self._facts(request)
        async with self._template(request, facts, common=True) as template:
            if template is None:
                raise Unavailable(f"guests are booted: {self._why_not(request, facts)}")
            return _info(template)

    # Making machines

    async def _make(self, request: MachineRequest, facts: HostFacts) -> None:
        profile = request.profile
        common = (request.memory, request.cpus) == (profile.memory, profile.cpus)
        reason = ""
        async with self._template(request, facts, common=common) as template:
            if template is not None:
                try:
                    await self._clone(request, facts, template)
                    template.clones += 1
                except _NoClone as error:
                    reason = error.message
                    self._templates.discard(template, reason)
                    self._templates.failed(template.key, error)
                else:
                    await self._plug(request)
                    return
        await super()._make(request, facts)
        guest = self._guests[request.id]
        guest.origin = Origin("boot", reason=reason or self._why_not(request, facts))

    async def _facts(self, request: MachineRequest) -> HostFacts:
        return await hostfacts.gather(request, self._accelerator, self._paths.run / "kvm.json")

    @contextlib.asynccontextmanager
    async def _template(
        self, request: MachineRequest, facts: HostFacts, *, common: bool
    ) -> AsyncIterator[Template | None]:
        key = self._key(request, facts)
        template = await self._templates.take(
            key, lambda: self._freeze(key, request, facts), common=common
        )
        try:
            yield template
        finally:
            if template is not None:
                self._templates.release(template)

    def _key(self, request: MachineRequest, facts: HostFacts) -> str:
        return key_of(request, facts, self._emulator)

    def _why_not(self, request: MachineRequest, facts: HostFacts) -> str:
        return self._templates.why_not(self._key(request, facts))

    async def _clone(self, request: MachineRequest, facts: HostFacts, template: Template) -> None:
        """A running guest that has no identity yet; ``_NoClone``, and nothing of it, on failure."""
        private = not request.shares and not request.shares_later
        if request.id in self._forgetting:
            await self._forgetting[request.id]
        guest, placement = await self._place(request)
        with contextlib.ExitStack() as opened:
            try:
                async with self._destroyed_on_failure(guest):
                    ram = template.memory
                    if not private:
                        ram = await asyncio.to_thread(memory.copy, ram, request.id[:12])
                        opened.callback(os.close, ram)
                    # A description of its own: the template's would be read from where the last clone left it.
                    state = os.open(f"/proc/self/fd/{template.state}", os.O_RDONLY | os.O_CLOEXEC)
                    opened.callback(os.close, state)
                    origin = Origin(
                        "clone",
                        template.key,
                        int(template.made),
                        int(time.time()),
                        "private" if private else "copied",
                    )
                    # The group is known once it is designed, and does not depend on the memory.
                    gid = design.design(request, facts, placement).gid
                    path = opened.enter_context(memory.lent(ram, guest.uid, gid))
                    frozen = Frozen(Backing(path, shared=not private), origin)
                    definition = design.design(request, facts, placement, frozen)
                    await self._start(guest, definition, design.as_frozen(request), state)
                    guest.ready.set()
            except (HybridError, OSError) as error:
                raise _NoClone(f"a clone of it does not run: {error}") from error

    async def _plug(self, request: MachineRequest) -> None:
        """What the request wants beside what is in the template."""
        async with self._destroyed_on_failure(self._guests[request.id]):
            for disk in request.disks:
                await self.attach_disk(request.id, disk)
            for nic in request.nics:
                await self.attach_nic(request.id, nic)
            for share in request.shares:
                await self.attach_share(request.id, share)

    async def _freeze(self, key: str, request: MachineRequest, facts: HostFacts) -> Template:
        """Boots a guest like ``request`` and takes its memory and device state; the guest itself ends here."""
        shape = replace(
            design.as_frozen(request), id=f"{BUILDING}{secrets.token_hex(8)}", name=BUILDING
        )
        with contextlib.ExitStack() as unless_made:
            ram = memory.create(f"template-{key}", request.memory)
            unless_made.callback(os.close, ram)
            state = memory.create(f"state-{key}")
            unless_made.callback(os.close, state)
            guest, placement = await self._place(shape)
            try:
                gid = design.design(shape, facts, placement).gid
                with memory.lent(ram, guest.uid, gid) as path:
                    frozen = Frozen(Backing(path, shared=True))
                    await self._start(guest, design.design(shape, facts, placement, frozen), shape)
                await self._wait_ready(guest, shape.profile, facts.accelerator)
                await self._take_state(shape.id, guest.name, state)
            finally:
                await asyncio.shield(self.destroy(shape.id))
            memory.seal(ram)
            memory.seal(state)
            unless_made.pop_all()
        return Template(
            key,
            request.profile.name,
            request.memory,
            request.cpus,
            ram,
            state,
            check_digest(state),
        )

    async def _take_state(self, machine_id: str, name: str, state: int) -> None:
        client = await AgentClient.connect(
            await self.connect(machine_id), timeout=_ANSWER, name=BUILDING
        )
        try:
            await client.call(Prepare(lock_down=True), timeout=_PREPARING)
            # Frozen while connected: a clone's agent goes on waiting for the next bytes, and finds the mark of a
            # new link in them.
            await self._hypervisor.freeze(name)
            await self._hypervisor.save_state(name, state, timeout=_SAVING)
        finally:
            await client.close()


class _NoClone(Unavailable):
    """The template, or this host, cannot make clones; a boot may still work."""


def _info(template: Template) -> TemplateInfo:
    return TemplateInfo(
        template.key,
        template.profile,
        template.size,
        template.cpus,
        template.made,
        template.took,
        template.used,
        template.clones,
    )
