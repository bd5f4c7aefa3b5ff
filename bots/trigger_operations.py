"""Operations about what sets Bots off: schedules and deliveries.

========================================  ================================================================================
``GET Bot/{id}/$schedule``, ``Cron/…``    when it runs: in words, the next five moments, the last run, and what keeps it from running
``GET Bot/$schedule?cron=…&timezone=…``   the same of an expression that is not saved yet
``POST Bot/{id}/$run-now``, ``Cron/…``    run it now as its schedule would; the answer names the delivery
``GET Subscription/{id}/$deliveries``     its deliveries, newest first, of one ``state`` if that is given; also of a Bot's or Cron's schedule
``GET Subscription/$deliveries``          those of the whole project, for admins: ``?state=failed`` lists the dead letters
``POST Subscription/{id}/$replay``        carry out again: those named by ``delivery``, with ``paused=true`` what was skipped while it was
                                          off, else all that failed; for admins. Also on a Cron, and for the whole project
``POST {Type}/{id}/$resend``              let Subscriptions hear of the current version again; for admins
========================================  ================================================================================
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from bots import cron, subscriptions, tasks
from bots.models import Delivery
from bots.operations import json_or_parameters
from bots.selectors import ScheduleState, deliveries_page, plan_state, schedule_state
from bots.triggers import deliveries_replay, schedule_run_now
from fhirstore.api import (
    OperationRequest,
    all_ok,
    bad_request,
    read_input,
    register_operation,
)

Json = dict[str, Any]

SCHEDULED = ("Bot", "Cron")


def register() -> None:
    """Register the operations; called once at start-up."""
    register_operation("$schedule", schedule, types=SCHEDULED, instance=True, methods=("GET",))
    register_operation("$schedule", schedule_of_expression, types={"Bot"}, type=True, methods=("GET",))
    register_operation("$run-now", run_now, types=SCHEDULED, instance=True, methods=("POST",))
    owners = ("Subscription", *SCHEDULED)
    register_operation("$deliveries", list_deliveries, types=owners, instance=True, methods=("GET",))
    register_operation("$deliveries", list_deliveries, types={"Subscription"}, type=True, methods=("GET",))
    # a Bot's own $replay repeats one of its runs (bots.operations)
    register_operation("$replay", replay, types=("Subscription", "Cron"), instance=True, methods=("POST",))
    register_operation("$replay", replay, types={"Subscription"}, type=True, methods=("POST",))
    register_operation("$resend", resend, instance=True, methods=("POST",))


# --- schedules -------------------------------------------------------------------------------------------------------


def schedule(request: OperationRequest) -> Json:
    """``GET Bot/{id}/$schedule``: when the Bot runs by itself."""
    repository = request.repository
    state = schedule_state(repository, repository.read(request.type or "", request.id or "").resource)
    answer = _plan(state)
    answer.append({"name": "enabled", "valueBoolean": not state.problem})
    if state.problem:
        answer.append({"name": "problem", "valueString": state.problem})
    if state.last is not None:
        answer.append({"name": "lastRun", "part": delivery_parts(state.last)})
    return {"resourceType": "Parameters", "parameter": answer}


def schedule_of_expression(request: OperationRequest) -> Json:
    """``GET Bot/$schedule?cron=0 9 * * 1-5&timezone=Europe/Berlin``: what an expression means; 400 if it means nothing."""
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    plan = cron.plan_of_expression(query.get("cron", ""), query.get("timezone", ""))
    answer = _plan(plan_state(request.repository.identity.project, plan))
    return {"resourceType": "Parameters", "parameter": answer}


def run_now(request: OperationRequest) -> Json:
    """``POST Bot/{id}/$run-now``."""
    delivery = schedule_run_now(request.repository, request.type or "", request.id or "")
    return {"resourceType": "Parameters", "parameter": [{"name": "delivery", "valueString": str(delivery)}]}


def _plan(state: ScheduleState) -> list[Json]:
    if state.plan is None:
        return []
    described: list[Json] = [
        {"name": "expression", "valueString": state.plan.expression},
        {"name": "description", "valueString": state.description},
        {"name": "timeZone", "valueCode": state.zone},
        {"name": "overlap", "valueCode": state.plan.overlap},
        {"name": "missed", "valueCode": state.plan.missed},
    ]
    return described + [{"name": "next", "valueDateTime": moment.isoformat()} for moment in state.moments]


# --- deliveries ------------------------------------------------------------------------------------------------------


def list_deliveries(request: OperationRequest) -> Json:
    """``GET Subscription/{id}/$deliveries``: what became of events; 403 for the whole project unless the caller is admin."""
    query = read_input(request)
    state = query.text("state")
    if state is not None and state not in Delivery.State.values:
        raise bad_request(f"Unknown state {state!r}: one of {', '.join(Delivery.State.values)} is")
    rows, total = deliveries_page(
        request.repository,
        request.type or "",
        request.id,
        state=state,
        count=query.whole_number("_count", 20, lowest=0, highest=1000),
        offset=query.whole_number("_offset", 0, highest=10**6),
    )
    answer: list[Json] = [{"name": "total", "valueInteger": total}]
    answer += [
        {"name": "delivery", "part": delivery_parts(row, with_owner=request.id is None)} for row in rows
    ]
    return {"resourceType": "Parameters", "parameter": answer}


def replay(request: OperationRequest) -> Json:
    """``POST Subscription/{id}/$replay``."""
    given = read_input(request)
    texts = given.texts("delivery")
    if not all(text.isascii() and text.isdigit() and len(text) < 19 for text in texts):
        raise bad_request("delivery must be the id of a delivery, as $deliveries tells it")
    count = deliveries_replay(
        request.repository,
        request.type or "",
        request.id,
        ids=[int(text) for text in texts] if texts else None,
        paused=given.boolean("paused") is True,
    )
    return {"resourceType": "Parameters", "parameter": [{"name": "replayed", "valueInteger": count}]}


def resend(request: OperationRequest) -> Json:
    """``POST {Type}/{id}/$resend`` with ``subscription``, ``interaction`` and ``verbose``, plain or as Parameters."""
    body = json_or_parameters(request)
    interaction, subscription = body.get("interaction", "update"), body.get("subscription")
    if interaction not in ("create", "update", "delete"):
        raise bad_request("interaction must be create, update or delete", "interaction")
    if isinstance(subscription, dict):
        subscription = subscription.get("reference")
    if subscription is not None and not str(subscription).startswith("Subscription/"):
        raise bad_request("subscription must be a reference such as Subscription/123", "subscription")
    found = subscriptions.resend(
        request.repository,
        request.type or "",
        request.id or "",
        interaction=interaction,
        subscription_id=str(subscription).partition("/")[2] if subscription else None,
    )
    if found:
        tasks.ring_deliver()
    if body.get("verbose") is not True:
        return all_ok()
    heard = [
        {"name": "subscription", "valueReference": {"reference": f"Subscription/{each}"}} for each in found
    ]
    return {"resourceType": "Parameters"} | ({"parameter": heard} if heard else {})


def delivery_parts(delivery: Delivery, *, with_owner: bool = False) -> list[Json]:
    """A delivery as the parts of a parameter: ids, states and sentences, nothing of what was delivered."""
    parts: list[Json] = [
        {"name": "id", "valueString": str(delivery.pk)},
        {"name": "state", "valueCode": delivery.state},
        {
            "name": "resource",
            "valueReference": {"reference": f"{delivery.resource_type}/{delivery.resource_id}"},
        },
        {"name": "attempts", "valueInteger": delivery.attempts},
    ]
    for name, value in (("interaction", delivery.interaction), ("versionId", delivery.version_id)):
        if value:
            parts.append({"name": name, "valueCode" if name == "interaction" else "valueId": value})
    if with_owner:
        owner = (
            "Subscription" if delivery.trigger == Delivery.Trigger.SUBSCRIPTION else delivery.resource_type
        )
        parts.append(
            {"name": "owner", "valueReference": {"reference": f"{owner}/{delivery.subscription_id}"}}
        )
    moments = {
        "changed": delivery.changed,
        "due": delivery.due,
        "started": delivery.started,
        "finished": delivery.finished,
    }
    if delivery.state not in Delivery.OPEN:
        del moments["due"]
    parts += [{"name": name, "valueInstant": _instant(moment)} for name, moment in moments.items() if moment]
    if delivery.outcome:
        parts.append({"name": "outcome", "valueString": delivery.outcome})
    if delivery.audit_event_id:
        parts.append(
            {"name": "auditEvent", "valueReference": {"reference": f"AuditEvent/{delivery.audit_event_id}"}}
        )
    return parts


def _instant(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
