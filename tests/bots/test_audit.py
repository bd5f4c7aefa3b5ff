"""The AuditEvent of a run: the table of shared/medplum/subscriptions-and-cron.md §7."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from bots.audit import MAX_OUTCOME_DESC, RUN, TRACING, Conclusion, audit_event, destinations, is_wanted
from bots.request import ExecutionRequest

BOT = {"resourceType": "Bot", "id": "b0", "name": "Greeter", "meta": {"versionId": "1"}}
RUN_AS = {"reference": "Bot/b0", "display": "Greeter"}
REQUEST = ExecutionRequest(
    project="p0",
    bot_id="b0",
    trigger="execute",
    received=datetime(2026, 11, 21, 7, 5, 0, 1500, UTC),
    trace_id="1b4e28ba-2fa1-41d2-883f-0016d3cca427",
    requester={"reference": "Practitioner/d1", "display": "Alice"},
)
DELIVERY = replace(
    REQUEST,
    trigger="subscription",
    subscription_id="s0",
    interaction="update",
    resource="Patient/p1",
    version_id="v2",
)
DONE = Conclusion(datetime(2026, 11, 21, 7, 5, 1, 0, UTC), None, "Hello world", 1.23456, 3)
FAILED = replace(DONE, failure="timeout", log_text="late", deployment_number=None)


def built(request: ExecutionRequest = REQUEST, conclusion: Conclusion = DONE, **more: Any) -> dict[str, Any]:
    return audit_event(request, conclusion, **{"bot": BOT, "run_as": RUN_AS, **more})


def parts(event: dict[str, Any], url: str) -> dict[str, Any]:
    (extension,) = [extension for extension in event["extension"] if extension["url"] == url]
    return {
        part["url"]: value for part in extension["extension"] for key, value in part.items() if key != "url"
    }


def test_run_on_request() -> None:
    event = built()
    assert event["type"] == {"system": "https://medplum.com/CodeSystem/audit-event", "code": "execute"}
    assert "action" not in event
    assert "subtype" not in event
    assert event["period"] == {"start": "2026-11-21T07:05:00.001Z", "end": "2026-11-21T07:05:01.000Z"}
    assert event["recorded"] == "2026-11-21T07:05:01.000Z"
    assert (event["outcome"], event["outcomeDesc"]) == ("0", "Hello world")
    assert event["agent"] == [
        {"who": {"reference": "Practitioner/d1", "display": "Alice"}, "requestor": True},
        {"who": {"reference": "Bot/b0", "display": "Greeter"}, "requestor": False},
    ]
    assert event["source"] == {"observer": {"reference": "Bot/b0", "display": "Greeter"}}
    assert event["entity"] == [{"what": RUN_AS, "role": {"code": "4", "display": "Domain"}}]
    assert parts(event, TRACING) == {"requestId": REQUEST.trace_id, "traceId": REQUEST.trace_id}
    assert parts(event, RUN) == {"trigger": "execute", "duration": 1.235, "deployment": 3}


def test_failed_run() -> None:
    event = built(conclusion=FAILED)
    assert event["outcome"] == "4"
    assert parts(event, RUN) == {"trigger": "execute", "duration": 1.235, "failure": "timeout"}


def test_run_for_a_subscription_names_bot_resource_and_subscription() -> None:
    entities = built(DELIVERY)["entity"]
    assert [entity["what"]["reference"] for entity in entities] == ["Bot/b0", "Patient/p1", "Subscription/s0"]
    assert [entity["role"]["code"] for entity in entities] == ["4", "1", "9"]
    assert entities[1]["detail"] == [
        {"type": "versionId", "valueString": "v2"},
        {"type": "interaction", "valueString": "update"},
    ]


@pytest.mark.parametrize(
    ("value", "references"),
    [
        ({"resourceType": "Task", "id": "t1"}, ["Bot/b0", "Task/t1"]),
        ({"resourceType": "Task"}, ["Bot/b0"]),
        ({"resourceType": "../x", "id": "t1"}, ["Bot/b0"]),
        ({"resourceType": "Task", "id": 7}, ["Bot/b0"]),
        ("text", ["Bot/b0"]),
        ([], ["Bot/b0"]),
    ],
)
def test_input_resource_is_an_entity(value: Any, references: list[str]) -> None:
    entities = built(replace(REQUEST, input=value))["entity"]
    assert [entity["what"]["reference"] for entity in entities] == references


def test_unknown_agents_are_left_open() -> None:
    event = built(replace(REQUEST, requester=None), run_as=None)
    assert event["agent"] == [{"requestor": True}, {"requestor": False}]


def test_later_attempts_are_counted() -> None:
    assert parts(built(replace(DELIVERY, attempt=2)), RUN)["attempt"] == 2


def test_long_log_keeps_its_end() -> None:
    event = built(conclusion=replace(DONE, log_text="a" * MAX_OUTCOME_DESC + "the end"))
    assert len(event["outcomeDesc"]) == MAX_OUTCOME_DESC
    assert event["outcomeDesc"].endswith("the end")


def test_log_is_cleaned_of_what_fhir_strings_must_not_hold() -> None:
    text = "\x1b[31mred\x1b[0m\x00\ttab\nline\ud800 \x07"
    assert built(conclusion=replace(DONE, log_text=text))["outcomeDesc"] == "red\ttab\nline"
    assert "outcomeDesc" not in built(conclusion=replace(DONE, log_text=" \n"))


def test_accounts_of_the_bot_are_taken_over() -> None:
    account = {"reference": "Organization/o1"}
    bot = BOT | {"meta": {"account": account, "accounts": [account], "versionId": "1"}}
    assert built(bot=bot)["meta"] == {"account": account, "accounts": [account]}


@pytest.mark.parametrize(
    ("trigger", "silent", "talking", "failing"),
    [
        (None, True, True, True),
        ("always", True, True, True),
        ("never", False, False, False),
        ("on-error", False, False, True),
        ("on-output", False, True, True),
    ],
)
def test_trigger_decides_whether_there_is_one(
    trigger: str | None, silent: bool, talking: bool, failing: bool
) -> None:
    bot = BOT | ({"auditEventTrigger": trigger} if trigger else {})
    assert is_wanted(bot, replace(DONE, log_text="")) is silent
    assert is_wanted(bot, DONE) is talking
    assert is_wanted(bot, FAILED) is failing


def test_destination_is_the_resource_unless_said_otherwise() -> None:
    assert destinations(BOT) == {"resource"}
    assert destinations(BOT | {"auditEventDestination": ["log"]}) == {"log"}
    assert destinations(BOT | {"auditEventDestination": ["log", "resource"]}) == {"log", "resource"}
