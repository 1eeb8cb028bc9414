"""The Engine API, one method a call: JSON in, JSON out, errors as ``hybrid.errors`` kinds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hybrid.client.address import Address
from hybrid.client.http import Hijacked, Http, Query, Response
from hybrid.client.quoting import quote
from hybrid.errors import (
    Conflict,
    Forbidden,
    HybridError,
    Internal,
    InvalidInput,
    NotFound,
    NotModified,
    Unauthorized,
    Unavailable,
    Unsupported,
)

VERSION = "/v1.51"
_KINDS: dict[int, type[HybridError]] = {
    304: NotModified,
    400: InvalidInput,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    500: Internal,
    501: Unsupported,
    503: Unavailable,
}

Json = dict[str, Any]


class Engine:
    """A daemon, seen through its API. Holds no connection; may be shared between threads."""

    def __init__(self, address: Address) -> None:
        self.http = Http(address)

    def __repr__(self) -> str:
        return f"<Engine {self.http.address}>"

    def call(self, method: str, path: str, *, query: Query | None = None, body: Any = None) -> Any:
        """One call and its JSON answer (None when it has none); 304 counts as done."""
        with_version = path if path.startswith(("/hybrid", "/_ping")) else VERSION + path
        response = self.http.request(method, with_version, query=query, body=body)
        if response.status != 304:
            check(response)
        return (
            response.json()
            if "json" in response.headers.get("content-type", "")
            else _drain(response)
        )

    def stream(
        self, method: str, path: str, *, query: Query | None = None, body: Any = None
    ) -> Response:
        """A call whose answer is read as it comes in."""
        with_version = path if path.startswith("/hybrid") else VERSION + path
        return check(self.http.request(method, with_version, query=query, body=body))

    def hijack(self, path: str, *, query: Query | None = None, body: Any = None) -> Hijacked:
        """A call that turns the connection into a raw byte stream."""
        response = self.http.request("POST", VERSION + path, query=query, body=body, upgrade=True)
        if response.status not in (101, 200):
            check(response)
        return response.hijack()

    # the daemon
    def ping(self) -> None:
        self.call("GET", "/_ping")

    def version(self) -> Json:
        return _object(self.call("GET", "/version"))

    def info(self) -> Json:
        """Docker's ``info`` with hybrid's own under ``Hybrid``."""
        answer = _object(self.call("GET", "/info"))
        answer["Hybrid"] = self.call("GET", "/hybrid/info")
        return answer

    def verify(self, container: str) -> Json:
        return _object(self.call("GET", "/hybrid/verify", query={"container": container}))

    # containers
    def containers(
        self, *, all: bool = False, filters: Mapping[str, list[str]] | None = None
    ) -> list[Json]:
        return _list(
            self.call("GET", "/containers/json", query={"all": all, "filters": _filters(filters)})
        )

    def create_container(self, body: Json, name: str | None = None) -> Json:
        return _object(
            self.call("POST", "/containers/create", query={"name": name or None}, body=body)
        )

    def container(self, name: str) -> Json:
        return _object(self.call("GET", f"/containers/{_part(name)}/json"))

    def start(self, name: str) -> None:
        self.call("POST", f"/containers/{_part(name)}/start")

    def stop(self, name: str, *, timeout: int | None = None, signal: str | None = None) -> None:
        self.call("POST", f"/containers/{_part(name)}/stop", query={"t": timeout, "signal": signal})

    def restart(self, name: str, *, timeout: int | None = None) -> None:
        self.call("POST", f"/containers/{_part(name)}/restart", query={"t": timeout})

    def kill(self, name: str, signal: str = "KILL") -> None:
        self.call("POST", f"/containers/{_part(name)}/kill", query={"signal": signal})

    def remove(self, name: str, *, force: bool = False, volumes: bool = False) -> None:
        self.call("DELETE", f"/containers/{_part(name)}", query={"force": force, "v": volumes})

    def rename(self, name: str, new: str) -> None:
        self.call("POST", f"/containers/{_part(name)}/rename", query={"name": new})

    def wait(self, name: str, condition: str = "not-running") -> Response:
        """The pending answer: its head has come, its body comes with the exit; see
        ``exit_code``."""
        return self.stream(
            "POST", f"/containers/{_part(name)}/wait", query={"condition": condition}
        )

    def attach(
        self, name: str, *, stdin: bool, detach_keys: str | None = None, logs: bool = False
    ) -> Hijacked:
        query = {
            "stream": True,
            "stdin": stdin,
            "stdout": True,
            "stderr": True,
            "logs": logs or None,
            "detachKeys": detach_keys,
        }
        return self.hijack(f"/containers/{_part(name)}/attach", query=query)

    def resize(self, name: str, rows: int, columns: int) -> None:
        self.call("POST", f"/containers/{_part(name)}/resize", query={"h": rows, "w": columns})

    def logs(self, name: str, query: Query) -> Response:
        return self.stream("GET", f"/containers/{_part(name)}/logs", query=query)

    # processes in containers
    def create_exec(self, name: str, body: Json) -> str:
        return str(_object(self.call("POST", f"/containers/{_part(name)}/exec", body=body))["Id"])

    def create_machine_exec(self, name: str, body: Json) -> str:
        return str(
            _object(self.call("POST", f"/hybrid/machines/{_part(name)}/exec", body=body))["Id"]
        )

    def start_exec(self, exec_id: str, body: Json) -> Hijacked:
        return self.hijack(f"/exec/{_part(exec_id)}/start", body=body)

    def start_exec_detached(self, exec_id: str, *, tty: bool) -> None:
        self.call("POST", f"/exec/{_part(exec_id)}/start", body={"Detach": True, "Tty": tty})

    def resize_exec(self, exec_id: str, rows: int, columns: int) -> None:
        self.call("POST", f"/exec/{_part(exec_id)}/resize", query={"h": rows, "w": columns})

    def exec(self, exec_id: str) -> Json:
        return _object(self.call("GET", f"/exec/{_part(exec_id)}/json"))

    # images
    def images(
        self, *, all: bool = False, filters: Mapping[str, list[str]] | None = None
    ) -> list[Json]:
        return _list(
            self.call("GET", "/images/json", query={"all": all, "filters": _filters(filters)})
        )

    def image(self, name: str) -> Json:
        return _object(self.call("GET", f"/images/{_reference(name)}/json"))

    def remove_image(self, name: str, *, force: bool = False, prune: bool = True) -> list[Json]:
        query = {"force": force, "noprune": not prune}
        return _list(self.call("DELETE", f"/images/{_reference(name)}", query=query))

    def tag_image(self, name: str, repository: str, tag: str) -> None:
        self.call("POST", f"/images/{_reference(name)}/tag", query={"repo": repository, "tag": tag})

    def load_images(self, blocks: Iterable[bytes]) -> Iterator[Json]:
        """Sends an archive; the daemon's progress messages. Raises what it reports as failed."""
        response = check(
            self.http.request(
                "POST", f"{VERSION}/images/load", query={"quiet": False}, stream=blocks
            )
        )
        for message in response.lines():
            if "errorDetail" in message or "error" in message:
                raise InvalidInput(
                    str(message.get("errorDetail", {}).get("message") or message.get("error"))
                )
            yield message

    # networks and volumes
    def networks(self, filters: Mapping[str, list[str]] | None = None) -> list[Json]:
        return _list(self.call("GET", "/networks", query={"filters": _filters(filters)}))

    def network(self, name: str) -> Json:
        return _object(self.call("GET", f"/networks/{_part(name)}"))

    def create_network(self, body: Json) -> str:
        return str(_object(self.call("POST", "/networks/create", body=body))["Id"])

    def remove_network(self, name: str) -> None:
        self.call("DELETE", f"/networks/{_part(name)}")

    def volumes(self, filters: Mapping[str, list[str]] | None = None) -> list[Json]:
        answer = _object(self.call("GET", "/volumes", query={"filters": _filters(filters)}))
        return answer.get("Volumes") or []

    def volume(self, name: str) -> Json:
        return _object(self.call("GET", f"/volumes/{_part(name)}"))

    def create_volume(self, body: Json) -> Json:
        return _object(self.call("POST", "/volumes/create", body=body))

    def remove_volume(self, name: str, *, force: bool = False) -> None:
        self.call("DELETE", f"/volumes/{_part(name)}", query={"force": force})

    # machines
    def machines(self, *, all: bool = False) -> list[Json]:
        return _list(self.call("GET", "/hybrid/machines", query={"all": all}))

    def machine(self, name: str) -> Json:
        return _object(self.call("GET", f"/hybrid/machines/{_part(name)}"))

    def create_machine(self, body: Json) -> Json:
        return _object(self.call("POST", "/hybrid/machines", body=body))

    def start_machine(self, name: str) -> None:
        self.call("POST", f"/hybrid/machines/{_part(name)}/start")

    def stop_machine(self, name: str) -> None:
        self.call("POST", f"/hybrid/machines/{_part(name)}/stop")

    def remove_machine(self, name: str, *, force: bool = False) -> None:
        self.call("DELETE", f"/hybrid/machines/{_part(name)}", query={"force": force})

    # templates
    def templates(self) -> list[Json]:
        return _list(self.call("GET", "/hybrid/templates"))

    def build_template(self, body: Json) -> Json:
        return _object(self.call("POST", "/hybrid/templates", body=body))

    def remove_template(self, key: str) -> None:
        self.call("DELETE", f"/hybrid/templates/{_part(key)}")

    def console(self, name: str) -> Response:
        return self.stream("GET", f"/hybrid/machines/{_part(name)}/console")


def check(response: Response) -> Response:
    """The response if it reports success; its error otherwise."""
    if response.status < 300:
        return response
    body = response.read()
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace").strip() or f"HTTP status {response.status}"
    raise _KINDS.get(response.status, Internal)(message)


def exit_code(waited: Response) -> tuple[int, str]:
    """Exit code and error text from the body of a ``wait``."""
    answer = _object(waited.json())
    return int(answer.get("StatusCode", 0)), str((answer.get("Error") or {}).get("Message", ""))


def _drain(response: Response) -> None:
    response.read()


def _part(name: str) -> str:
    return quote(name)


def _reference(name: str) -> str:
    return quote(name, safe="/:@")


def _filters(filters: Mapping[str, list[str]] | None) -> str | None:
    return json.dumps(filters) if filters else None


def _object(answer: Any) -> Json:
    if not isinstance(answer, dict):
        raise Unavailable(f"the daemon's answer is not an object: {str(answer)[:80]!r}")
    return answer


def _list(answer: Any) -> list[Json]:
    if answer is None:
        return []
    if not isinstance(answer, list):
        raise Unavailable(f"the daemon's answer is not a list: {str(answer)[:80]!r}")
    return answer
