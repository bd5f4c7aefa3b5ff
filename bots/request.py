"""What every run of a Bot starts from and ends with. Both values travel as JSON between web server and worker."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Final, Literal

import orjson

from bots.egress import Exchange
from bots.sandbox.api import LogLine

Trigger = Literal["execute", "subscription", "cron", "pre-commit", "webhook"]
InputKind = Literal["json", "text", "hl7"]

CREDENTIALS: Final = frozenset({"authorization", "proxy-authorization", "cookie"})
"""Headers that are not kept when a request is."""


@dataclass(frozen=True, slots=True)
class ExecutionRequest:
    """One run to do, of any kind.

    Attributes:
        project: id of the Bot's Project.
        bot_id: id of the Bot.
        trigger: what asks for the run.
        received: when it was asked for; for a Subscription the time of the change. ``AuditEvent.period.start``.
        trace_id: follows the run through everything it causes.
        input: ``event.input``: a JSON value, or the text of an HL7 v2 message.
        input_kind: how ``input`` is handed to the handler.
        content_type: ``event.contentType``, as received.
        headers: ``event.headers``; None leaves the field out.
        requester: Reference of the caller's profile, for ``event.requester`` and the AuditEvent.
        caller: id of the caller's ProjectMembership, for runAsUser and for Bots without a membership; with a Cron the one it runs
            on behalf of.
        depth: how many runs lie between this one and a request from outside.
        fresh: version of the Bot and number of the deployment the asker has seen; the run uses no older ones.
        subscription_id, interaction, resource, version_id: the Subscription, and the change it hears about
            (``resource`` as ``Type/id``).
        previous: ``event.previous``, the version before that change; None leaves the field out.
        attempt: 1 for the first.
        job_id: the AsyncJob whose output the result becomes.
        definition: of a custom operation with a job: the OperationDefinition's output parameters, ``{"parameter": […]}``.
        as_caller: the Bot acts as the caller, whatever it says itself.
        answer_number: under which the answer is kept for requests with the same Idempotency-Key.
        streaming: the caller takes an answer in parts (``Accept: text/event-stream``).
        replay_of: id of the run this one repeats.
        value_only: the answer's body is to be what the handler returned, as JSON (empty for nothing), for a custom operation.
    """

    project: str
    bot_id: str
    trigger: Trigger
    received: datetime
    trace_id: str
    input: Any = None
    input_kind: InputKind = "json"
    content_type: str | None = None
    headers: Mapping[str, str] | None = None
    requester: dict[str, Any] | None = None
    caller: str | None = None
    depth: int = 0
    fresh: tuple[str, int] | None = None
    subscription_id: str | None = None
    interaction: str | None = None
    resource: str | None = None
    version_id: str | None = None
    previous: dict[str, Any] | None = None
    attempt: int = 1
    value_only: bool = False
    job_id: str | None = None
    definition: dict[str, Any] | None = None
    as_caller: bool = False
    answer_number: int | None = None
    replay_of: str | None = None
    streaming: bool = False

    def with_input(self, resource: dict[str, Any]) -> ExecutionRequest:
        """The same run with a stored resource as input."""
        return replace(self, input=resource, input_kind="json")

    def without_credentials(self) -> ExecutionRequest:
        """The same run as it may be kept: ``event.headers`` without what lets somebody in."""
        if self.headers is None:
            return self
        kept = {name: value for name, value in self.headers.items() if name.lower() not in CREDENTIALS}
        return replace(self, headers=kept)

    def encode(self) -> bytes:
        """Return the request as JSON."""
        return orjson.dumps(self)

    @classmethod
    def decode(cls, data: bytes | str) -> ExecutionRequest:
        """The reverse of :meth:`encode`, also of requests that another version has kept."""
        found = orjson.loads(data)
        values = {each.name: found[each.name] for each in fields(cls) if each.name in found}
        values["received"] = datetime.fromisoformat(values["received"])
        if values.get("fresh") is not None:
            values["fresh"] = tuple(values["fresh"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """How a run went, and the HTTP answer that belongs to it.

    Attributes:
        ok: the Bot did its work: no exception, no refusal, no OperationOutcome that is not ok.
        status, content_type, headers, body: the answer, as ``execute.md`` §6 maps it. Never a 5xx by itself.
        log: the Bot's console, in order.
        log_text: the same as text, with the error if there was one: ``AuditEvent.outcomeDesc`` before it is cut.
        failure: None, ``refused`` (could not be run), ``skipped`` (left out on purpose), a failure kind of the sandbox (``code``, ``timeout``, ``memory``,
            ``startup``, ``crash``, ``input``, ``output``), or ``outcome`` (the Bot returned an OperationOutcome that is not ok).
        kind: what ``failure`` does not tell: why the run was refused (``not-deployed``, ``no-membership``, ``not-enabled``, ``loop``),
            or ``access`` when an AccessPolicy kept the Bot from something.
        duration_ms: time inside the sandbox.
        audit_event_id: id of the AuditEvent; None when the Bot keeps none for such a run.
        deployment_number: the deployment that ran; None when there is none.
        exchanges: what it sent to other servers.
        output: the parameters of ``AsyncJob.output``; None unless the request names a job.
    """

    ok: bool
    status: int
    content_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    log: tuple[LogLine, ...] = ()
    log_text: str = ""
    failure: str | None = None
    duration_ms: float = 0.0
    audit_event_id: str | None = None
    deployment_number: int | None = None
    exchanges: tuple[Exchange, ...] = ()
    output: list[dict[str, Any]] | None = None
    kind: str | None = None

    @classmethod
    def skipped(cls, text: str) -> ExecutionResult:
        """The result of a run that was left out on purpose and leaves no AuditEvent."""
        return cls(False, 200, "text/plain", b"", log_text=text, failure="skipped")

    def encode(self) -> bytes:
        """Return the result as JSON; a body that is no UTF-8 text goes as base64."""
        return orjson.dumps(self, default=_bytes)

    @classmethod
    def decode(cls, data: bytes | str) -> ExecutionResult:
        """The reverse of :meth:`encode`."""
        values = orjson.loads(data)
        body = values["body"]
        values["body"] = body.encode() if isinstance(body, str) else base64.b64decode(body["base64"])
        values["log"] = tuple(LogLine(**line) for line in values["log"])
        values["exchanges"] = tuple(Exchange(**each) for each in values["exchanges"])
        return cls(**values)


def _bytes(value: Any) -> Any:
    if not isinstance(value, bytes):
        raise TypeError(type(value).__name__)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
