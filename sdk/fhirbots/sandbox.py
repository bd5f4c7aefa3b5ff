"""The process of a Python Bot: frames from the host, and to the host, on a pipe.

A frame is ``u32 length of JSON, u32 length of body`` (big-endian), the JSON, the body. ``invoke`` runs the handler (the first
one brings the code), ``check`` only loads the code, ``response`` answers a request of the client. The host's side, and what
each field means, is ``bots/sandbox/process.py`` of the server; the process is confined from outside, nothing here is a wall.

The same file runs in Pyodide, where JavaScript carries the bytes, and in a confined CPython.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import random
import struct
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from fhirbots import handler as handlers
from fhirbots.client import MedplumClient
from fhirbots.event import BotEvent, parse_hl7
from fhirbots.fetch import current_transport
from fhirbots.handler import Handler
from fhirbots.streaming import Part, ResponseStream, written_out
from fhirbots.sync_client import SyncMedplumClient
from fhirbots.transport import RefusedError, Response

Header = dict[str, Any]
Run = Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]
"""Runs a coroutine in the event loop of this process."""

RESULT_BYTES = 16 * 1024 * 1024
BODY_BYTES = 32 * 1024 * 1024  # what the host takes, see process.py
HEADER_CHARS = 1024 * 1024

_HEAD_LINES = 1000
_HEAD_CHARS = 131072
_TAIL_LINES = 100
_TAIL_CHARS = 32768
_LINE_CHARS = 16384
_TAIL_PERIOD = 250.0  # ms between two snapshots of a flood's tail
_ENDED = "This call of the Bot has ended: nothing it left running can send requests any more."
_HEAD = struct.Struct(">II")
_SMALL = 1 << 12
_BLOCK = 1 << 20
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


# The pipe -------------------------------------------------------------------------------------------------------------


class Pipe:
    """Frames on two descriptors. The locks are for Bots with threads."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._received = b""  # beyond the frames that were taken
        self._lock = threading.Lock()
        self.asking = threading.Lock()

    def read(self) -> tuple[Header, bytes] | None:
        """The next frame; None when the host has closed the pipe."""
        head = self._read(_HEAD.size)
        if head is None:
            return None
        json_length, body_length = _HEAD.unpack(head)
        data, body = self._read(json_length), self._read(body_length)
        if data is None or body is None:
            return None
        return _decode(data.decode()), body

    def _read(self, length: int) -> bytes | None:
        parts, left = [self._received], length - len(self._received)
        while left > 0:  # small frames come whole with their first read, which is what reading costs
            data = os.read(self._reading, min(max(left, _SMALL), _BLOCK))
            if not data:
                return None
            parts.append(data)
            left -= len(data)
        data = b"".join(parts) if len(parts) > 1 else parts[0]
        self._received = data[length:]
        return data[:length]

    def write(self, header: Header, body: bytes = b"") -> None:
        """Send a frame, waiting until the pipe has taken it: a Bot in an endless loop has still sent its log."""
        data = _encode(header).encode("utf-8", "replace")
        frame = _HEAD.pack(len(data), len(body)) + data + body
        with self._lock:
            written = os.write(self._writing, frame)
            if written < len(frame):
                rest = memoryview(frame)[written:]
                while rest:
                    rest = rest[os.write(self._writing, rest) :]


# The log --------------------------------------------------------------------------------------------------------------


class Log:
    """The log of one call. A flood is cut: the first and the last lines are kept, with their number between."""

    def __init__(self, pipe: Pipe, call: int) -> None:
        self._pipe = pipe
        self._call = call
        self._started = time.perf_counter()
        self._lines = 0
        self._chars = 0
        self._tail: deque[tuple[str, float, str]] = deque()
        self._tail_chars = 0
        self._skipped = 0
        self._snapshot = 0.0
        self.closed = False

    def write(self, level: str, text: str) -> None:
        """Add a line; ``level`` is debug, log, info, warn or error."""
        if self.closed:
            return
        if len(text) > _LINE_CHARS:
            text = f"{text[:_LINE_CHARS]}… ({len(text) - _LINE_CHARS} more characters left out)"
        offset = (time.perf_counter() - self._started) * 1000
        if self._lines < _HEAD_LINES and self._chars + len(text) <= _HEAD_CHARS:
            self._lines += 1
            self._chars += len(text)
            self._pipe.write(
                {"type": "log", "call": self._call, "level": level, "offset": offset, "text": text}
            )
            return
        self._lines = _HEAD_LINES  # the head is closed, also to a short line after a long one
        self._tail.append((level, offset, text))
        self._tail_chars += len(text)
        while len(self._tail) > _TAIL_LINES or self._tail_chars > _TAIL_CHARS:
            self._tail_chars -= len(self._tail.popleft()[2])
            self._skipped += 1
        if offset - self._snapshot > _TAIL_PERIOD:
            self._snapshot = offset
            self.flush()

    def flush(self) -> None:
        """Tell the host the present tail of a log that was cut; a later tail replaces an earlier one."""
        if self._tail:
            self._pipe.write(
                {"type": "tail", "call": self._call, "skipped": self._skipped, "lines": list(self._tail)}
            )


class _Stream(io.TextIOBase):
    """``sys.stdout`` and ``sys.stderr`` of a Bot: each line becomes a line of the log."""

    def __init__(self, process: Process, level: str) -> None:
        self._process = process
        self._level = level
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._process.log(self._level, line)
        if len(self._line) > _LINE_CHARS:
            self.finish()
        return len(text)

    def finish(self) -> None:
        """Log what was written without a line end."""
        if self._line:
            line, self._line = self._line, ""
            self._process.log(self._level, line)


class _LogHandler(logging.Handler):
    """Takes what a Bot logs by :mod:`logging`."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        level = "debug" if record.levelno < logging.INFO else "info"
        if record.levelno >= logging.WARNING:
            level = "warn" if record.levelno < logging.ERROR else "error"
        try:
            self._process.log(level, self.format(record))
        except Exception:  # noqa: BLE001 - a bad format string must not end the Bot
            self._process.log("error", f"A log record cannot be shown: {record.msg!r} {record.args!r}")


# Calls ----------------------------------------------------------------------------------------------------------------


class Call:
    """One call of the handler, and the way out for its requests until it ends."""

    def __init__(self, pipe: Pipe, number: int) -> None:
        self.pipe = pipe
        self.number = number
        self.log = Log(pipe, number)
        self.closed = False
        self._requests = 0

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        """See :class:`~fhirbots.transport.SyncTransport`. Blocks: the host answers one request after the other anyway."""
        if body and len(body) > BODY_BYTES:
            raise RefusedError(
                f"The request has a body of {len(body)} bytes; at most {BODY_BYTES} can be sent."
            )
        pairs = [[name, str(value)] for name, value in headers.items()]
        if len(url) + sum(len(name) + len(value) for name, value in pairs) > HEADER_CHARS:
            raise RefusedError(
                f"The request's address and headers are longer than {HEADER_CHARS} characters."
            )
        with self.pipe.asking:
            if self.closed:
                raise RefusedError(_ENDED)
            self._requests += 1
            number = self._requests
            self.pipe.write(
                {
                    "type": "request",
                    "call": self.number,
                    "id": number,
                    "method": method,
                    "url": url,
                    "headers": pairs,
                },
                body or b"",
            )
            return self._answer(number)

    def _answer(self, number: int) -> Response:
        """Wait for the answer of a request: in one frame, or in parts where it comes from another server."""
        status, headers, parts = 0, {}, []
        while True:
            frame = self.pipe.read()
            if frame is None:
                os._exit(0)  # the host is gone
            header, content = frame
            if header["type"] not in ("response", "part") or header["id"] != number:
                continue
            if header.get("error"):
                raise RefusedError(header["error"])
            if "status" in header:
                status = header["status"]
                headers = {name.lower(): value for name, value in header["headers"]}
            parts.append(content)
            if header["type"] == "response" or header.get("end"):
                return Response(status, headers, b"".join(parts))

    def close(self) -> None:
        """Nothing to give back."""


class _Awaited:
    """The way out for a client whose methods are awaited."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        return self._call.send(method, url, headers, body)

    async def aclose(self) -> None:
        pass


class _Streamed(ResponseStream):
    """Sends the parts to the host, until the call ends."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def _send(
        self, part: Part, status: int = 200, headers: list[tuple[str, str]] | None = None, body: bytes = b""
    ) -> None:
        if self._call.closed:
            raise RuntimeError("This call of the Bot has ended: its response cannot be written any more.")
        more = {"status": status, "headers": headers} if part == "start" else {}
        self._call.pipe.write({"type": "stream", "call": self._call.number, "op": part, **more}, body)


class Process:
    """What the process does from its start to its end."""

    def __init__(self, pipe: Pipe, run: Run) -> None:
        self._pipe = pipe
        self._run = run
        self._call: Call | None = None
        self._handler: Handler | None = None
        self._streams = (_Stream(self, "log"), _Stream(self, "error"))
        self._variables: dict[str, str] = {}

    def log(self, level: str, text: str) -> None:
        """Add a line to the log of the running call."""
        if self._call is not None and not self._call.closed:
            self._call.log.write(level, text)

    async def serve(self) -> None:
        """Answer frames until the host closes the pipe."""
        self._capture()
        for name in ("_", "LD_LIBRARY_PATH", "PYTHONINSPECT"):  # of the machine that made the snapshot
            os.environ.pop(name, None)
        random.seed()  # a snapshot of memory has every generator in the same state
        self._pipe.write({"type": "ready"})
        while (frame := self._pipe.read()) is not None:
            header, body = frame
            if header["type"] == "invoke":
                await self._invoke(header, body)
            elif header["type"] == "check":
                self._check(header, body)
            elif header["type"] not in ("response", "part"):  # of a request whose call is over
                os._exit(70)

    def _capture(self) -> None:
        stdout, stderr = self._streams
        sys.stdout = sys.__stdout__ = stdout  # type: ignore[assignment,misc]  # not to be touched is the pipe itself
        sys.stderr = sys.__stderr__ = stderr  # type: ignore[assignment,misc]  # as above
        sys.stdin = sys.__stdin__ = io.StringIO()  # type: ignore[assignment,misc]  # as above
        logging.basicConfig(level=logging.DEBUG, handlers=[_LogHandler(self)], format="%(message)s")
        logging.getLogger("asyncio").setLevel(logging.WARNING)

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            self.log("warn", f"{filename}:{lineno}: {category.__name__}: {message}")

        warnings.showwarning = show

    @contextmanager
    def _begin(self, number: int) -> Iterator[Call]:
        call = self._call = Call(self._pipe, number)
        token = current_transport.set(call)
        try:
            yield call
        finally:
            current_transport.reset(token)

    def _finish(self, call: Call, result: Header, body: bytes = b"") -> None:
        for stream in self._streams:
            stream.finish()
        call.closed = call.log.closed = True
        call.log.flush()
        self._pipe.write({"type": "result", "call": call.number, **result}, body)

    async def _invoke(self, header: Header, body: bytes) -> None:
        for name in self._variables:
            os.environ.pop(name, None)
        self._variables = dict(header.get("env") or {})
        os.environ.update(self._variables)
        with self._begin(header["call"]) as call:
            try:
                if "program" in header:
                    self._handler = written_out(_load(header["program"], body))
                event = header["event"]
                if header.get("inputKind") == "hl7" and event.get("input"):
                    try:
                        event["input"] = parse_hl7(event["input"])
                    except ValueError as error:
                        text = f"The input could not be parsed as an HL7 v2 message: {error}"
                        self._finish(call, {"ok": False, "failure": "input", "error": text})
                        return
                if header.get("streams"):
                    event["responseStream"] = _Streamed(call)
                value = await self._handle(call, header, BotEvent(event))
                result, answer = _describe(value)
            except BaseException as error:  # noqa: BLE001 - whatever the Bot raises is its answer
                result, answer = _describe_error(error), b""
            self._finish(call, result, answer)

    async def _handle(self, call: Call, header: Header, event: BotEvent) -> Any:
        assert self._handler is not None
        headers = dict(header.get("clientHeaders") or {})
        if event.trace_id is not None:
            headers |= {"x-trace-id": event.trace_id, "traceparent": event.trace_id}
        options: dict[str, Any] = {"profile": header.get("profile"), "headers": headers}
        if not handlers.is_async(self._handler):
            value = self._handler(SyncMedplumClient(header["baseUrl"], transport=call, **options), event)
            if not hasattr(value, "__await__"):
                return value
            coroutine = _await(value)
        else:
            client = MedplumClient(header["baseUrl"], transport=_Awaited(call), **options)
            coroutine = _await(self._handler(client, event))
        raised, value = await self._run(coroutine)
        if raised is not None:
            raise raised
        return value

    def _check(self, header: Header, body: bytes) -> None:
        filename = header["program"]["filename"]
        with self._begin(header["call"]) as call:
            try:
                _load(header["program"], body)
            except BaseException as error:  # noqa: BLE001 - whatever the Bot raises is its problem
                result = _describe_error(error)
                line, column = handlers.place_of(error, filename)
                result["stack"] = f"    at {filename}:{line}:{column}" if line else None
                self._finish(call, result)
            else:
                self._finish(call, {"ok": True, "kind": "undefined"})


def _load(program: Header, body: bytes) -> Handler:
    """The handler of a program: its code, and behind it the wheels, whose sizes the program tells."""
    sizes = program.get("wheels", ())
    at = len(body) - sum(sizes)
    code = body[:at]
    if sizes:
        from fhirbots.wheels import install  # reads zip archives: most Bots have no wheels

        wheels = []
        for size in sizes:
            wheels.append(body[at : at + size])
            at += size
        install(wheels)
    return handlers.load_handler(code.decode(), program["filename"])


async def _await(value: Awaitable[Any]) -> tuple[BaseException | None, Any]:
    """(what it raised, what it returned): SystemExit must not pass through the event loop, which it would end."""
    try:
        return None, await value
    except BaseException as error:  # noqa: BLE001 - it is raised again by who asked
        return error, None
    finally:
        current = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not current and task.get_name() != "serve":
                task.cancel()  # between calls a Bot does nothing


def _describe(value: Any) -> tuple[Header, bytes]:
    """[header of the result, its body] for what the handler returned."""
    try:
        answer = handlers.answer_of(value)
    except (TypeError, ValueError) as error:
        return {"ok": False, "failure": "output", "error": f"The result cannot be sent as JSON: {error}"}, b""
    if len(answer.body) > RESULT_BYTES:
        text = f"The result has {len(answer.body)} bytes; at most {RESULT_BYTES} can be sent."
        return {"ok": False, "failure": "output", "error": text}, b""
    if answer.response is not None:
        pairs = [[name, str(value)] for name, value in answer.response.headers.items()]
        status = answer.response.status
        return {"ok": True, "kind": "response", "status": status, "headers": pairs}, answer.body
    header: Header = {"ok": not answer.failed, "kind": answer.kind, "outcome": answer.outcome}
    return header | ({"failure": "code"} if answer.failed else {}), answer.body


def _describe_error(error: BaseException) -> Header:
    result: Header = {"ok": False, "failure": "code"}
    try:
        outcome = handlers.outcome_of(error)
        if outcome is not None:
            result["outcome"] = outcome
        result["error"] = handlers.message_of(error) + _hint(error)
        if isinstance(error, MemoryError):
            result["failure"] = "memory"
            result["error"] = "The Bot used more memory than it may have."
        result["stack"] = handlers.stack_of(error)
    except Exception as second:  # noqa: BLE001 - a method of what it raised raises in turn
        result["error"] = f"The Bot raised something that cannot be shown: {type(second).__name__}"
    return result


def _hint(error: BaseException) -> str:
    """What to do about a module that is missing."""
    if not isinstance(error, ModuleNotFoundError) or not str(error).startswith("No module named"):
        return ""
    if (error.name or "").partition(".")[0] in sys.stdlib_module_names:
        return ": this part of Python's library is not in the sandbox"
    return ": Bots import Python's library, fhirbots, hl7 and the wheels of their project (`fhirbots wheel add FILE`)"


# Starting -------------------------------------------------------------------------------------------------------------


_processes: list[Process] = []


def note(level: str, text: str) -> None:
    """Add a line to the log: what JavaScript writes to its console."""
    for process in _processes:
        process.log(level, text)


async def serve_in_loop(device: str) -> None:
    """Serve inside a running event loop, which is how Pyodide does it; ``device`` is the pipe to the host."""
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()
    if current is not None:
        current.set_name("serve")

    async def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        task: asyncio.Task[Any]
        if sys.version_info >= (3, 12):  # what never has to wait costs no turn of the loop
            task = asyncio.Task(coroutine, loop=loop, eager_start=True)
        else:
            task = loop.create_task(coroutine)
        return task.result() if task.done() else await task

    descriptor = os.open(device, os.O_RDWR)
    process = Process(Pipe(descriptor, descriptor), run)
    _processes.append(process)
    await process.serve()


def main() -> None:
    """Serve as a CPython process; the event loop runs only while a handler is awaited."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    pipe = Pipe(os.dup(0), os.dup(1))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # what writes past sys.stdout does not break the protocol
        os.dup2(nowhere, descriptor)

    async def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return loop.run_until_complete(coroutine)

    serving = Process(pipe, run).serve()
    try:
        serving.send(None)
    except StopIteration:
        os._exit(0)
    raise AssertionError("nothing here waits for anything but the pipe")


if __name__ == "__main__":
    main()
