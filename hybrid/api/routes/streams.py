"""Attach, exec and logs: bytes between clients and processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from aiohttp import web

from hybrid.api import parse, query, status, times
from hybrid.api.detach import DetachKeys
from hybrid.api.fields import Fields
from hybrid.api.middleware import HEADERS, version_of
from hybrid.api.respond import add, begin_stream, body_of, empty, engine_of, json_response
from hybrid.api.stream import MULTIPLEXED, RAW, Front, Hijacked, answer_head, frame, front_of
from hybrid.engine.attach import Input
from hybrid.engine.execs import Exec
from hybrid.engine.output import FOLLOW_RESTARTS
from hybrid.errors import HybridError, InvalidInput, Unavailable, Unsupported
from hybrid.wire import journal

MULTIPLEXED_SINCE = (1, 42)
Batches = AsyncIterator[list[journal.Record]]


def setup(app: web.Application) -> None:
    add(app, "POST", "/containers/{id}/attach", attach)
    add(app, "GET", "/containers/{id}/logs", logs)
    add(app, "POST", "/containers/{id}/exec", create_exec)
    add(app, "POST", "/exec/{id}/start", start_exec)
    add(app, "POST", "/exec/{id}/resize", resize_exec)
    add(app, "GET", "/exec/{id}/json", inspect_exec)


def _content_type(request: web.Request, *, tty: bool) -> str:
    return RAW if tty or version_of(request) < MULTIPLEXED_SINCE else MULTIPLEXED


# --- attach ---


async def attach(request: web.Request) -> web.StreamResponse:
    engine, parameters = engine_of(request), request.query
    try:
        keys = DetachKeys.parse(parameters.get("detachKeys", ""))
        replay = query.flag(parameters, "logs")
        one = engine.containers.find(request.match_info["id"])
        attachment = engine.containers.attach(request.match_info["id"], replay=replay)
    except HybridError as error:
        # Docker answers here in plain text (its connection is taken over already).
        code = status.of(error)
        return web.Response(status=code, body=error.message.encode() + b"\n", content_type=RAW)
    spec = one.record.spec
    chosen = _streams(parameters)
    stdin = query.flag(parameters, "stdin") and spec.stdin
    front = front_of(request)
    front.hijack()
    await front.write(answer_head(request, _content_type(request, tty=spec.tty), HEADERS))
    engine.containers.publish(one.record, "attach", {})
    detached = await _converse(
        front,
        attachment.output(follow=query.flag(parameters, "stream"))
        if chosen
        else _nothing(one.next_exit),
        attachment.input() if stdin else None,
        tty=spec.tty,
        chosen=chosen,
        keys=keys if spec.tty else None,
    )
    if detached:
        engine.containers.publish(one.record, "detach", {})
    return Hijacked()


def _streams(parameters: Mapping[str, str]) -> set[int]:
    chosen = set()
    if query.flag(parameters, "stdout"):
        chosen.add(journal.STDOUT)
    if query.flag(parameters, "stderr"):
        chosen |= {journal.STDERR, journal.DROPPED}
    return chosen


async def _nothing(next_exit: Callable[[], asyncio.Future[int]]) -> Batches:
    """No output is wanted: the connection lasts as long as the run."""
    await next_exit()
    yield []


async def _converse(
    front: Front,
    output: Batches,
    stdin: Input | None,
    *,
    tty: bool,
    chosen: set[int],
    keys: DetachKeys | None,
) -> bool:
    """Moves bytes both ways until the process or the client ends; whether the client typed the detach keys."""
    sending = asyncio.create_task(_send(front, output, tty=tty, chosen=chosen))
    receiving = asyncio.create_task(_receive(front, stdin, keys))
    gone = asyncio.create_task(front.gone())
    tasks = {sending, receiving, gone}
    detached = False
    try:
        waiting = tasks
        while waiting and not sending.done() and not gone.done() and not detached:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            detached = receiving in done and not receiving.exception() and receiving.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return detached


async def _send(front: Front, output: Batches, *, tty: bool, chosen: set[int]) -> None:
    with contextlib.suppress(Unavailable):
        async for records in output:
            data = b"".join(frame(one, tty=tty) for one in records if tty or one.stream in chosen)
            if data:
                await front.write(data)


async def _receive(front: Front, stdin: Input | None, keys: DetachKeys | None) -> bool:
    """Feeds stdin; True if the detach keys were typed. A broken stdin is no reason to stop the output."""
    with contextlib.suppress(HybridError):
        while data := await front.read():
            if stdin is None:
                continue
            if keys is not None:
                data, found = keys.feed(data)
                if found:
                    return True
            if data:
                await stdin.write(data)
        if stdin is not None:
            await stdin.close()
    return False


# --- exec ---


async def create_exec(request: web.Request) -> web.Response:
    engine = engine_of(request)
    container = engine.containers.find(request.match_info["id"])
    spec = parse.exec_spec(await body_of(request, needed=True))
    return json_response({"Id": engine.execs.create(container, spec).record.id}, 201)


async def start_exec(request: web.Request) -> web.StreamResponse:
    engine = engine_of(request)
    body = Fields(await body_of(request))
    detach, size = body.flag("Detach"), body.raw("ConsoleSize")
    body.flag("Tty")
    body.finish()
    one = engine.execs.find(request.match_info["id"])
    if one.record.started:
        await engine.execs.start(one)  # raises: it has run already
    where = tuple(size) if isinstance(size, list) and len(size) == 2 else None
    if detach:
        await engine.execs.start(one, size=where, attached=False)
        engine.execs.detach(one)
        return empty(200)
    keys = DetachKeys.parse(one.record.spec.detach_keys)
    front = front_of(request)
    front.hijack()
    tty = one.record.spec.tty
    await front.write(answer_head(request, _content_type(request, tty=tty), HEADERS))
    try:
        await engine.execs.start(one, size=where)
    except HybridError as error:
        # The head is sent: the error can only be told in the stream, as Docker does.
        with contextlib.suppress(Unavailable):
            text = f"{error.message}\r\n".encode()
            await front.write(frame(journal.Record(0, journal.STDERR, text), tty=tty))
        return Hijacked()
    async with engine.execs.attached(one):
        spec = one.record.spec
        chosen = {journal.STDOUT} if spec.attach_stdout else set()
        if spec.attach_stderr:
            chosen |= {journal.STDERR, journal.DROPPED}
        await _converse(
            front,
            _to_the_end(one),
            one.input() if spec.attach_stdin else None,
            tty=tty,
            chosen=chosen,
            keys=keys if tty else None,
        )
    return Hijacked()


async def _to_the_end(one: Exec) -> Batches:
    """All its output; then its exit code is known, so that a client that sees the end can ask for it."""
    async for records in one.output():
        yield records
    await one.ended.wait()


async def resize_exec(request: web.Request) -> web.Response:
    rows, columns = query.integer(request.query, "h"), query.integer(request.query, "w")
    if rows is None or columns is None or not (0 <= rows < 65536 and 0 <= columns < 65536):
        raise InvalidInput("invalid terminal size: h and w must be small whole numbers")
    engine = engine_of(request)
    await engine.execs.resize(engine.execs.find(request.match_info["id"]), rows, columns)
    return empty(200)


async def inspect_exec(request: web.Request) -> web.Response:
    record = engine_of(request).execs.find(request.match_info["id"]).record
    spec = record.spec
    return json_response(
        {
            "ID": record.id,
            "Running": record.running,
            "ExitCode": record.exit_code,
            "ProcessConfig": {
                "tty": spec.tty,
                "entrypoint": spec.command[0],
                "arguments": spec.command[1:],
                "privileged": spec.privileged,
                **({"user": spec.user} if spec.user else {}),
            },
            "OpenStdin": spec.attach_stdin,
            "OpenStderr": spec.attach_stderr,
            "OpenStdout": spec.attach_stdout,
            "CanRemove": not record.running,
            "ContainerID": record.container,
            "DetachKeys": spec.detach_keys,
            "Pid": record.pid,
        }
    )


# --- logs ---


async def logs(request: web.Request) -> web.StreamResponse:
    engine, parameters = engine_of(request), request.query
    chosen = _streams(parameters)
    if not chosen:
        raise InvalidInput("Bad parameters: you must choose at least one stream")
    one = engine.containers.find(request.match_info["id"])
    spec = one.record.spec
    if spec.log_driver == "none":
        raise Unsupported("configured logging driver does not support reading")
    since, until = (query.seconds(parameters.get(name, "")) for name in ("since", "until"))
    tail = parameters.get("tail", "all")
    place, skip = one.log.tail(int(tail), chosen) if tail.isdecimal() else (0, 0)
    follow = FOLLOW_RESTARTS if query.flag(parameters, "follow") else None
    stamped = query.flag(parameters, "timestamps")
    details = query.flag(parameters, "details")
    response = await begin_stream(request, _content_type(request, tty=spec.tty))
    lines = Lines(stamped, details)
    async for records in one.log.records(place, follow=follow):
        data = bytearray()
        for record in records:
            if record.stream not in chosen or (since is not None and record.time_ns < since):
                continue
            if until is not None and record.time_ns > until:
                await response.write(bytes(data))
                return response
            if skip:
                rest = b"".join(record.data.splitlines(keepends=True)[skip:])
                record, skip = journal.Record(record.time_ns, record.stream, rest), 0
            data += frame(lines.stamp(record), tty=spec.tty)
        if data:
            await response.write(bytes(data))
    return response


class Lines:
    """Puts a time before each line, where asked; knows, for each stream, whether a line is under way."""

    def __init__(self, stamped: bool, details: bool) -> None:
        self._stamped = stamped
        self._details = details
        self._inside: set[int] = set()

    def stamp(self, record: journal.Record) -> journal.Record:
        if not self._stamped and not self._details:
            return record
        prefix = (times.fixed(record.time_ns) if self._stamped else "").encode() + b" "
        parts = record.data.splitlines(keepends=True)
        result = bytearray()
        for part in parts:
            if record.stream not in self._inside:
                result += prefix
            result += part
            if part.endswith(b"\n"):
                self._inside.discard(record.stream)
            else:
                self._inside.add(record.stream)
        return journal.Record(record.time_ns, record.stream, bytes(result))
