"""hybrid's own endpoints: machines, evidence, and what this daemon is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aiohttp import web

from hybrid.api import parse, query, render, times
from hybrid.api.fields import Fields
from hybrid.api.respond import add, begin_stream, body_of, empty, engine_of, json_response
from hybrid.api.stream import caller_of
from hybrid.engine.backends import GuestSize
from hybrid.engine.engine import Engine
from hybrid.engine.machine import Machine
from hybrid.errors import Forbidden, InvalidInput
from hybrid.machine.provider import Remote, SpareInfo, TemplateInfo


def setup(app: web.Application, hybrid_version: str) -> None:
    async def info(request: web.Request) -> web.Response:
        engine = engine_of(request)
        summary = await engine.system.summary()
        return json_response(
            {
                "Version": hybrid_version,
                "Root": str(engine.paths.root),
                "Instance": engine.paths.instance,
                "Providers": summary.providers,
                "Machines": summary.machines,
                "Clones": engine.machines.templates.state(),
                "Pool": pool_json(engine),
                "Warnings": summary.warnings,
            }
        )

    one = "/hybrid/machines/{name}"
    add(app, "GET", "/hybrid/info", info)
    add(app, "GET", "/hybrid/machines", listing)
    add(app, "POST", "/hybrid/machines", create)
    add(app, "GET", one, inspect)
    add(app, "DELETE", one, remove)
    add(app, "POST", f"{one}/start", start)
    add(app, "POST", f"{one}/stop", stop)
    add(app, "GET", f"{one}/console", console)
    add(app, "POST", f"{one}/exec", create_exec)
    add(app, "GET", "/hybrid/verify", verify)
    add(app, "GET", "/hybrid/templates", templates)
    add(app, "POST", "/hybrid/templates", build_template)
    add(app, "DELETE", "/hybrid/templates/{key}", remove_template)


def pool_json(engine: Engine) -> dict[str, int]:
    """What stands ready: how many of each template are to, how many do, and bytes of memory for all."""
    pool = engine.machines.templates.pool()
    ready = len(engine.machines.templates.spares())
    return {"Size": pool.size, "Ready": ready, "Memory": pool.used, "MemoryLimit": pool.limit}


def spare_json(spare: SpareInfo) -> dict[str, Any]:
    """A clone that stands ready, in a list of machines. It has no name before it is somebody's."""
    return {
        "Id": spare.id,
        "Name": "",
        "Kind": "guest",
        "Status": "ready",
        "Created": times.rfc3339(int(spare.made * 1e9)),
        "Template": spare.template,
        "Used": spare.used,
    }


def machine_json(engine: Engine, machine: Machine) -> dict[str, Any]:
    record = machine.record
    containers = [engine.containers.get(key) for key in machine.users]
    return {
        "Id": record.id,
        "Name": record.name,
        "Kind": record.kind,
        "Provider": record.provider,
        "Features": sorted(feature.value for feature in machine.provider.features),
        "Status": "running" if record.running else "stopped",
        "Created": times.rfc3339(record.created_ns),
        "Explicit": record.explicit,
        "Profile": record.profile,
        "Memory": record.memory,
        "Cpus": record.cpus,
        "Kernel": record.kernel,
        "BootId": record.boot_id,
        "Address": record.remote.address if record.remote else "",
        "Error": record.error,
        "Origin": render.origin_json(record.origin),
        "Containers": [one.record.name for one in containers if one is not None],
        "Facts": {
            "Architecture": machine.facts.architecture,
            "Runtime": machine.facts.runtime,
            "Cgroup": machine.facts.cgroup,
            "Memory": machine.facts.memory,
            "MemoryAvailable": machine.facts.memory_available,
            "Lockdown": machine.facts.lockdown,
            "AgentRss": machine.facts.agent_rss,
        }
        if machine.facts
        else None,
    }


async def listing(request: web.Request) -> web.Response:
    engine = engine_of(request)
    found = [machine_json(engine, machine) for machine in engine.machines.all()]
    if query.flag(request.query, "all"):
        found += [spare_json(one) for one in engine.machines.templates.spares()]
    return json_response(found)


async def inspect(request: web.Request) -> web.Response:
    engine = engine_of(request)
    return json_response(machine_json(engine, engine.machines.find(request.match_info["name"])))


async def create(request: web.Request) -> web.Response:
    """With ``Address``: a box reached over SSH is added; without: a guest is made. Both are up when this answers."""
    engine = engine_of(request)
    fields = Fields(await body_of(request, needed=True))
    name, address = fields.text("Name"), fields.text("Address")
    if fields.text("Provider") not in ("", "ssh" if address else "libvirt"):
        raise InvalidInput("Provider must be 'ssh' with an Address and 'libvirt' without one")
    remote = Remote(
        address,
        identity=fields.text("Identity"),
        known_hosts=fields.text("KnownHosts"),
        accept_host_key=fields.flag("AcceptHostKey"),
        fingerprint=fields.text("Fingerprint"),
    )
    size = GuestSize(
        memory=fields.integer("Memory"),
        cpus=fields.integer("Cpus"),
        profile=fields.text("Profile") or "default",
    )
    fields.finish()
    if not name:
        raise InvalidInput("a machine needs a Name")
    if address:
        _root_only(request, "adding a box: it is reached with the daemon's own keys")
        machine = await engine.machines.add(name, remote)
    else:
        machine = await engine.machines.create(name, size)
    return json_response(machine_json(engine, machine), 201)


def _root_only(request: web.Request, what: str) -> None:
    if caller_of(request)[0] != 0:
        raise Forbidden(f"{what}: only root may do that")


def _check_machine(request: web.Request, machine: Machine, verb: str) -> None:
    """Guests are everybody's who may use the socket; this host and other boxes are root's."""
    if machine.record.kind != "guest":
        _root_only(request, f"{verb} machine {machine.record.name}, which is no guest")


async def remove(request: web.Request) -> web.Response:
    engine = engine_of(request)
    machine = engine.machines.find(request.match_info["name"])
    _check_machine(request, machine, "removing")
    await engine.machines.remove(machine, force=query.flag(request.query, "force"))
    return empty()


async def start(request: web.Request) -> web.Response:
    engine = engine_of(request)
    await engine.machines.start(engine.machines.find(request.match_info["name"]))
    return empty()


async def stop(request: web.Request) -> web.Response:
    engine = engine_of(request)
    timeout = query.integer(request.query, "t")
    machine = engine.machines.find(request.match_info["name"])
    _check_machine(request, machine, "stopping")
    await engine.machines.stop(machine, 10.0 if timeout is None else float(timeout))
    return empty()


async def console(request: web.Request) -> web.StreamResponse:
    engine = engine_of(request)
    data = await engine.machines.console(engine.machines.find(request.match_info["name"]))
    response = await begin_stream(request, "application/octet-stream")
    await response.write(data)
    return response


async def create_exec(request: web.Request) -> web.Response:
    engine = engine_of(request)
    machine = engine.machines.find(request.match_info["name"])
    _check_machine(request, machine, "a shell on")
    spec = parse.exec_spec(await body_of(request, needed=True))
    if not spec.command:
        raise InvalidInput("No exec command specified")
    return json_response({"Id": engine.execs.create_on_machine(machine, spec).record.id}, 201)


async def verify(request: web.Request) -> web.Response:
    engine = engine_of(request)
    container = request.query.get("container", "")
    if not container:
        raise InvalidInput("verify needs ?container=ID")
    report = await engine.prover.prove(container)
    return json_response({**asdict(report), "kept": report.kept})


def template_json(info: TemplateInfo) -> dict[str, Any]:
    return {
        "Key": info.key,
        "Profile": info.profile,
        "Memory": info.memory,
        "Cpus": info.cpus,
        "Created": times.rfc3339(int(info.made * 1e9)),
        "BuildSeconds": round(info.took, 3),
        "Used": info.used,
        "Clones": info.clones,
        "Ready": info.ready,
    }


async def templates(request: web.Request) -> web.Response:
    found = engine_of(request).machines.templates.all()
    return json_response([template_json(info) for info in found])


async def build_template(request: web.Request) -> web.Response:
    """Answers when it is there; one that is there already is not made again."""
    fields = Fields(await body_of(request, needed=True))
    size = GuestSize(
        memory=fields.integer("Memory"),
        cpus=fields.integer("Cpus"),
        profile=fields.text("Profile") or "default",
    )
    fields.finish()
    return json_response(
        template_json(await engine_of(request).machines.templates.build(size)), 201
    )


async def remove_template(request: web.Request) -> web.Response:
    key = engine_of(request).machines.templates.remove(request.match_info["key"])
    return json_response({"Key": key})
