"""An in-memory daemon: the Engine API over a real Unix socket, with containers that only exist as
records."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]


@dataclass
class Call:
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body or b"null")


@dataclass
class Reply:
    """A response; ``raw`` replaces everything, ``hijack`` takes the connection over."""

    status: int = 200
    body: Any = None
    raw: bytes | None = None
    hijack: Callable[[socket.socket, bytes], None] | None = None
    chunks: list[bytes] | None = None
    head: bytes = (
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )


class HttpServer:
    """Answers each connection by one call of ``answer``, which tests provide."""

    def __init__(self, path: Path, answer: Callable[[Call], Reply]) -> None:
        self.path = path
        self.answer = answer
        self.calls: list[Call] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with connection:
            try:
                call, rest = _read_call(connection)
                self.calls.append(call)
                _write_reply(connection, self.answer(call), rest)
            except OSError:
                return


def _read_call(connection: socket.socket) -> tuple[Call, bytes]:
    reader = connection.makefile("rb", buffering=0)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += reader.read(1) or b"\r\n\r\n"
    first, *lines = head.decode().strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    body = b""
    if "chunked" in headers.get("transfer-encoding", ""):
        buffered = connection.makefile("rb")
        while size := int(buffered.readline(), 16):
            body += buffered.read(size)
            buffered.readline()
        buffered.readline()
    else:
        left = int(headers.get("content-length", "0"))
        while left:
            block = reader.read(left) or b""
            body += block
            left -= len(block)
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    path = re.sub(r"^/v1\.\d+", "", parts.path)
    return Call(method, unquote(path), query, headers, body), b""


def _write_reply(connection: socket.socket, reply: Reply, rest: bytes) -> None:
    if reply.raw is not None:
        connection.sendall(reply.raw)
        return
    if reply.hijack:
        connection.sendall(reply.head)
        reply.hijack(connection, rest)
        return
    if reply.chunks is not None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for chunk in reply.chunks:
            connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        connection.sendall(b"0\r\n\r\n")
        return
    body = b"" if reply.body is None else json.dumps(reply.body).encode()
    kind = "application/json" if body else "text/plain"
    connection.sendall(
        f"HTTP/1.1 {reply.status} X\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


@dataclass
class Record:
    """A container of the in-memory daemon."""

    id: str
    name: str
    body: Json
    status: str = "created"
    code: int = 0
    exited: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    looks: int = 0  # how often its health was asked for


class MemoryDaemon:
    """Enough of the daemon for the CLI: records, and processes that are a function of their input.

    ``process(record, stdin)`` gives (output, exit code) once stdin is at its end.
    """

    def __init__(self, path: Path) -> None:
        self.containers: dict[str, Record] = {}
        self.execs: dict[str, Json] = {}
        self.networks: dict[str, Json] = {}
        self.volumes: dict[str, Json] = {}
        self.images = {"busybox:latest": "sha256:" + "b" * 64}
        self.resizes: list[tuple[int, int]] = []
        self.killed: list[str] = []
        self.start_error: tuple[int, str] | None = None
        self.unhealthy: set[str] = set()
        self.healthy_after = 1
        self.console_log = b""
        self.verify_report: Json = {"kept": True, "checks": []}
        self.process: Callable[[Record, bytes], tuple[bytes, int]] = lambda _, data: (data, 0)
        self.lock = threading.RLock()
        self.http = HttpServer(path, self._answer)
        self.order: list[str] = []
        self.made = 0

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [(call.method, call.path) for call in self.http.calls]

    def _answer(self, call: Call) -> Reply:
        for method, pattern, handler in _ROUTES:
            if method == call.method and (match := re.fullmatch(pattern, call.path)):
                with self.lock:
                    return handler(self, call, *match.groups())
        return Reply(404, {"message": "page not found"})

    def find(self, name: str) -> Record | None:
        for record in self.containers.values():
            if name in (record.id, record.name) or record.id.startswith(name):
                return record
        return None

    # handlers
    def ping(self, call: Call) -> Reply:
        return Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")

    def image(self, call: Call, name: str) -> Reply:
        tagged = name if ":" in name else f"{name}:latest"
        if tagged not in self.images:
            return Reply(404, {"message": f"No such image: {tagged}"})
        return Reply(200, {"Id": self.images[tagged], "RepoTags": [tagged]})

    def create(self, call: Call) -> Reply:
        body = call.json()
        missing = self.image(call, body["Image"])
        if missing.status != 200:
            return missing
        name = call.query.get("name") or f"made_up{len(self.containers)}"
        if self.find(name):
            return Reply(409, {"message": f'Conflict. The container name "/{name}" is in use'})
        self.made += 1
        record = Record(f"{self.made:064x}", name, body)
        self.containers[record.id] = record
        return Reply(201, {"Id": record.id, "Warnings": []})

    def list(self, call: Call) -> Reply:
        found = []
        for record in self.containers.values():
            if not _labelled(call, record.body):
                continue
            if call.query.get("all") == "1" or record.status == "running":
                found.append(self.summary(record))
        return Reply(200, found)

    def summary(self, record: Record) -> Json:
        return {
            "Id": record.id,
            "Names": [f"/{record.name}"],
            "Image": record.body["Image"],
            "Command": " ".join(record.body.get("Cmd") or ["sh"]),
            "Created": 0,
            "State": record.status,
            "Status": "Up 2 seconds" if record.status == "running" else "Exited (0)",
            "Labels": record.body.get("Labels") or {},
            "Ports": [],
            "Hybrid": {"Isolation": "vm", "Machine": "m1"},
        }

    def inspect(self, call: Call, name: str) -> Reply:
        record = self.find(name)
        if not record:
            return Reply(404, {"message": f"No such container: {name}"})
        record.looks += 1
        state: Json = {
            "Running": record.status == "running",
            "Status": record.status,
            "ExitCode": record.code,
        }
        if record.body.get("Healthcheck"):
            healthy = record.looks > self.healthy_after
            status = "healthy" if healthy else "starting"
            if record.name in self.unhealthy:
                status = "unhealthy"
            state["Health"] = {"Status": status, "Log": [{"Output": "no answer"}]}
        body = {
            "Id": record.id,
            "Name": f"/{record.name}",
            "State": state,
            "Config": record.body,
            "HostConfig": record.body.get("HostConfig") or {},
            "NetworkSettings": {
                "Networks": {"n": {"IPAddress": "10.0.0.2"}},
                "Ports": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}], "81/tcp": None},
            },
            "Hybrid": {
                "Isolation": "vm",
                "Machine": "m1",
                "Kernel": "6.12.1",
                "ReadyAfter": 1.234,
            },
        }
        return Reply(200, body)

    def start(self, call: Call, name: str) -> Reply:
        record = self.find(name)
        if not record:
            return Reply(404, {"message": f"No such container: {name}"})
        if self.start_error:
            return Reply(self.start_error[0], {"message": self.start_error[1]})
        record.status = "running"
        self.order.append(f"start {record.name}")
        record.started.set()
        return Reply(204)

    def stop(self, call: Call, name: str) -> Reply:
        record = self.find(name)
        if not record:
            return Reply(404, {"message": f"No such container: {name}"})
        self.finish(record, 143)
        return Reply(204)

    def finish(self, record: Record, code: int) -> None:
        record.status, record.code = "exited", code
        record.exited.set()

    def kill(self, call: Call, name: str) -> Reply:
        self.killed.append(call.query["signal"])
        record = self.find(name)
        if record and call.query["signal"] in ("KILL", "SIGTERM"):
            self.finish(record, 143)
        return Reply(204)

    def remove(self, call: Call, name: str) -> Reply:
        record = self.find(name)
        if not record:
            return Reply(404, {"message": f"No such container: {name}"})
        del self.containers[record.id]
        self.order.append(f"remove {record.name}")
        return Reply(204)

    def resize(self, call: Call, name: str) -> Reply:
        self.resizes.append((int(call.query["h"]), int(call.query["w"])))
        return Reply(200)

    def attach(self, call: Call, name: str) -> Reply:
        record = self.find(name)
        assert record
        return Reply(hijack=lambda connection, _: self._run(record, connection))

    def _run(self, record: Record, connection: socket.socket) -> None:
        record.started.wait(10)
        data = b""
        if record.body.get("OpenStdin"):
            while block := connection.recv(65536):
                data += block
                if record.body.get("Tty"):
                    if b"\x04" in block:
                        break
                    connection.sendall(block)
        output, code = self.process(record, data)
        if record.body.get("Tty"):
            connection.sendall(output if not record.body.get("OpenStdin") else b"")
        else:
            connection.sendall(b"\x01\0\0\0" + len(output).to_bytes(4, "big") + output)
        self.finish(record, code)

    def wait(self, call: Call, name: str) -> Reply:
        record = self.find(name)
        if not record:
            return Reply(404, {"message": f"No such container: {name}"})

        def later(connection: socket.socket, _: bytes) -> None:
            record.exited.wait(20)
            body = json.dumps({"StatusCode": record.code}).encode()
            connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

        return Reply(hijack=later, head=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def logs(self, call: Call, name: str) -> Reply:
        record = self.find(name)
        if not record:
            return Reply(404, {"message": f"No such container: {name}"})
        text = b"line\n"
        return Reply(
            chunks=[b"\x01\0\0\0\0\0\0\x05" + text[:2], text[2:] + b"\x02\0\0\0\0\0\0\x01E"]
        )

    def create_exec(self, call: Call, name: str) -> Reply:
        if not self.find(name):
            return Reply(404, {"message": f"No such container: {name}"})
        self.execs["e1"] = call.json()
        return Reply(201, {"Id": "e1"})

    def start_exec(self, call: Call, identity: str) -> Reply:
        def run(connection: socket.socket, _: bytes) -> None:
            data = b""
            if self.execs[identity]["AttachStdin"]:
                while block := connection.recv(65536):
                    data += block
            output = b"exec:" + data
            connection.sendall(b"\x01\0\0\0" + len(output).to_bytes(4, "big") + output)

        return Reply(hijack=run)

    def inspect_exec(self, call: Call, identity: str) -> Reply:
        return Reply(200, {"ExitCode": 3, "Running": False})

    def list_networks(self, call: Call) -> Reply:
        return Reply(200, [n for n in self.networks.values() if _labelled(call, n)])

    def network(self, call: Call, name: str) -> Reply:
        found = [n for n in self.networks.values() if name in (n["Id"], n["Name"])]
        return (
            Reply(200, found[0]) if found else Reply(404, {"message": f"network {name} not found"})
        )

    def create_network(self, call: Call) -> Reply:
        body = call.json()
        self.networks[body["Name"]] = {"Id": f"net-{body['Name']}", **body}
        return Reply(201, {"Id": f"net-{body['Name']}", "Warning": ""})

    def remove_network(self, call: Call, name: str) -> Reply:
        self.networks = {k: n for k, n in self.networks.items() if n["Id"] != name}
        return Reply(204)

    def list_volumes(self, call: Call) -> Reply:
        return Reply(200, {"Volumes": [v for v in self.volumes.values() if _labelled(call, v)]})

    def volume(self, call: Call, name: str) -> Reply:
        found = self.volumes.get(name)
        return (
            Reply(200, found) if found else Reply(404, {"message": f"get {name}: no such volume"})
        )

    def create_volume(self, call: Call) -> Reply:
        body = call.json()
        self.volumes[body["Name"]] = body
        return Reply(201, body)

    def remove_volume(self, call: Call, name: str) -> Reply:
        self.volumes.pop(name)
        return Reply(204)

    def load(self, call: Call) -> Reply:
        if not call.body:
            return Reply(chunks=[b'{"errorDetail":{"message":"empty archive"},"error":"x"}\n'])
        return Reply(chunks=[b'{"stream":"Loaded image: a', b':latest\\n"}\n'])

    def verify(self, call: Call) -> Reply:
        return Reply(200, {"container": call.query["container"], **self.verify_report})

    def console(self, call: Call, name: str) -> Reply:
        return Reply(chunks=[self.console_log] if self.console_log else [])


def _labelled(call: Call, item: Json) -> bool:
    wanted = json.loads(call.query.get("filters", "{}")).get("label", [])
    labels = item.get("Labels") or {}
    return all(labels.get(k) == v for k, _, v in (w.partition("=") for w in wanted))


_NAME = r"([^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Reply]]] = [
    ("GET", "/_ping", MemoryDaemon.ping),
    ("GET", "/images/(.+)/json", MemoryDaemon.image),
    ("POST", "/images/load", MemoryDaemon.load),
    ("POST", "/containers/create", MemoryDaemon.create),
    ("GET", "/containers/json", MemoryDaemon.list),
    ("GET", f"/containers/{_NAME}/json", MemoryDaemon.inspect),
    ("POST", f"/containers/{_NAME}/start", MemoryDaemon.start),
    ("POST", f"/containers/{_NAME}/stop", MemoryDaemon.stop),
    ("POST", f"/containers/{_NAME}/kill", MemoryDaemon.kill),
    ("POST", f"/containers/{_NAME}/resize", MemoryDaemon.resize),
    ("POST", f"/containers/{_NAME}/attach", MemoryDaemon.attach),
    ("POST", f"/containers/{_NAME}/wait", MemoryDaemon.wait),
    ("GET", f"/containers/{_NAME}/logs", MemoryDaemon.logs),
    ("POST", f"/containers/{_NAME}/exec", MemoryDaemon.create_exec),
    ("DELETE", f"/containers/{_NAME}", MemoryDaemon.remove),
    ("POST", f"/exec/{_NAME}/start", MemoryDaemon.start_exec),
    ("POST", f"/exec/{_NAME}/resize", MemoryDaemon.resize),
    ("GET", f"/exec/{_NAME}/json", MemoryDaemon.inspect_exec),
    ("GET", "/networks", MemoryDaemon.list_networks),
    ("GET", f"/networks/{_NAME}", MemoryDaemon.network),
    ("POST", "/networks/create", MemoryDaemon.create_network),
    ("DELETE", f"/networks/{_NAME}", MemoryDaemon.remove_network),
    ("GET", "/volumes", MemoryDaemon.list_volumes),
    ("GET", f"/volumes/{_NAME}", MemoryDaemon.volume),
    ("POST", "/volumes/create", MemoryDaemon.create_volume),
    ("DELETE", f"/volumes/{_NAME}", MemoryDaemon.remove_volume),
    ("GET", "/hybrid/verify", MemoryDaemon.verify),
    ("GET", f"/hybrid/machines/{_NAME}/console", MemoryDaemon.console),
]
