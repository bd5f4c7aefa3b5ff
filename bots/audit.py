"""The AuditEvent of a Bot's run (shared/medplum/subscriptions-and-cron.md §7). Pure.

Beyond Medplum's elements each AuditEvent of ours carries the extension :data:`RUN`, with the parts

* ``trigger`` (valueCode): ``execute``, ``subscription``, ``cron`` or ``pre-commit``;
* ``deployment`` (valuePositiveInt): number of the deployment that ran;
* ``duration`` (valueDecimal): milliseconds inside the sandbox;
* ``failure`` (valueCode): kind of failure, see ``ExecutionResult.failure``;
* ``attempt`` (valuePositiveInt): of a delivery, from its second attempt on;
* ``exchange``, once for each of the first :data:`MAX_EXCHANGES` requests to other servers: ``host``, ``method``, ``status``,
  ``duration`` in milliseconds, ``sent`` and ``received`` in bytes, ``error`` (valueCode, the kind of an EgressError);

and names the version and interaction of a Subscription's change in the ``detail`` of its entity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from bots.egress import Exchange
from bots.request import ExecutionRequest, ExecutionResult

MAX_OUTCOME_DESC: Final = 10_240
"""Characters of log text that are kept, from the end."""

MAX_EXCHANGES: Final = 20

RUN: Final = "urn:fhirbots:bot-run"
TRACING: Final = "https://medplum.com/fhir/StructureDefinition/tracing"

ALARM: Final = "alarm-"
"""Begins the trace of everything an AuditEvent sets off. Traces of clients are UUIDs, so nobody else can make one."""

_TYPE: Final = {"system": "https://medplum.com/CodeSystem/audit-event", "code": "execute"}
_ROLES: Final = {"Patient": ("1", "Patient"), "Subscription": ("9", "Subscriber")}
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]|[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What the AuditEvent says about the end of a run; the fields are those of ExecutionResult."""

    ended: datetime
    failure: str | None
    log_text: str
    duration_ms: float
    deployment_number: int | None
    exchanges: Sequence[Exchange] = ()


def is_wanted(bot: dict[str, Any], conclusion: Conclusion) -> bool:
    """Does ``Bot.auditEventTrigger`` ask for an AuditEvent of this run?"""
    trigger = bot.get("auditEventTrigger", "always")
    if trigger == "never":
        return False
    if trigger == "on-error":
        return conclusion.failure is not None
    if trigger == "on-output":
        return bool(conclusion.log_text)
    return True


def is_alarming(event: dict[str, Any], trace_id: str | None) -> bool:
    """May an AuditEvent set something off?

    Only if it tells of a failure, and not if it is itself the work of one that did: alarms about alarms would never end.

    Args:
        event: as :func:`audit_event` makes it, or that of a delivery.
        trace_id: of who says that it was written: the run it tells of, or whoever resends it.
    """
    if event.get("outcome", "0") == "0":
        return False
    own = (
        part.get("valueId")
        for extension in event.get("extension") or ()
        if extension.get("url") == TRACING
        for part in extension.get("extension") or ()
    )
    return not any(str(trace).startswith(ALARM) for trace in (trace_id, *own))


def destinations(bot: dict[str, Any]) -> frozenset[str]:
    """``Bot.auditEventDestination``: ``resource`` (the default), ``log``, or both."""
    return frozenset(bot.get("auditEventDestination") or ["resource"])


def audit_event(
    request: ExecutionRequest, conclusion: Conclusion, *, bot: dict[str, Any], run_as: dict[str, Any] | None
) -> dict[str, Any]:
    """Build the AuditEvent.

    Args:
        bot: the Bot as stored, or a stand-in with at least ``resourceType`` and ``id`` when it is gone.
        run_as: Reference of the profile the Bot acted as; None when that was never settled.
    """
    event: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "type": _TYPE,
        "period": {"start": instant(request.received), "end": instant(conclusion.ended)},
        "recorded": instant(conclusion.ended),
        "outcome": "0" if conclusion.failure is None else "4",
        "agent": [_agent(request.requester, requestor=True), _agent(run_as, requestor=False)],
        "source": {"observer": bot_reference(bot)},
        "entity": _entities(request, bot),
        "extension": [_tracing(request), _run(request, conclusion)],
    }
    text = clean_text(conclusion.log_text)[-MAX_OUTCOME_DESC:].strip()
    if text:
        event["outcomeDesc"] = text
    accounts = {name: bot["meta"][name] for name in ("account", "accounts") if name in bot.get("meta", {})}
    if accounts:
        event["meta"] = accounts
    return event


def log_line(
    event: dict[str, Any], id_: str, request: ExecutionRequest, result: ExecutionResult
) -> dict[str, Any]:
    """What is written for the destination ``log``: one JSON object for each run, made for machines that read logs."""
    return {
        "type": "bot-run",
        "run": id_,
        "project": request.project,
        "bot": request.bot_id,
        "trigger": request.trigger,
        "ended": event["recorded"],
        "ok": result.failure is None,
        "failure": result.kind or result.failure,
        "status": result.status,
        "durationMs": round(result.duration_ms, 3),
        "deployment": result.deployment_number,
        "attempt": request.attempt,
        "traceId": request.trace_id,
        "text": event.get("outcomeDesc", ""),
    }


def bot_reference(bot: dict[str, Any]) -> dict[str, str]:
    """Reference to a Bot, with its name where it has one."""
    reference = {"reference": f"Bot/{bot['id']}"}
    if bot.get("name"):
        reference["display"] = bot["name"]
    return reference


def clean_text(text: str) -> str:
    """Remove terminal colours and control characters, which FHIR strings must not hold."""
    return _CONTROL.sub("", text)


def _agent(who: dict[str, Any] | None, *, requestor: bool) -> dict[str, Any]:
    return {"who": who, "requestor": requestor} if who else {"requestor": requestor}


def _entities(request: ExecutionRequest, bot: dict[str, Any]) -> list[dict[str, Any]]:
    """Bot, input resource, Subscription: in this order."""
    entities = [_entity(bot_reference(bot))]
    resource = request.resource or _input_resource(request.input)
    if resource:
        entities.append(_entity({"reference": resource}) | _change(request))
    if request.subscription_id:
        entities.append(_entity({"reference": f"Subscription/{request.subscription_id}"}))
    return entities


def _entity(what: dict[str, str]) -> dict[str, Any]:
    code, display = _ROLES.get(what["reference"].partition("/")[0], ("4", "Domain"))
    return {"what": what, "role": {"code": code, "display": display}}


def _change(request: ExecutionRequest) -> dict[str, Any]:
    named = {"versionId": request.version_id, "interaction": request.interaction}
    details = [{"type": name, "valueString": value} for name, value in named.items() if value]
    return {"detail": details} if details else {}


def _input_resource(value: Any) -> str | None:
    """``Type/id`` of an input that is a resource with an id."""
    if not isinstance(value, dict):
        return None
    type_, id_ = value.get("resourceType"), value.get("id")
    if (
        isinstance(type_, str)
        and isinstance(id_, str)
        and type_.isalpha()
        and re.fullmatch(r"[\w.-]{1,64}", id_)
    ):
        return f"{type_}/{id_}"
    return None


def _tracing(request: ExecutionRequest) -> dict[str, Any]:
    # valueId allows letters, digits, "-" and "." up to 64 characters: all forms of trace id fit
    parts = [{"url": name, "valueId": request.trace_id} for name in ("requestId", "traceId")]
    return {"url": TRACING, "extension": parts}


def _run(request: ExecutionRequest, conclusion: Conclusion) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"url": "trigger", "valueCode": request.trigger},
        {"url": "duration", "valueDecimal": round(conclusion.duration_ms, 3)},
    ]
    if conclusion.deployment_number is not None:
        parts.append({"url": "deployment", "valuePositiveInt": conclusion.deployment_number})
    if conclusion.failure is not None:
        parts.append({"url": "failure", "valueCode": conclusion.failure})
    if request.attempt > 1:
        parts.append({"url": "attempt", "valuePositiveInt": request.attempt})
    parts += map(_exchange, conclusion.exchanges[:MAX_EXCHANGES])
    return {"url": RUN, "extension": parts}


def _exchange(exchange: Exchange) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"url": "host", "valueString": exchange.host or "?"},
        {"url": "method", "valueString": exchange.method},
        {"url": "duration", "valueDecimal": exchange.duration_ms},
        {"url": "sent", "valueUnsignedInt": exchange.sent},
        {"url": "received", "valueUnsignedInt": exchange.received},
    ]
    if exchange.status is not None:
        parts.append({"url": "status", "valueUnsignedInt": exchange.status})
    if exchange.error is not None:
        parts.append({"url": "error", "valueCode": exchange.error})
    return {"url": "exchange", "extension": parts}


def instant(moment: datetime) -> str:
    """A moment as FHIR writes it."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
