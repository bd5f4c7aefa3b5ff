"""From a change to a run: Subscriptions end to end, over HTTP, with a real worker."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from typing import Any

import pytest

from bots import context
from bots.api import INTERACTION_URL, PAUSED, deliveries, subscription_state
from bots.execution import MAX_DEPTH
from bots.models import Delivery
from bots.subscriptions import ATTEMPTS_URL, DESTINATION_URL, FHIRPATH_URL
from fhirstore.api import Repository, Stored, connection, system_identity
from fhirstore.bootstrap import bootstrap
from tests.bots.conftest import Project, wait_until
from tests.bots.test_audit import parts
from tests.bots.test_execute import text_of
from tests.conftest import Server

HELLO = "exports.handler = async (medplum, event) => { console.log('Hello world'); };"
TELL = "exports.handler = async (medplum, event) => { console.log(JSON.stringify(event)); };"


@pytest.fixture
def tag() -> str:
    """An identifier that keeps the resources of one test from the Subscriptions of others."""
    return uuid.uuid4().hex


def patient(tag: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": "urn:test", "value": tag}]} | elements


def references(event: dict[str, Any]) -> list[str]:
    return [entity["what"]["reference"] for entity in event["entity"]]


def told(event: dict[str, Any]) -> dict[str, Any]:
    """The event of the handler that :data:`TELL` has logged."""
    found: dict[str, Any] = json.loads(event["outcomeDesc"])
    return found


def test_a_change_without_a_request_behind_it_begins_a_trace(project: Project, tag: str) -> None:
    bot = project.bot(TELL, filename="a.cjs")
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")
    made = project.repository.create(patient(tag))
    (event,) = project.audit_events(f"Subscription/{subscription['id']}", 1)
    assert told(event)["traceId"] == made.version_id


def test_create_update_and_delete_each_run_the_bot_once_and_in_order(project: Project, tag: str) -> None:
    bot = project.bot(TELL, filename="a.cjs")
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")
    made = project.post("/fhir/R4/Patient", patient(tag, name=[{"family": "Doe", "given": ["Jane"]}]))
    path = f"/fhir/R4/Patient/{made['id']}"
    project.http.put(path, json=made | {"gender": "female"}).raise_for_status()
    project.http.put(path, json=made | {"gender": "female"}).raise_for_status()  # changes nothing: no event
    project.http.delete(path).raise_for_status()

    events = project.audit_events(f"Subscription/{subscription['id']}", 3)
    assert [event["outcome"] for event in events] == ["0", "0", "0"]
    assert all(
        references(event) == [f"Bot/{bot}", f"Patient/{made['id']}", f"Subscription/{subscription['id']}"]
        for event in events
    )
    created, updated, deleted = (told(event) for event in events)
    assert created["input"]["id"] == made["id"]
    assert "gender" not in created["input"]
    assert updated["input"]["gender"] == "female"
    assert deleted["input"]["deletedResource"]["gender"] == "female"
    assert [told["headers"]["X-Medplum-Interaction"] for told in (created, updated, deleted)] == [
        "create",
        "update",
        "delete",
    ]
    assert deleted["headers"]["X-Medplum-Deleted-Resource"] == f"Patient/{made['id']}"
    assert created["requester"]["reference"].startswith("ClientApplication/")
    assert created["contentType"] == "application/fhir+json"
    assert parts(events[0], "urn:fhirbots:bot-run")["trigger"] == "subscription"


def test_only_matching_resources_and_interactions_run_the_bot(project: Project, tag: str) -> None:
    bot = project.bot(HELLO, filename="a.cjs")
    wanted = project.subscribe(
        bot,
        f"Patient?identifier=urn:test|{tag}&gender=female",
        extension=[{"url": INTERACTION_URL, "valueCode": "update"}],
    )
    off = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}", status=201) | {"status": "off"}
    project.http.put(f"/fhir/R4/Subscription/{off['id']}", json=off).raise_for_status()
    made = project.post("/fhir/R4/Patient", patient(tag, gender="female"))
    other = project.post("/fhir/R4/Patient", patient(tag, gender="male"))
    project.http.put(f"/fhir/R4/Patient/{other['id']}", json=other | {"active": True}).raise_for_status()
    project.http.put(f"/fhir/R4/Patient/{made['id']}", json=made | {"active": True}).raise_for_status()
    events = project.audit_events(f"Subscription/{wanted['id']}", 1)
    assert [references(event)[1] for event in events] == [f"Patient/{made['id']}"]
    assert project.audit_events(f"Subscription/{off['id']}") == []


def test_changes_before_a_subscription_do_not_concern_it(project: Project, tag: str) -> None:
    bot = project.bot(HELLO, filename="a.cjs")
    before = project.post("/fhir/R4/Patient", patient(tag))
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")
    after = project.post("/fhir/R4/Patient", patient(tag))
    events = project.audit_events(f"Subscription/{subscription['id']}", 1)
    assert [references(event)[1] for event in events] == [f"Patient/{after['id']}"]
    assert before["id"] != after["id"]


def test_criteria_may_be_about_other_resources_too(project: Project, tag: str) -> None:
    bot = project.bot(HELLO, filename="a.cjs")
    organization = project.post("/fhir/R4/Organization", {"resourceType": "Organization", "name": tag})
    chained = project.subscribe(bot, f"Patient?organization.name={tag}")["id"]
    reverse = project.subscribe(
        bot, f"Patient?identifier=urn:test|{tag}&_has:Observation:subject:status=final"
    )["id"]
    managed = {"managingOrganization": {"reference": f"Organization/{organization['id']}"}}
    made = project.post("/fhir/R4/Patient", patient(tag, **managed))
    project.audit_events(f"Subscription/{chained}", 1)  # or the other one might already see what comes next
    observation = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": f"Patient/{made['id']}"},
    }
    project.post("/fhir/R4/Observation", observation)
    project.http.put(f"/fhir/R4/Patient/{made['id']}", json=made | {"active": True}).raise_for_status()
    project.audit_events(f"Subscription/{chained}", 2)
    heard = project.audit_events(f"Subscription/{reverse}", 1)
    details = [
        {each["type"]: each["valueString"] for each in event["entity"][1]["detail"]} for event in heard
    ]
    assert [each["interaction"] for each in details] == ["update"]


@pytest.mark.parametrize(
    ("criteria", "text"),
    [
        ("Patient?nonsense=1", "nonsense"),
        ("Nonsense", "must begin with a resource type"),
        ("", "riteria"),
        ("Patient?general-practitioner.nonsense=x", "Criteria cannot be evaluated"),
        ("Patient?birthdate=notadate", "Criteria cannot be evaluated"),
    ],
)
def test_criteria_that_cannot_be_evaluated_are_refused(project: Project, criteria: str, text: str) -> None:
    answer = project.subscribe(str(uuid.uuid4()), criteria, 400)
    assert text in answer["issue"][0]["details"]["text"] + json.dumps(answer["issue"][0].get("expression"))


def test_extensions_that_cannot_be_honoured_are_refused(project: Project) -> None:
    for extension in (
        {"url": INTERACTION_URL, "valueCode": "read"},
        {"url": FHIRPATH_URL, "valueString": "(("},
        {"url": ATTEMPTS_URL, "valueInteger": 0},
        {"url": ATTEMPTS_URL, "valueInteger": 19},
        {"url": DESTINATION_URL, "valueCode": "nowhere"},
    ):
        project.subscribe(str(uuid.uuid4()), "Patient", 400, extension=[extension])


def test_criteria_use_the_search_parameters_of_the_project(project: Project, tag: str) -> None:
    code = f"tag-{tag[:8]}"
    project.post(
        "/fhir/R4/SearchParameter",
        {
            "resourceType": "SearchParameter",
            "url": f"http://example.com/SearchParameter/{code}",
            "name": "Tag",
            "status": "active",
            "description": "The value of an extension",
            "code": code,
            "base": ["Patient"],
            "type": "token",
            "expression": "Patient.extension.where(url = 'http://example.com/tag').value",
        },
    )
    bot = project.bot(TELL, filename="a.cjs")
    subscription = project.subscribe(bot, f"Patient?{code}={tag}")
    marked = {**patient(tag), "extension": [{"url": "http://example.com/tag", "valueCode": tag}]}

    def heard() -> bool:
        project.post("/fhir/R4/Patient", patient(tag))
        project.post("/fhir/R4/Patient", marked)
        return any(
            each["outcome"] == "0" for each in project.audit_events(f"Subscription/{subscription['id']}")
        )

    wait_until(heard)  # other processes know of the new parameter after a moment


def test_signature_covers_the_input(project: Project, tag: str) -> None:
    bot = project.bot(TELL, filename="a.cjs")
    url = "https://www.medplum.com/fhir/StructureDefinition/subscription-secret"
    subscription = project.subscribe(
        bot, f"Patient?identifier=urn:test|{tag}", extension=[{"url": url, "valueString": "key"}]
    )
    project.post("/fhir/R4/Patient", patient(tag))
    (event,) = project.audit_events(f"Subscription/{subscription['id']}", 1)
    body = json.dumps(told(event)["input"], separators=(",", ":"), ensure_ascii=False).encode()
    assert told(event)["headers"]["X-Signature"] == hmac.new(b"key", body, hashlib.sha256).hexdigest()


def test_every_failure_is_visible(project: Project, tag: str) -> None:
    gone = str(uuid.uuid4())
    undeployed = project.bot(None)
    failing = project.bot("exports.handler = async () => { throw new Error('no'); };", filename="a.cjs")
    alone = project.post("/fhir/R4/Bot", {"resourceType": "Bot", "name": "Alone"})["id"]
    project.deploy(alone, HELLO, "a.cjs")
    expected = {
        gone: "Not found",
        undeployed: "has not been deployed",
        failing: "Unhandled error: no",
        alone: "Could not find project membership for bot",
    }
    subscriptions = {
        bot: project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")["id"] for bot in expected
    }
    project.post("/fhir/R4/Patient", patient(tag))
    for bot, text in expected.items():
        (event,) = project.audit_events(f"Subscription/{subscriptions[bot]}", 1)
        assert event["outcome"] == "4"
        assert text in event["outcomeDesc"]
        (delivery,) = deliveries(project.admin, subscriptions[bot])
        state = "retrying" if bot == failing else "failed"
        assert (delivery.state, delivery.attempts, delivery.audit_event_id) == (state, 1, event["id"])
    assert subscription_state(project.admin, subscriptions[gone]).counts == {"failed": 1}


def test_change_that_cannot_be_compared_is_a_failed_delivery_and_no_lost_event(
    project: Project, tag: str
) -> None:
    bot = project.bot(HELLO, filename="a.cjs")
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")["id"]
    broken = "UPDATE version SET content = replace(content, 'Patient?identifier', 'Patient?unheardof')"
    with connection() as session:  # as if it had been stored when this parameter still existed
        session.execute(f"{broken} WHERE content LIKE %s", (f'%"{subscription}"%',))
    made = project.post("/fhir/R4/Patient", patient(tag))
    wait_until(
        lambda: any(each.resource_id == made["id"] for each in deliveries(project.admin, subscription))
    )
    failed = deliveries(project.admin, subscription)[0]
    assert (failed.state, failed.attempts) == ("failed", 0)
    assert "unheardof" in failed.outcome
    assert "unheardof" in subscription_state(project.admin, subscription).problem
    # or it would go on failing for what other tests do to Patients
    project.http.delete(f"/fhir/R4/Subscription/{subscription}").raise_for_status()


def test_version_that_trips_our_engines_is_a_failed_delivery_and_others_go_on(
    project: Project, tag: str
) -> None:
    bot = project.bot(HELLO, filename="a.cjs")
    broken, good = (project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")["id"] for _ in range(2))
    with connection() as session:  # of a shape that no validation would have let through
        session.execute(
            'UPDATE version SET content = replace(content, \'"channel"\', \'"extension": [5], "channel"\')'
            " WHERE content LIKE %s",
            (f'%"{broken}"%',),
        )
    project.post("/fhir/R4/Patient", patient(tag))
    project.audit_events(f"Subscription/{good}", 1)
    (failed,) = deliveries(project.admin, broken)
    assert (failed.state, failed.outcome) == (
        "failed",
        "The Subscription cannot be evaluated: AttributeError",
    )
    project.repository.delete("Subscription", broken)


def test_project_whose_subscriptions_cannot_be_read_holds_up_nobody_and_loses_nothing(
    server: Server, project: Project, tag: str
) -> None:
    other = bootstrap(email=f"{tag}@example.com", password=tag, project_name="Other").project
    system = Repository(system_identity(other))
    broken = project.subscribe(project.bot(HELLO, filename="a.cjs"), f"Patient?identifier=urn:test|{tag}")
    elements = {name: broken[name] for name in ("resourceType", "status", "reason", "criteria", "channel")}
    theirs = system.create(elements | {"channel": {"type": "rest-hook", "endpoint": "https://example.com"}})
    spoil = "UPDATE version SET content = %s WHERE content LIKE %s"
    with connection() as session:
        session.execute(spoil, (f'no JSON "{theirs.id}"', f'%"{theirs.id}"%'))
    system.create(patient(tag))  # in the outbox ahead of ours
    project.post("/fhir/R4/Patient", patient(tag))
    project.audit_events(f"Subscription/{broken['id']}", 1)
    assert Delivery.objects.filter(subscription_id=theirs.id).count() == 0
    with connection() as session:
        session.execute(spoil, (theirs.content.decode(), f'%"{theirs.id}"%'))
    wait_until(lambda: Delivery.objects.filter(subscription_id=theirs.id).count() == 1)
    system.delete("Subscription", theirs.id)


def test_loop_is_stopped_with_a_visible_outcome(project: Project, tag: str) -> None:
    code = """
        exports.handler = async (medplum, event) => {
          const count = Number(event.input.multipleBirthInteger ?? 0) + 1;
          await medplum.updateResource({...event.input, multipleBirthInteger: count});
        };"""
    bot = project.bot(code, filename="a.cjs")
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")
    made = project.post("/fhir/R4/Patient", patient(tag))
    events = project.audit_events(f"Subscription/{subscription['id']}", MAX_DEPTH + 1)
    assert [event["outcome"] for event in events] == ["0"] * MAX_DEPTH + ["4"]
    assert "chain of Bots" in events[-1]["outcomeDesc"]
    assert project.repository.read("Patient", made["id"]).resource["multipleBirthInteger"] == MAX_DEPTH
    traces = {
        parts(event, "https://medplum.com/fhir/StructureDefinition/tracing")["traceId"] for event in events
    }
    assert len(traces) == 1


def test_bot_can_run_as_the_author_of_the_change(project: Project, tag: str) -> None:
    code = "exports.handler = async (medplum) => { console.log(medplum.getProfile().resourceType); };"
    bot = project.bot(code, filename="a.cjs", runAsUser=True)
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")
    project.post("/fhir/R4/Patient", patient(tag))
    (event,) = project.audit_events(f"Subscription/{subscription['id']}", 1)
    assert event["outcomeDesc"] == "ClientApplication"


def test_subscription_switched_off_before_the_run_is_skipped(project: Project, tag: str) -> None:
    slow = "exports.handler = async () => { await new Promise(done => setTimeout(done, 1500)); };"
    bot = project.bot(slow, filename="a.cjs")
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")
    made = project.post("/fhir/R4/Patient", patient(tag))
    project.http.put(f"/fhir/R4/Patient/{made['id']}", json=made | {"active": True}).raise_for_status()
    wait_until(
        lambda: (
            [each.state for each in deliveries(project.admin, subscription["id"])] == ["waiting", "running"]
        )
    )
    project.http.put(f"/fhir/R4/Subscription/{subscription['id']}", json=subscription | {"status": "off"})
    wait_until(lambda: all(each.finished for each in deliveries(project.admin, subscription["id"])))
    second, first = deliveries(project.admin, subscription["id"])
    assert (first.state, second.state) == ("done", "skipped")
    assert second.outcome == PAUSED  # so that what waited can be made up for like what happens later
    assert len(project.audit_events(f"Subscription/{subscription['id']}")) == 1


def test_audit_event_settings_of_the_bot_are_honoured(project: Project, tag: str) -> None:
    bot = project.bot(HELLO, filename="a.cjs", auditEventTrigger="on-error")
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")
    project.post("/fhir/R4/Patient", patient(tag))
    wait_until(lambda: any(each.finished for each in deliveries(project.admin, subscription["id"])))
    assert project.audit_events(f"Subscription/{subscription['id']}") == []
    failed = project.http.post(
        f"/fhir/R4/Bot/{bot}/$execute", content=b"[", headers={"content-type": "application/json"}
    )
    assert text_of(failed) == "Content could not be parsed"


def test_subscription_that_changes_while_it_is_read_is_not_remembered(
    project: Project, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = project.subscribe(project.bot(HELLO, filename="a.cjs"), f"Patient?identifier=urn:test|{tag}")["id"]
    read = Repository.read

    def read_and_change(self: Repository, type_: str, id_: str) -> Stored:
        stored = read(self, type_, id_)
        context._memory.forget(project.id)  # the notice of a change that is committed right behind the read
        return stored

    with monkeypatch.context() as patched:
        patched.setattr(Repository, "read", read_and_change)
        assert context.subscription_of(project.id, id_) is not None
    assert context._memory.get(project.id, f"Subscription/{id_}") is None
