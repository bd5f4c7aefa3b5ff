"""The words of the sandbox: what goes in, what comes out, what a bot asks for in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Language = Literal["javascript", "python"]
Runtime = Literal["javascript", "python", "native"]
"""What runs in a process: ``python`` is Pyodide inside Deno, ``native`` a CPython that only the system's layers confine."""
Module = Literal["esm", "commonjs"]
InputKind = Literal["json", "text", "hl7"]
Failure = Literal["code", "timeout", "memory", "startup", "crash", "input", "output", "cancelled"]
ValueKind = Literal["undefined", "null", "boolean", "number", "string", "object", "binary", "hl7", "response"]

DEFAULT_MEMORY_MB = 128


@dataclass(frozen=True, slots=True)
class Program:
    """Code that is ready to run.

    ``key`` says who may share a process: (project, bot, deployment, identity) or finer. Two programs with the same key
    must be the same code run as the same identity; programs with different keys never meet in one process.
    """

    key: tuple[str, ...]
    code: str
    """As :func:`bots.sandbox.api.transpile` made it."""
    filename: str
    """The name that stack traces show."""
    language: Language = "javascript"
    module: Module = "esm"
    """For JavaScript only."""
    native: bool = False
    """For Python only: run in CPython, for code that the operator trusts."""
    wheels: tuple[bytes, ...] = field(default=(), repr=False)
    """For Python only: packages it can import."""

    @property
    def runtime(self) -> Runtime:
        """What runs it."""
        return "native" if self.native and self.language == "python" else self.language


@dataclass(frozen=True, slots=True)
class StreamPart:
    """A piece of an answer that the bot sends while it runs (``event.responseStream``)."""

    kind: Literal["start", "write", "end"]
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    """Of ``start``; as the bot set them: not to be believed."""
    body: bytes = b""
    """Of ``write``."""


OnPart = Callable[[StreamPart, Callable[[], bool]], None]
"""Takes a part; may wait, and then the bot waits too, but no longer than until the function says that the call is over."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a bot's handler."""

    program: Program
    event: Mapping[str, Any]
    """The event of the handler as JSON: bot, contentType, input, secrets, headers, requester, traceId …"""
    base_url: str
    """Base URL of the server, with a slash at the end: what the bot's client is built with."""
    timeout: float
    """Seconds from the start of the call until the process is killed."""
    input_kind: InputKind = "json"
    """``hl7`` gives the handler a message made from the text ``event["input"]``: an Hl7Message, or one of Python's hl7."""
    memory_mb: int = DEFAULT_MEMORY_MB
    """Limit of the JavaScript heap, or of what a Python bot adds to its interpreter, in MiB."""
    profile: Mapping[str, Any] | None = None
    """The resource that ``medplum.getProfile()`` answers with: the profile of the identity."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What ``process.env`` (``os.environ``) holds besides what the runtime puts there."""
    on_part: OnPart | None = None
    """Takes the parts of an answer that is streamed. None: the bot cannot stream."""
    client_headers: Mapping[str, str] = field(default_factory=dict)
    """Headers the bot's client sends with each of its requests unless the bot sets them itself."""


@dataclass(frozen=True, slots=True)
class HostRequest:
    """What the bot's client or ``fetch`` asked the host for. Everything in it was chosen by the bot: do not trust it."""

    method: str
    url: str
    """As the bot wrote it, absolute; to the own server if it begins with ``Invocation.base_url``."""
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes
    redirect: str = "follow"
    """What to do with a redirect, as ``fetch`` says: ``follow``, ``manual`` or ``error``."""


@dataclass(frozen=True, slots=True)
class HostResponse:
    """The host's answer to a :class:`HostRequest`."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str | None = None
    """Refuses the request: ``fetch`` rejects with a TypeError that says this; status, headers and body are not used."""


@dataclass(frozen=True, slots=True)
class HostPart:
    """A part of an answer that comes in parts: first its ``head``, then pieces of the body, then the ``end``."""

    head: int | None = None
    """The status; None but in the first part."""
    headers: Sequence[tuple[str, str]] = ()
    url: str = ""
    redirected: bool = False
    body: bytes = b""
    end: bool = False
    error: str | None = None
    """With ``end``: why there is no answer, or no more of it."""


class HostStream(Protocol):
    """An answer made by another thread while the bot goes on."""

    def begin(self, ready: Callable[[], None]) -> None:
        """Start. ``ready``, which may be called from any thread, says that there is something to :meth:`take`."""

    def take(self) -> Sequence[HostPart]:
        """Return the parts that have come since the last call."""

    def cancel(self) -> None:
        """Nobody wants the answer any more."""


Respond = Callable[[HostRequest], HostResponse | HostStream]


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a bot's console."""

    level: str
    """The method of the console: ``debug``, ``log``, ``info``, ``warn`` or ``error``."""
    offset_ms: float
    """Milliseconds since the call began."""
    text: str


@dataclass(frozen=True, slots=True)
class Result:
    """How a call ended.

    ============  ======================================================================================================
    ``failure``   meaning
    ============  ======================================================================================================
    ``None``      the handler returned a value (``ok``)
    ``code``      the handler threw, the code does not load or has no handler, or it returned a failed OperationOutcome
    ``input``     the input could not be made into what the handler expects (HL7)
    ``output``    the returned value cannot be sent: a function, a cycle, too large …
    ``timeout``   killed at the time limit
    ``memory``    more memory than allowed
    ``crash``     the process ended, or sent something that is not of the protocol, and was killed
    ``startup``   no process could be started: the server's fault, not the bot's, and worth another try
    ``cancelled`` ended from outside, see :class:`~bots.sandbox.stop.Stop`
    ============  ======================================================================================================
    """

    ok: bool
    failure: Failure | None = None
    value: Any = None
    """The returned value: JSON, ``bytes`` for ``binary``, the ER7 text for ``hl7``, the body as ``bytes`` for ``response``."""
    value_json: bytes = b""
    """The value as JSON text exactly as JavaScript wrote it (so numbers look as there); empty without a value or for
    ``binary``."""
    value_kind: ValueKind = "undefined"
    response_status: int | None = None
    """Status of an HTTP answer that the bot has made itself (``response``): 200 to 599."""
    response_headers: tuple[tuple[str, str], ...] = ()
    """Its headers as the bot set them: not to be believed."""
    outcome: dict[str, Any] | None = None
    """The OperationOutcome that was returned or thrown."""
    error: str | None = None
    """What went wrong: the message of what was thrown, or a sentence; None if ``ok`` or if ``outcome`` was returned. It is
    not in the log."""
    stack: str | None = None
    """The stack of what was thrown, in the words of the source file."""
    log: tuple[LogLine, ...] = ()
    duration_ms: float = 0.0
    peak_memory_bytes: int | None = None
    """Most resident memory the process has had; None if it ended by itself, or where the system does not tell."""
    warm: bool = False
    """The process had run this program before."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the operating system's confinement, see :mod:`bots.sandbox.confinement`."""

    name: str
    active: bool
    detail: str
    """For people: what it does here, or why it is missing."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in code. ``line`` and ``column`` (in UTF-16 units, as editors count) begin
    with 1; both are 0 where the place is not known."""

    line: int
    column: int
    text: str


@dataclass(frozen=True, slots=True)
class Transpiled:
    """Code ready to be put into a :class:`Program`."""

    code: str
    module: Module
    imports: tuple[str, ...] = ()
    """Modules that its ``import`` statements name."""
