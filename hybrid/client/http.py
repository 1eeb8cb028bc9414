"""HTTP/1.1 from the client's side, as much of it as the Engine API needs.

One connection a request: over a Unix socket that costs microseconds, and a hijacked connection is
never reused anyway.
Nothing the server sends is trusted: heads, chunk sizes and JSON bodies are bounded.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hybrid.client.address import Address, TcpAddress, UnixAddress
from hybrid.client.quoting import quote
from hybrid.errors import Forbidden, Unavailable
from hybrid.instance import StrPath

HEAD_MAX = 64 << 10
JSON_MAX = 64 << 20
BLOCK = 64 << 10

Query = Mapping[str, str | int | bool | None]


class NotListening(Unavailable):
    """Nothing listens on the address: the daemon is not running."""


class Response:
    """A response whose head has been read; the body is read on demand, and reading it to its end
    closes it."""

    def __init__(self, connection: Connection, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.headers.get('content-type', '')}>"

    def blocks(self) -> Iterator[bytes]:
        """The body, as it comes in."""
        try:
            if self.status in (204, 304) or self.headers.get("content-length") == "0":
                return
            if "chunked" in self.headers.get("transfer-encoding", "").lower():
                yield from self._connection.chunks()
            elif (length := self.headers.get("content-length")) is not None:
                yield from self._connection.exactly(_number(length, 10))
            else:
                yield from self._connection.rest()
        finally:
            self.close()

    def read(self, limit: int = JSON_MAX) -> bytes:
        """The whole body; Unavailable when it is larger than ``limit``."""
        body = bytearray()
        for block in self.blocks():
            body += block
            if len(body) > limit:
                raise Unavailable(f"the daemon's answer is larger than {limit} bytes")
        return bytes(body)

    def json(self) -> Any:
        """The body as JSON; None when it is empty."""
        body = self.read()
        if not body.strip():
            return None
        try:
            return json.loads(body)
        except ValueError as error:
            raise Unavailable(f"the daemon's answer is not JSON: {body[:80]!r}") from error

    def lines(self) -> Iterator[Any]:
        """A body of one JSON value a line (events, progress), as they come in."""
        pending = b""
        for block in self.blocks():
            *whole, pending = (pending + block).split(b"\n")
            if len(pending) > JSON_MAX:
                raise Unavailable("the daemon sent a line without end")
            for line in (*whole,):
                if line.strip():
                    yield json.loads(line)
        if pending.strip():
            yield json.loads(pending)

    def hijack(self) -> Hijacked:
        """Takes the connection over as a raw byte stream."""
        return self._connection.take()

    def fileno(self) -> int:
        return self._connection.socket.fileno()

    def close(self) -> None:
        self._connection.close()


class Hijacked:
    """A connection that has left HTTP: bytes both ways, each side closed on its own."""

    def __init__(self, connection: socket.socket, pending: bytes) -> None:
        self.socket = connection
        self._pending = pending

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def pending(self) -> bool:
        """True when bytes that came with the response's head are waiting to be received."""
        return bool(self._pending)

    def receive(self) -> bytes:
        """Some bytes, b"" at the end. A daemon that vanished ends the stream."""
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        try:
            return self.socket.recv(BLOCK)
        except ConnectionResetError:
            return b""

    def send_some(self, data: bytes) -> int:
        """Sends without waiting; how many bytes were taken."""
        return self.socket.send(data, socket.MSG_DONTWAIT)

    def close_write(self) -> None:
        """No more input; output goes on."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side is gone already: reading will tell

    def close(self) -> None:
        self.socket.close()


class Connection:
    """One socket and what was read from it too early."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._buffer = b""

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEAD_MAX:
                raise Unavailable("the daemon's response head is too large")
            if not self._fill():
                raise Unavailable("the daemon closed the connection without an answer")
        head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = status_line.partition(" ")
        if not version.startswith("HTTP/1."):
            raise Unavailable(f"this is not an HTTP answer: {status_line[:80]!r}")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return _number(rest[:3], 10), headers

    def chunks(self) -> Iterator[bytes]:
        """The blocks of a chunked body."""
        while size := _number(self._line().split(b";")[0].decode("latin-1"), 16):
            yield from self.exactly(size)
            self._line()
        while self._line():
            continue

    def exactly(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes in blocks."""
        while size:
            if not self._buffer and not self._fill():
                raise Unavailable("the daemon closed the connection in the middle of an answer")
            block, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(block)
            yield block

    def rest(self) -> Iterator[bytes]:
        """Everything until the other side closes."""
        while self._buffer or self._fill():
            block, self._buffer = self._buffer, b""
            yield block

    def take(self) -> Hijacked:
        return Hijacked(self.socket, self._buffer)

    def close(self) -> None:
        self.socket.close()

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > HEAD_MAX or not self._fill():
                raise Unavailable("the daemon closed the connection in the middle of an answer")
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line

    def _fill(self) -> bool:
        try:
            block = self.socket.recv(BLOCK)
        except ConnectionResetError as error:
            raise Unavailable("the daemon broke the connection: look into its log") from error
        self._buffer += block
        return bool(block)


class Http:
    """Requests to one address."""

    def __init__(self, address: Address, *, connect_timeout: float = 10.0) -> None:
        self.address = address
        self._connect_timeout = connect_timeout

    def __repr__(self) -> str:
        return f"<Http {self.address}>"

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        stream: Iterable[bytes] | None = None,
        upgrade: bool = False,
    ) -> Response:
        """Sends a request with a JSON ``body`` or a byte ``stream``; returns once the response's
        head is there."""
        connection = Connection(self._connect())
        try:
            self._send(connection.socket, method, _target(path, query), body, stream, upgrade)
            status, headers = connection.head()
            while 100 <= status < 200 and status != 101:
                status, headers = connection.head()
        except BaseException:
            connection.close()
            raise
        return Response(connection, status, headers)

    def _send(
        self,
        connected: socket.socket,
        method: str,
        target: str,
        body: Any,
        stream: Iterable[bytes] | None,
        upgrade: bool,
    ) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: hybrid", "User-Agent: hybrid"]
        payload = b""
        if stream is not None:
            lines += ["Content-Type: application/x-tar", "Transfer-Encoding: chunked"]
        elif body is not None:
            payload = json.dumps(body).encode()
            lines.append("Content-Type: application/json")
        if stream is None and method != "GET":
            lines.append(f"Content-Length: {len(payload)}")
        lines += ["Connection: Upgrade", "Upgrade: tcp"] if upgrade else ["Connection: close"]
        try:
            connected.sendall("\r\n".join((*lines, "", "")).encode() + payload)
            for block in stream or ():
                if block:
                    connected.sendall(b"%x\r\n%b\r\n" % (len(block), block))
            if stream is not None:
                connected.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # it answered before it had read everything: the answer says why

    def _connect(self) -> socket.socket:
        match self.address:
            case UnixAddress(path=path):
                return _connect_unix(path, self._connect_timeout)
            case TcpAddress() as address:
                return _connect_tcp(address, self._connect_timeout)


def _connect_unix(path: StrPath, timeout: float) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(timeout)
    try:
        connected.connect(os.fspath(path))
    except PermissionError as error:
        connected.close()
        raise Forbidden(
            f"no permission on the daemon's socket {path}: use sudo, or join the socket's group"
        ) from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connected.close()
        raise NotListening(
            f"no daemon listens on unix://{path}: start it with 'hybrid daemon'"
        ) from error
    except OSError as error:
        connected.close()
        raise Unavailable(f"cannot connect to unix://{path}: {error}") from error
    connected.settimeout(None)
    return connected


def _connect_tcp(address: TcpAddress, timeout: float) -> socket.socket:
    try:
        plain = socket.create_connection((address.host, address.port), timeout)
        plain.settimeout(None)
        if not address.certificates:
            return plain
        import ssl

        ca, cert, key = (f"{address.certificates}/{name}.pem" for name in ("ca", "cert", "key"))
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(cert, key)
        return context.wrap_socket(plain, server_hostname=address.host)
    except ConnectionRefusedError as error:
        raise NotListening(f"no daemon listens on {address}") from error
    except OSError as error:
        raise Unavailable(f"cannot connect to {address}: {error}") from error


def _target(path: str, query: Query | None) -> str:
    target = quote(path, safe="/:@%")
    fields = {name: _text(value) for name, value in (query or {}).items() if value is not None}
    if not fields:
        return target
    from urllib.parse import urlencode  # slow to load, and seldom needed

    return f"{target}?{urlencode(fields)}"


def _text(value: str | int | bool) -> str:
    return ("1" if value else "0") if isinstance(value, bool) else str(value)


def _number(text: str, base: int) -> int:
    try:
        number = int(text.strip(), base)
    except ValueError:
        number = -1
    if number < 0:
        raise Unavailable(f"the daemon's answer is malformed: {text[:40]!r} is not a number")
    return number
