"""Alarms: Subscriptions on the AuditEvents of what failed, which set off nothing further themselves (docs/triggers.md)."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from bots.api import deliveries, subscription_state
from bots.execution import MAX_DEPTH
from bots.models import Delivery
from bots.subscriptions import ATTEMPTS_URL, PRE_COMMIT_URL
from fhirstore.api import connection
from tests.bots.conftest import Project, new_project, wait_until
from tests.bots.remote import running_remote
from tests.conftest import Server

FAIL = "exports.handler = async () => { throw new Error('no'); };"
TELL = "exports.handler = async (medplum, event) => { console.log(JSON.stringify(event.input)); };"
ONCE = [{"url": ATTEMPTS_URL, "valueInteger": 1}]


@pytest.fixture
def tag() -> str:
    return uuid.uuid4().hex


def patient(tag: str) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": "urn:test", "value": tag}]}


def failing(project: Project, code: str = FAIL) -> str:
    return project.bot(code, filename="a.cjs")


def alarm(project: Project, failing: str, code: str = TELL, criteria: str = "outcome=4,8,12") -> str:
    """Subscribe a Bot to what the AuditEvents tell of a Bot; returns the id of the Subscription."""
    bot = project.bot(code, filename="alarm.cjs")
    return str(project.subscribe(bot, f"AuditEvent?{criteria}&entity=Bot/{failing}", extension=ONCE)["id"])


def changes_of(event_id: str) -> int:
    with connection() as session:
        row = session.execute("SELECT count(*) FROM change WHERE resource_id = %s", (event_id,)).fetchone()
    assert row is not None
    return int(row[0])


def rest(project: Project) -> None:
    """Wait until everything written so far was dispatched and delivered."""

    def is_at_rest() -> bool:
        with connection() as session:
            row = session.execute("SELECT count(*) FROM change WHERE project = %s", (project.id,)).fetchone()
        busy = Delivery.objects.filter(project=project.id, state__in=("waiting", "running", "retrying"))
        return row == (0,) and not busy.exists()

    wait_until(is_at_rest)


def test_a_failed_run_is_the_input_of_the_alarm(project: Project, tag: str) -> None:
    bot = failing(project)
    alarms = alarm(project, bot)
    project.subscribe(bot, f"Patient?identifier=urn:test|{tag}", extension=ONCE)
    project.post("/fhir/R4/Patient", patient(tag))
    (run,) = project.audit_events(f"Subscription/{alarms}", 1)
    (failure,) = [each for each in project.audit_events(f"Bot/{bot}") if each["outcome"] == "4"]
    told = json.loads(run["outcomeDesc"])
    assert (told["resourceType"], told["id"], told["outcome"]) == ("AuditEvent", failure["id"], "4")
    assert run["outcome"] == "0"
    rest(project)
    assert len(deliveries(project.admin, alarms)) == 1


def test_a_call_that_fails_is_heard_of_and_one_that_does_not_leaves_no_change(
    project: Project, tag: str
) -> None:
    code = "exports.handler = async (medplum, event) => { if (event.input.fail) throw new Error('no'); };"
    bot = failing(project, code)
    everything = alarm(project, bot, criteria="type=execute")
    project.execute(bot, {"fail": False})
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert (event["outcome"], changes_of(event["id"])) == ("0", 0)
    project.execute(bot, {"fail": True})
    project.audit_events(f"Subscription/{everything}", 1)
    rest(project)
    (delivery,) = deliveries(project.admin, everything)
    assert delivery.resource_id != event["id"]


def test_an_alarm_that_fails_raises_none(project: Project) -> None:
    bot = failing(project)
    alarms = alarm(project, bot, FAIL)
    others = project.subscribe(project.bot(TELL, filename="b.cjs"), "AuditEvent?outcome=4", extension=ONCE)
    project.execute(bot)
    (run,) = project.audit_events(f"Subscription/{alarms}", 1)
    assert run["outcome"] == "4"
    rest(project)
    heard = {each.resource_id for each in deliveries(project.admin, others["id"])}
    assert run["id"] not in heard
    assert len(heard) == 1
    project.http.delete(f"/fhir/R4/Subscription/{others['id']}").raise_for_status()


def test_nothing_an_alarm_sets_off_raises_one(project: Project, tag: str) -> None:
    """It executes a Bot that fails, and writes what sets off a Bot that fails."""
    bot = failing(project)
    again = failing(project)
    project.subscribe(again, f"Patient?identifier=urn:test|{tag}", extension=ONCE)
    code = f"""exports.handler = async (medplum) => {{
      await medplum.createResource({json.dumps(patient(tag))});
      await medplum.executeBot('{again}', {{}}).catch(() => undefined);
    }};"""
    alarms = project.subscribe(
        project.bot(code, filename="alarm.cjs"),
        f"AuditEvent?outcome=4&entity=Bot/{bot},Bot/{again}",
        extension=ONCE,
    )
    project.execute(bot)
    failures = project.audit_events(f"Bot/{again}", 2)
    assert [each["outcome"] for each in failures] == ["4", "4"]
    rest(project)
    assert len(deliveries(project.admin, alarms["id"])) == 1
    assert len(project.audit_events(f"Bot/{again}")) == 2


def test_a_loop_that_was_stopped_raises_an_alarm(project: Project, tag: str) -> None:
    code = """exports.handler = async (medplum, event) => {
      await medplum.updateResource({...event.input, multipleBirthInteger: (event.input.multipleBirthInteger ?? 0) + 1});
    };"""
    bot = failing(project, code)
    alarms = alarm(project, bot)
    project.subscribe(bot, f"Patient?identifier=urn:test|{tag}", extension=ONCE)
    project.post("/fhir/R4/Patient", patient(tag))
    (run,) = project.audit_events(f"Subscription/{alarms}", 1)
    assert run["outcome"] == "0"
    assert "Stopped: this would be run" in json.loads(run["outcomeDesc"])["outcomeDesc"]
    rest(project)
    assert len(project.audit_events(f"Bot/{bot}")) == MAX_DEPTH + 1
    assert len(deliveries(project.admin, alarms)) == 1


def test_deliveries_to_urls_are_heard_of_and_can_be_alarms(project: Project, tag: str) -> None:
    with running_remote() as remote:
        url = {"type": "rest-hook", "endpoint": f"{remote.rule}/alarm", "payload": "application/fhir+json"}
        dead = project.subscribe(
            "", f"Patient?identifier=urn:test|{tag}", extension=ONCE, channel=url | {"endpoint": "http://localhost:9"}
        )  # fmt: skip
        alarms = project.subscribe(
            "", f"AuditEvent?outcome=4&entity=Subscription/{dead['id']}", extension=ONCE, channel=url
        )
        project.post("/fhir/R4/Patient", patient(tag))
        (event,) = project.audit_events(f"Subscription/{alarms['id']}", 1)
        assert event["outcome"] == "0"
        ((_, path, headers, body),) = remote.seen
    told = json.loads(body)
    assert (path, told["outcome"], headers["x-trace-id"]) == ("/alarm", "4", f"alarm-{told['id']}")


def test_what_failed_can_be_resent_but_not_by_an_alarm_nor_about_one(project: Project) -> None:
    code = """exports.handler = async (medplum, event) => {
      await medplum.post(`fhir/R4/AuditEvent/${event.input.id}/$resend`, {});
      throw new Error('no');
    };"""

    def resend(event_id: str) -> None:
        answer = project.http.post(f"/fhir/R4/AuditEvent/{event_id}/$resend", json={})
        assert answer.status_code == 200, answer.text

    bot = failing(project)
    alarms = alarm(project, bot, code)
    (subscription,) = project.search(f"Subscription?_id={alarms}")
    alarming = subscription["channel"]["endpoint"]
    (membership,) = project.search(f"ProjectMembership?profile={alarming}")
    operations = [{"op": "add", "path": "/admin", "value": True}]  # or it could not resend anything
    project.http.patch(f"/fhir/R4/ProjectMembership/{membership['id']}", json=operations).raise_for_status()
    about = project.subscribe(
        project.bot(TELL, filename="b.cjs"), f"AuditEvent?outcome=4&entity={alarming}", extension=ONCE
    )["id"]
    project.execute(bot)
    (run,) = project.audit_events(f"Subscription/{alarms}", 1)
    assert run["outcomeDesc"].startswith("Unhandled error: no\n"), "it has resent it, in vain"
    (failure,) = [each for each in project.audit_events(f"Bot/{bot}") if each["id"] != run["id"]]
    rest(project)
    assert len(deliveries(project.admin, alarms)) == 1
    resend(run["id"])
    resend(failure["id"])
    project.audit_events(f"Subscription/{alarms}", 2)
    rest(project)
    assert len(deliveries(project.admin, alarms)) == 2
    assert deliveries(project.admin, about) == []


def test_what_clients_write_raises_no_alarm(project: Project) -> None:
    bot = failing(project)
    alarms = alarm(project, bot)
    written = project.post(
        "/fhir/R4/AuditEvent",
        {
            "resourceType": "AuditEvent",
            "type": {"code": "execute"},
            "recorded": datetime.now(UTC).isoformat(),
            "outcome": "4",
            "agent": [{"requestor": False}],
            "source": {"observer": {"reference": f"Bot/{bot}"}},
            "entity": [{"what": {"reference": f"Bot/{bot}"}}],
        },
    )
    assert changes_of(written["id"]) == 0
    project.execute(bot)
    project.audit_events(f"Subscription/{alarms}", 1)
    rest(project)
    assert len(deliveries(project.admin, alarms)) == 1


def test_alarms_stay_in_their_project_and_within_the_access_of_their_author(
    server: Server, project: Project
) -> None:
    bot = failing(project)
    policy = project.post(
        "/fhir/R4/AccessPolicy",
        {"resourceType": "AccessPolicy", "name": "No events", "resource": [{"resourceType": "Subscription"}]},
    )
    client = project.post(
        f"/admin/projects/{project.id}/client",
        {"name": "Limited", "accessPolicy": {"reference": f"AccessPolicy/{policy['id']}"}},
    )
    own = alarm(project, bot)
    subscription = {
        "resourceType": "Subscription",
        "status": "active",
        "reason": "test",
        "criteria": f"AuditEvent?outcome=4&entity=Bot/{bot}",
        "channel": {"type": "rest-hook", "endpoint": f"Bot/{bot}"},
    }
    answer = project.http.post(
        "/fhir/R4/Subscription", json=subscription, auth=(client["id"], client["secret"])
    )
    assert answer.status_code == 201, answer.text
    with new_project(server) as other:
        theirs = alarm(other, bot, criteria="outcome=4")
        project.execute(bot)
        project.audit_events(f"Subscription/{own}", 1)
        rest(project)
        assert [each.state for each in deliveries(project.admin, answer.json()["id"])] == ["skipped"]
        assert deliveries(other.admin, theirs) == []


def test_criteria_that_hope_for_more_than_failures_are_warned_of(project: Project) -> None:
    def warning(criteria: str, *extensions: dict[str, Any]) -> str:
        subscription = {
            "resourceType": "Subscription", "status": "active", "reason": "test", "criteria": criteria,
            "channel": {"type": "rest-hook", "endpoint": f"Bot/{bot}"},
        }  # fmt: skip
        if extensions:
            subscription["extension"] = list(extensions)
        answer = project.http.post("/fhir/R4/Subscription", json=subscription)
        assert answer.status_code == 201
        project.http.delete(f"/fhir/R4/Subscription/{answer.json()['id']}").raise_for_status()
        return str(answer.headers.get("warning", ""))

    bot = project.bot()
    for criteria in ("AuditEvent", "AuditEvent?outcome=0,4", f"AuditEvent?entity=Bot/{bot}"):
        assert "only those of runs and deliveries that failed" in warning(criteria)
    assert warning("AuditEvent?outcome=4,8,12") == ""
    assert warning("AuditEvent?outcome=http://hl7.org/fhir/audit-event-outcome|8") == ""
    pre_commit = {"url": PRE_COMMIT_URL, "valueBoolean": True}
    assert "no Bot is asked before" in warning("AuditEvent?outcome=4", pre_commit)
    made = alarm(project, bot, criteria="type=execute")
    assert subscription_state(project.admin, made).problem == ""
