"""``_ping``, ``version``, ``info``, ``events``, ``system/df``, and what is refused as a whole (swarm, plugins)."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from hybrid.api import query, times, versions
from hybrid.api.middleware import version_of
from hybrid.api.respond import add, begin_stream, body_of, engine_of, json_response, line
from hybrid.engine.events import Event
from hybrid.engine.system import Summary, host_facts
from hybrid.errors import Unavailable, Unsupported

NOT_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm'
    " and try again."
)
EVENT_FILTERS = (
    "config container daemon event image label network node plugin scope secret service type volume machine"
).split()
PING = {
    "Api-Version": versions.text(versions.NEWEST),
    "Builder-Version": "1",
    "Swarm": "inactive",
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
}


def setup(app: web.Application, hybrid_version: str) -> None:
    async def version(request: web.Request) -> web.Response:
        return json_response(_version(hybrid_version))

    for method, handler in (("GET", ping), ("HEAD", ping)):
        add(app, method, "/_ping", handler)
    add(app, "GET", "/version", version)
    add(app, "GET", "/info", info)
    add(app, "GET", "/events", events)
    add(app, "GET", "/system/df", disk_usage)
    add(app, "POST", "/auth", login)
    add(app, "GET", "/plugins", plugins)
    for method in ("GET", "POST", "DELETE", "PUT"):
        for noun in ("swarm", "nodes", "services", "tasks", "secrets", "configs"):
            add(app, method, f"/{noun}{{rest:(/.*)?}}", swarm)
    for method in ("POST", "DELETE"):
        add(app, method, "/plugins{rest:/.*}", no_plugins)
    for path in ("/session", "/grpc"):
        add(app, "POST", path, no_buildkit)
    for path in ("/build", "/commit", "/build/prune"):
        add(app, "POST", path, no_build)


async def ping(request: web.Request) -> web.Response:
    body = b"" if request.method == "HEAD" else b"OK"
    return web.Response(body=body, content_type="text/plain", charset="utf-8", headers=PING)


def _version(hybrid_version: str) -> dict[str, Any]:
    host = host_facts()
    architecture = _go_architecture(host.architecture)
    details = {
        "ApiVersion": versions.text(versions.NEWEST),
        "Arch": architecture,
        "Experimental": "false",
        "KernelVersion": host.kernel,
        "MinAPIVersion": versions.text(versions.OLDEST),
        "Os": "linux",
    }
    return {
        "Platform": {"Name": f"hybrid {hybrid_version}"},
        "Components": [
            {"Name": "Engine", "Version": versions.ENGINE, "Details": details},
            {"Name": "hybrid", "Version": hybrid_version, "Details": {}},
        ],
        "Version": versions.ENGINE,
        "ApiVersion": versions.text(versions.NEWEST),
        "MinAPIVersion": versions.text(versions.OLDEST),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": architecture,
        "KernelVersion": host.kernel,
        "BuildTime": "",
    }


def _go_architecture(machine: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


async def info(request: web.Request) -> web.Response:
    engine = engine_of(request)
    return json_response(_info(await engine.system.summary(), engine.paths.instance))


def _info(summary: Summary, instance: str) -> dict[str, Any]:
    host = summary.host
    return {
        "ID": instance,
        "Containers": summary.containers,
        "ContainersRunning": summary.running,
        "ContainersPaused": summary.paused,
        "ContainersStopped": summary.stopped,
        "Images": summary.images,
        "Driver": "hybrid",
        "DriverStatus": [
            ["Machines", str(summary.machines)],
            *(
                [f"Provider {name}", ", ".join(features)]
                for name, features in summary.providers.items()
            ),
        ],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"],
            "Authorization": None,
            "Log": ["json-file", "local", "none"],
        },
        "MemoryLimit": True,
        "SwapLimit": True,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": True,
        "CPUSet": True,
        "PidsLimit": True,
        "IPv4Forwarding": True,
        "Debug": False,
        "NFd": 0,
        "OomKillDisable": False,
        "NGoroutines": 0,
        "SystemTime": times.rfc3339(time.time_ns()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": host.cgroup,
        "NEventsListener": 0,
        "KernelVersion": host.kernel,
        "OperatingSystem": host.operating_system,
        "OSVersion": "",
        "OSType": "linux",
        "Architecture": host.architecture,
        "IndexServerAddress": "",
        "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": [], "Mirrors": None},
        "NCPU": host.cpus,
        "MemTotal": host.memory,
        "GenericResources": None,
        "DockerRootDir": str(summary.root),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": host.name,
        "Labels": [],
        "ExperimentalBuild": False,
        "ServerVersion": versions.ENGINE,
        "Runtimes": {"hybrid-vm": {"path": "crun"}, "hybrid-container": {"path": "crun"}},
        "DefaultRuntime": "hybrid-vm",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": True,
        "Isolation": "vm",
        "InitBinary": "",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=userns", "name=cgroupns"],
        "Warnings": summary.warnings,
        "CDISpecDirs": [],
    }


def event_json(event: Event, version: tuple[int, int]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if event.kind in ("container", "image"):
        source = event.attributes.get("image", event.subject)
        body = {"status": event.action, "id": event.subject, "from": source}
    body |= {
        "Type": event.kind,
        "Action": event.action,
        "Actor": {"ID": event.subject, "Attributes": event.attributes},
        "scope": "local",
        "time": event.time_ns // 1_000_000_000,
        "timeNano": event.time_ns,
    }
    return body


def matches(event: Event, chosen: query.Filters) -> bool:
    """Whether the event passes Docker's filters (``daemon/events/filter.go``)."""

    def is_it(value: str) -> bool:
        name = event.attributes.get("name", "")
        return event.subject == value or event.subject.startswith(value) or name == value

    for kind in ("container", "network", "volume", "daemon", "machine"):
        wanted = chosen.get(kind)
        if wanted and not (event.kind == kind and any(map(is_it, wanted))):
            about = event.attributes.get("container", "") if kind == "container" else ""
            if not about or not any(about.startswith(value) for value in wanted):
                return False
    image = chosen.get("image")
    if image and event.attributes.get("image", event.attributes.get("name")) not in image:
        return False
    return (
        query.any_match(
            chosen.get("event"),
            lambda value: event.action == value or event.action.startswith(f"{value}:"),
        )
        and query.any_match(chosen.get("type"), lambda value: event.kind == value)
        and query.any_match(chosen.get("scope"), lambda value: value == "local")
        and query.labels_match(chosen, event.attributes)
    )


async def events(request: web.Request) -> web.StreamResponse:
    engine = engine_of(request)
    chosen = query.filters(request.query, EVENT_FILTERS)
    since, until = (query.seconds(request.query.get(name, "")) for name in ("since", "until"))
    response = await begin_stream(request, "application/json")
    async for event in engine.events.stream(since, until):
        if matches(event, chosen):
            await response.write(line(event_json(event, version_of(request))))
    return response


async def disk_usage(request: web.Request) -> web.Response:
    engine = engine_of(request)
    return json_response(
        {
            "LayersSize": sum(image.size for image in engine.images.all()),
            "Images": [],
            "Containers": [],
            "Volumes": [],
            "BuildCache": [],
            "BuilderSize": 0,
        }
    )


async def login(request: web.Request) -> web.Response:
    await body_of(request)
    raise Unsupported("login: this build has no registry client yet")


async def plugins(request: web.Request) -> web.Response:
    return json_response([])


async def swarm(request: web.Request) -> web.Response:
    raise Unavailable(NOT_SWARM)


async def no_plugins(request: web.Request) -> web.Response:
    raise Unsupported("managed plugins are not supported")


async def no_buildkit(request: web.Request) -> web.Response:
    raise Unsupported("this build has no BuildKit")


async def no_build(request: web.Request) -> web.Response:
    raise Unsupported(
        "this build cannot build images yet: build elsewhere and load an archive with 'hybrid image load'"
    )
