"""One bot process: starting it, talking to it in frames, freezing it, ending it.

A frame is ``u32 json_length, u32 body_length, json, body`` (big-endian). The process sends ``ready`` once, then for each
call any number of ``log``, ``tail`` and ``request`` frames and one ``result``. Bot code can write to the pipe as well, so
nothing in a frame is believed beyond what the bot may do anyway: whose authority a request has is bound to the process.
"""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import orjson

from bots.sandbox.model import (
    Failure,
    HostRequest,
    HostResponse,
    HostStream,
    Invocation,
    Layer,
    LogLine,
    OnPart,
    Program,
    Respond,
    Result,
    StreamPart,
)
from bots.sandbox.placement import command, environment, place

MAX_HEADER = 4 * 1024 * 1024
MAX_BODY = 32 * 1024 * 1024
MAX_WAITING = 2 * MAX_BODY
"""Bytes of requests that may wait for their turn; and while answers wait to be taken, no further request is served."""
MAX_LOG_CHARS = 1024 * 1024
"""Log text accepted in one call. The runtime sends less than a third of it; more is a forgery."""
MAX_OFFSET_MS = 1e9
"""Of a log line from the beginning of its call; no call lasts as long."""
STARTUP_SECONDS = 30.0
PRIVATE_MEMORY_MB = 640
"""Private memory of a process (RLIMIT_DATA) beyond its JavaScript heap: V8 reserves about 550 MB of it without use."""
PYTHON_MEMORY_MB = 772
"""The same for Python: Pyodide needs about 710 MB before the first call."""

MAX_STREAMS = 100
"""Answers of one call that may come in parts at the same time."""

_ANSWERS_WAITING = 1024 * 1024
_HEAD = struct.Struct(">II")
_FREEZES = sys.platform == "linux"
"""A frozen process cannot notice that its host is gone; only Linux kills it then."""


class ProcessEndedError(Exception):
    """The process closed its pipe: it ended, or was killed."""


class ProtocolError(Exception):
    """The process sent something that is not a frame of this protocol."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it came: a JSON object with a ``type``, and a body."""

    header: dict[str, Any]
    body: bytes


class Launcher:
    """Starts bot processes. Call :meth:`start` from a thread that lives as long as they shall.

    ``permissions`` are options of ``deno run``. Bots have none; the tests of the operating system's layers give all.
    """

    def __init__(
        self, deno: Path, runtime: Path, permissions: Sequence[str] = (), *, python: bool = False
    ) -> None:
        """``python`` says that the runtime is the one of :func:`~bots.sandbox.build.build_python`.

        Raises :class:`OSError` when the files cannot be placed, see :func:`~bots.sandbox.placement.place`.
        """
        self._source = (deno, runtime)
        self._python = python
        self._placement = place(deno, runtime, reads=python)
        self._permissions = permissions

    def start(self, memory_mb: int) -> BotProcess:
        """A new process whose JavaScript heap is limited to ``memory_mb`` MiB. Raises :class:`OSError`."""
        if not self._placement.exists():
            self._placement = place(*self._source, reads=self._python)
        placement = self._placement
        deno = command(placement.deno, placement.runtime, memory_mb, self._permissions, reads=self._python)
        return BotProcess(self._spawn(memory_mb, deno), memory_mb)

    def _spawn(self, memory_mb: int, program: Sequence[str]) -> subprocess.Popen[bytes]:
        placement = self._placement
        executable = (str(placement.deno), *placement.loader)
        readable = (str(placement.runtime), *placement.libraries)
        private = PYTHON_MEMORY_MB if self._python else PRIVATE_MEMORY_MB
        memory = (private + memory_mb) << 20
        return launch(memory, executable, readable, program, environment(placement.cache))


def confinement_report() -> list[Layer]:
    """The layers of the operating system around bot processes, as a process that just put them on itself says.

    Takes about 20 ms. Raises :class:`OSError` when no process can be confined at all.
    """
    with launch(PRIVATE_MEMORY_MB << 20, (), (), (), {}) as process:
        output, error = process.communicate(timeout=STARTUP_SECONDS)
    if process.returncode:
        raise OSError(
            f"The confinement of bot processes does not work: {error.decode(errors='replace').strip()}"
        )
    lines = [line.split("\t") for line in output.decode().splitlines()]
    return [Layer(name, active == "+", detail) for name, active, detail in lines]


def launch(
    memory: int,
    executable: Sequence[str],
    readable: Sequence[str],
    program: Sequence[str],
    environment: Mapping[str, str],
    address_space: int = 0,
) -> subprocess.Popen[bytes]:
    """Start :mod:`bots.sandbox.launch`; what the arguments mean is said there."""
    launch = str(Path(__file__).with_name("launch.py"))
    rules = (str(os.getpid()), f"{memory}/{address_space}", ":".join(executable), ":".join(readable))
    return subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-I", "-S", launch, *rules, *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is the host's business
    )


class BotProcess:
    """A running process. One thread at a time talks to it; :meth:`kill` may come from any thread."""

    def __init__(self, process: subprocess.Popen[bytes], memory_mb: int) -> None:
        self._process = process
        self._signals = threading.Lock()
        self.memory_mb = memory_mb
        self.program: tuple[str, ...] | None = None
        """Key of the program it has loaded."""
        self.expired = False
        """Killed at a deadline."""
        self.stopped = False
        """Killed because nobody wants its result any more."""
        self.resident = 0
        """Bytes of memory it had at the end of its last call; 0 where the system does not tell."""
        pipes = (process.stdin, process.stdout, process.stderr)
        self._stdin, self._stdout, self._stderr = (pipe.fileno() for pipe in pipes if pipe)
        for descriptor in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(descriptor, False)
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._poll.register(self._stderr, select.POLLIN)
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._complaints = b""  # the end of what it wrote to stderr
        self._ready = False
        self._frozen = False
        self._over = False  # it closed a pipe
        self._call = 0
        self._peak: int | None = None
        self._streams: dict[int, HostStream] = {}  # by the id of the request
        self._bell: _Bell | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    # State ------------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Let it run, and wait until its runtime has started. Raises :class:`OSError` if it cannot be used."""
        if self._frozen:
            self._frozen = False
            self._signal(signal.SIGCONT)
        if not self._ready:
            self._await_ready()
        if self._incoming or self._stdout in dict(self._poll.poll(0)):
            raise OSError("A bot process ended, or spoke unasked, while it was idle.")

    def freeze(self) -> None:
        """Stop it until :meth:`wake`: between calls a bot does nothing."""
        if _FREEZES:
            self._frozen = True
            self._signal(signal.SIGSTOP)

    def expire(self) -> None:
        """Kill it because its time is up."""
        self.expired = True
        self._peak = self._memory()
        self.kill()

    def stop(self) -> None:
        """Kill it because nobody wants its result any more."""
        self.stopped = True
        self.kill()

    def kill(self) -> None:
        """Kill it at once; :meth:`close` must follow."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it, wait until it is gone, and give its resources back."""
        self._reap()
        if self._bell:
            self._bell.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with suppress(OSError):  # a pipe whose other end is gone may complain
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with self._signals:  # else its id could be another process's in between
            if self._process.returncode is None:
                os.kill(self._process.pid, number)

    def _reap(self) -> int:
        """Kill and collect it: its return code as :mod:`subprocess` counts."""
        with self._signals:
            if self._process.returncode is None:
                os.kill(self._process.pid, signal.SIGKILL)
                # The peak of memory it was collected with would be the host's own: it counts from before the exec.
                _, status = os.waitpid(self._process.pid, 0)
                self._process.returncode = os.waitstatus_to_exitcode(status)
            return self._process.returncode

    # Frames -----------------------------------------------------------------------------------------------------------

    def _send(self, data: bytes, body: bytes = b"") -> None:
        """Send a frame: its JSON and its body."""
        self._outgoing += _HEAD.pack(len(data), len(body))
        self._outgoing += data
        self._outgoing += body
        self._write()

    def _write(self) -> None:
        """Write what the pipe takes. The rest goes while frames are awaited, so that two full pipes never wait for each
        other."""
        try:
            while self._outgoing:
                written = os.write(self._stdin, self._outgoing)
                del self._outgoing[:written]
        except BlockingIOError:
            self._poll.register(self._stdin, select.POLLOUT)
            return
        except BrokenPipeError:
            self._over = True
            self._outgoing.clear()
        with suppress(KeyError):
            self._poll.unregister(self._stdin)

    def _receive(self, timeout: float | None = None) -> Frame:
        """The next frame. Raises :class:`ProcessEndedError`, :class:`ProtocolError`, :class:`TimeoutError`."""
        while True:
            # A process that asks and does not listen would fill the host's memory with answers.
            frame = self._take_frame() if len(self._outgoing) <= _ANSWERS_WAITING else None
            if frame:
                return frame
            if self._over:
                raise ProcessEndedError
            if len(self._incoming) > MAX_WAITING:
                raise ProtocolError("more requests at once than are allowed")
            events = self._poll.poll(None if timeout is None else timeout * 1000)
            if not events:
                raise TimeoutError
            self._handle(descriptor for descriptor, _ in events)
            if self._streams:
                self._pass_on()

    def _handle(self, descriptors: Iterable[int]) -> None:
        """Do what the descriptors are ready for."""
        for descriptor in descriptors:
            if descriptor == self._stdin:
                self._write()
            elif descriptor == self._stdout:
                self._read()
            elif descriptor == self._stderr:
                self._read_complaints()
            elif self._bell:
                self._bell.hush()

    def _pass_on(self) -> None:
        """Send what has come of answers that come in parts; what the bot does not take waits where it is made."""
        for number, stream in list(self._streams.items()):
            if len(self._outgoing) > _ANSWERS_WAITING or self._over:
                return
            for part in stream.take():
                header: dict[str, Any] = {"type": "part", "id": number}
                if part.head is not None:
                    header |= {"status": part.head, "headers": part.headers, "url": part.url}
                    header["redirected"] = part.redirected
                if part.end:
                    del self._streams[number]
                    header["end"] = True
                    if part.error is not None:
                        header["error"] = part.error
                self._send(orjson.dumps(header), part.body)

    def _read(self) -> None:
        try:
            data = os.read(self._stdout, 262144)
        except BlockingIOError:
            return
        if not data:
            self._over = True
            self._outgoing.clear()
        self._incoming += data

    def _read_complaints(self) -> None:
        try:
            data = os.read(self._stderr, 65536)
        except BlockingIOError:
            return
        if not data:
            self._poll.unregister(self._stderr)
        self._complaints = (self._complaints + data)[-8192:]

    def _take_frame(self) -> Frame | None:
        if len(self._incoming) < 8:
            return None
        header_size, body_size = _HEAD.unpack_from(self._incoming)
        if header_size > MAX_HEADER or body_size > MAX_BODY:
            raise ProtocolError("a frame that is too large")
        end = 8 + header_size + body_size
        if len(self._incoming) < end:
            return None
        with memoryview(self._incoming) as view:
            try:
                header = orjson.loads(view[8 : 8 + header_size])
            except orjson.JSONDecodeError as error:
                raise ProtocolError("a frame that is not JSON") from error
            body = bytes(view[8 + header_size : end])
        del self._incoming[:end]
        if not isinstance(header, dict):
            raise ProtocolError("a frame that is not an object")
        return Frame(header, body)

    # Calls ------------------------------------------------------------------------------------------------------------

    def _await_ready(self) -> None:
        try:
            frame = self._receive(STARTUP_SECONDS)
        except (ProcessEndedError, ProtocolError, TimeoutError) as error:
            self._reap()
            self._drain_complaints()
            complaint = self._complaints.decode(errors="replace").strip() or type(error).__name__
            raise OSError(f"A bot process did not start: {complaint}") from error
        if frame.header != {"type": "ready"}:
            raise OSError("A bot process did not start: its runtime is not the one of this version.")
        self._ready = True

    def invoke(self, invocation: Invocation, respond: Respond, waiting: Callable[[bool], None]) -> Result:
        """Run the handler. ``waiting(True)`` and ``waiting(False)`` enclose the time the bot waits for ``respond``.

        Whatever ``respond`` raises is raised; the process can then only be closed.
        """
        program = invocation.program
        warm = self.program == program.key
        header = {
            "type": "invoke",
            "event": invocation.event,
            "inputKind": invocation.input_kind,
            "baseUrl": invocation.base_url,
            "profile": invocation.profile,
            "env": invocation.environment,
            "clientHeaders": invocation.client_headers,
            "streams": invocation.on_part is not None,
        }
        call = _Call(respond, waiting, time.monotonic(), warm)
        call.on_part = invocation.on_part
        return self._run(header, program, invocation, call)

    def check(self, program: Program, timeout: float) -> Result:
        """Load the code without running the handler."""

        def refuse(_: HostRequest) -> HostResponse:
            return HostResponse(error="Code that runs while the bot is loaded cannot send requests.")

        call = _Call(refuse, lambda _: None, time.monotonic(), warm=False)
        return self._run({"type": "check"}, program, None, call, timeout)

    def _run(
        self,
        header: dict[str, Any],
        program: Program,
        invocation: Invocation | None,
        call: _Call,
        timeout: float = 0.0,
    ) -> Result:
        timeout = invocation.timeout if invocation else timeout
        self._call += 1
        header["call"] = self._call
        code = b""
        if not call.warm:
            header["program"] = {"filename": program.filename, "module": program.module}
            code = program.code.encode("utf-8", "replace")
            if program.wheels:
                header["program"]["wheels"] = [len(wheel) for wheel in program.wheels]
                code = b"".join((code, *program.wheels))
        try:
            data = orjson.dumps(header)
        except TypeError as error:  # a number beyond 64 bits, half a surrogate pair: nothing was sent yet
            return call.failed("input", f"The event cannot be sent to the bot: {error}.", None)
        self.program = program.key
        try:
            self._send(data, code)
            return self._converse(call)
        except ProcessEndedError:
            return self._ended(call, timeout)
        except ProtocolError as error:
            self.kill()
            return call.failed("crash", f"The bot's process was stopped: it sent {error}.", self._memory())
        finally:
            for stream in self._streams.values():
                stream.cancel()
            self._streams.clear()

    def _converse(self, call: _Call) -> Result:
        """Take the frames of a call until its result. Raises :class:`ProcessEndedError` and :class:`ProtocolError`."""
        at_host = False  # it waits for other servers
        try:
            while True:
                if at_host is not bool(self._streams):
                    at_host = not at_host
                    call.waiting(at_host)
                frame = self._receive()
                if frame.header.get("call") != self._call:
                    raise ProtocolError("a frame of no present call")
                match frame.header.get("type"):
                    case "request":
                        if not (
                            self.expired or self.stopped or self._over
                        ):  # what it asked before its end is not done after it
                            self._answer(frame, call)
                    case "abort":
                        self._abort(frame)
                    case "stream":
                        self._stream(frame, call)
                    case "result":
                        return self._result(frame, call)
                    case _:
                        call.note(frame)
        finally:
            if at_host:
                call.waiting(False)

    def _answer(self, frame: Frame, call: _Call) -> None:
        header = frame.header
        match header:
            case {"id": int(number), "method": str(method), "url": str(url), "headers": list(pairs)}:
                headers = _headers(pairs)
            case _:
                raise ProtocolError("a request that is none")
        redirect = header.get("redirect", "follow")
        if redirect not in ("follow", "manual", "error") or number in self._streams:
            raise ProtocolError("a request that is none")
        call.waiting(True)
        try:
            response = call.respond(HostRequest(method, url, headers, frame.body, redirect))
        finally:
            call.waiting(bool(self._streams))
        if not isinstance(response, HostResponse):
            if len(self._streams) < MAX_STREAMS:
                self._begin(number, response)
                return
            response.cancel()
            response = HostResponse(error=f"More than {MAX_STREAMS} requests at the same time")
        if response.error is not None:
            self._send(orjson.dumps({"type": "response", "id": number, "error": response.error}))
        else:
            answer = {"type": "response", "id": number, "status": response.status}
            answer["headers"] = list(response.headers.items())
            self._send(orjson.dumps(answer), response.body)

    def _stream(self, frame: Frame, call: _Call) -> None:
        """Hand on a part of an answer that is streamed."""
        if call.on_part is None:
            raise ProtocolError("a stream nobody wants")
        # The order is checked here, or bytes of the body could pass for the checked headers of the start.
        match frame.header.get("op"), call.streaming:
            case "start", None:
                part = StreamPart("start", *_response(frame.header))
                call.streaming = True
            case "write", True:
                part = StreamPart("write", body=frame.body)
            case "end", True:
                part = StreamPart("end")
                call.streaming = False
            case _:
                raise ProtocolError("a part of a stream that is none")
        call.waiting(True)
        try:
            call.on_part(part, lambda: self.expired or self.stopped)
        finally:
            call.waiting(False)

    def _begin(self, number: int, stream: HostStream) -> None:
        """Start an answer that comes in parts, while the bot goes on."""
        if self._bell is None:
            self._bell = _Bell()
            self._poll.register(self._bell.descriptor, select.POLLIN)
        self._streams[number] = stream
        stream.begin(self._bell.ring)

    def _abort(self, frame: Frame) -> None:
        """The bot does not want an answer any more."""
        match frame.header:
            case {"id": int(number)}:
                stream = self._streams.pop(number, None)
            case _:
                raise ProtocolError("an abort of nothing")
        if stream:
            stream.cancel()

    def _result(self, frame: Frame, call: _Call) -> Result:
        header = frame.header
        match header:
            case {"ok": True, "kind": str(kind)} if kind in _KINDS:
                pass
            case {"ok": False, "failure": "code" | "memory" | "input" | "output"}:
                pass
            case _:
                raise ProtocolError("a result that is none")
        kind = header.get("kind", "undefined")
        status: int | None = None
        headers: tuple[tuple[str, str], ...] = ()
        if kind == "response":
            status, headers = _response(header)
        is_raw = kind in ("binary", "response")
        try:
            value = frame.body if is_raw else orjson.loads(frame.body) if frame.body else None
        except orjson.JSONDecodeError as error:  # it quotes nothing
            why = "it is nested too deeply" if "depth" in error.msg else error.msg
            return call.failed("output", f"The result cannot be sent as JSON: {why}.", self._memory())
        is_returned = isinstance(value, dict) and value.get("resourceType") == "OperationOutcome"
        outcome = value if is_returned else header.get("outcome")
        if is_returned and not _is_outcome(outcome):
            return call.failed(
                "output",
                "The Bot returned an OperationOutcome that is none: it needs a list of issues.",
                self._memory(),
            )
        return Result(
            ok=header["ok"],
            failure=header.get("failure"),
            value=value,
            value_json=b"" if is_raw else frame.body,
            value_kind=kind,
            response_status=status,
            response_headers=headers,
            outcome=outcome if _is_outcome(outcome) else None,
            error=_text(header.get("error")),
            stack=_text(header.get("stack")),
            log=call.lines(),
            duration_ms=call.elapsed(),
            peak_memory_bytes=self._memory(),
            warm=call.warm,
        )

    def _ended(self, call: _Call, timeout: float) -> Result:
        code = self._reap()
        self._drain_complaints()
        if self.stopped:
            return call.failed("cancelled", "The run was cancelled.", self._peak)
        if self.expired:
            return call.failed(
                "timeout", f"The bot was stopped at its time limit of {timeout:g} s.", self._peak
            )
        complaint = self._complaints.decode(errors="replace")
        if re.search(r"out of memory|memory allocation of|Cannot allocate memory", complaint, re.IGNORECASE):
            return call.failed(
                "memory", f"The bot used more than its {self.memory_mb} MB of memory.", self._peak
            )
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return call.failed(
            "crash", f"The bot's process ended unexpectedly ({how}).", self._peak, complaint.strip()
        )

    def _drain_complaints(self) -> None:
        with suppress(OSError):
            while data := os.read(self._stderr, 65536):
                self._complaints = (self._complaints + data)[-8192:]

    def _memory(self) -> int | None:
        """Peak of resident memory in bytes, while it lives and where the system tells. Notes the present one too."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_bytes()
        except OSError:
            return None
        peak, now = re.search(rb"VmHWM:\s*(\d+) kB", status), re.search(rb"VmRSS:\s*(\d+) kB", status)
        self.resident = int(now[1]) * 1024 if now else 0
        return int(peak[1]) * 1024 if peak else None


class _Bell:
    """A pipe that other threads ring to wake the one that polls."""

    def __init__(self) -> None:
        self.descriptor, self._rope = os.pipe()
        self._lock = threading.Lock()  # else a late ring could go to whoever has the descriptor by then
        self._closed = False
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._rope, False)

    def ring(self) -> None:
        with self._lock:
            if not self._closed:
                with suppress(BlockingIOError):  # it is ringing already
                    os.write(self._rope, b"!")

    def hush(self) -> None:
        with suppress(BlockingIOError):
            os.read(self.descriptor, 4096)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.descriptor)
                os.close(self._rope)


_KINDS = frozenset(
    ("undefined", "null", "boolean", "number", "string", "object", "binary", "hl7", "response")
)
_LEVELS = frozenset(("debug", "log", "info", "warn", "error"))


class _Call:
    """What one call has gathered so far."""

    def __init__(self, respond: Respond, waiting: Callable[[bool], None], started: float, warm: bool) -> None:
        self.respond = respond
        self.waiting = waiting
        self.warm = warm
        self.on_part: OnPart | None = None
        self.streaming: bool | None = None
        """None before the answer's first part, False behind its last."""
        self._started = started
        self._head: list[LogLine] = []
        self._tail: list[LogLine] = []
        self._skipped = 0
        self._chars = 0

    def elapsed(self) -> float:
        return (time.monotonic() - self._started) * 1000

    def note(self, frame: Frame) -> None:
        """Keep a ``log`` or ``tail`` frame; anything else is a :class:`ProtocolError`."""
        match frame.header:
            case {"type": "log", "level": level, "offset": offset, "text": text}:
                self._head.append(self._line(level, offset, text))
            case {"type": "tail", "skipped": int(skipped), "lines": list(lines)}:
                self._chars -= sum(len(line.text) for line in self._tail)
                self._tail = [
                    self._line(*line) for line in lines if isinstance(line, list) and len(line) == 3
                ]
                self._skipped = skipped
            case _:
                raise ProtocolError("a frame of no known type")
        if self._chars > MAX_LOG_CHARS:
            raise ProtocolError("more log than is allowed")

    def _line(self, level: object, offset: object, text: object) -> LogLine:
        if not (isinstance(level, str) and isinstance(offset, float | int) and isinstance(text, str)):
            raise ProtocolError("a log line that is none")
        if level not in _LEVELS:
            raise ProtocolError("a log line that is none")
        if not 0 <= offset <= MAX_OFFSET_MS:  # beyond, it is no moment that could be shown
            raise ProtocolError("a log line that is none")
        self._chars += len(text) + 16  # empty lines count too
        return LogLine(level, round(float(offset), 3), text)

    def lines(self) -> tuple[LogLine, ...]:
        """The log, with a line where some were left out."""
        if not self._skipped:
            return (*self._head, *self._tail)
        offset = self._tail[0].offset_ms if self._tail else 0.0
        gap = LogLine("warn", offset, f"… {self._skipped} more lines were left out here …")
        return (*self._head, gap, *self._tail)

    def failed(self, failure: Failure, error: str, peak: int | None, stack: str | None = None) -> Result:
        return Result(
            ok=False,
            failure=failure,
            error=error,
            stack=stack or None,
            log=self.lines(),
            duration_ms=self.elapsed(),
            peak_memory_bytes=peak,
            warm=self.warm,
        )


def _headers(pairs: list[Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for pair in pairs:
        match pair:
            case [str(name), str(value)]:
                name = name.lower()
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            case _:
                raise ProtocolError("a header that is none")
    return headers


def _response(header: dict[str, Any]) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Status and headers of an answer the bot has made itself."""
    match header:
        case {"status": int(status), "headers": list(pairs)} if 200 <= status <= 599 and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
            for pair in pairs
        ):
            return status, tuple((name, value) for name, value in pairs)
    raise ProtocolError("a response that is none")


def _is_outcome(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it is an OperationOutcome as far as those who read it rely on that."""
    match value:
        case {"resourceType": "OperationOutcome", "issue": [*issues]}:
            return isinstance(value.get("id", ""), str) and all(map(_is_issue, issues))
    return False


def _is_issue(value: Any) -> bool:
    match value:
        case {"details": details} if not isinstance(details, dict):
            return False
        case {"expression": expression} if not (
            isinstance(expression, list) and all(isinstance(each, str) for each in expression)
        ):
            return False
        case dict():
            texts = (value.get("code"), value.get("diagnostics"), (value.get("details") or {}).get("text"))
            return all(isinstance(each, str | None) for each in texts)
    return False


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
