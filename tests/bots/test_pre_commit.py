"""Bots that are asked before something is written (subscriptions-and-cron.md §6)."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from bots.pre_commit import SETTING
from bots.subscriptions import PRE_COMMIT_URL
from tests.bots.conftest import Project
from tests.bots.test_audit import parts
from tests.bots.test_execute import text_of

ASKED = {"url": PRE_COMMIT_URL, "valueBoolean": True}


@pytest.fixture(scope="module", autouse=True)
def _switched_on(project: Project) -> None:
    switch(project, is_on=True)


def switch(project: Project, *, is_on: bool) -> None:
    setting = [{"name": SETTING, "valueBoolean": is_on}]
    project.http.patch(
        f"/fhir/R4/Project/{project.id}", json=[{"op": "add", "path": "/setting", "value": setting}]
    ).raise_for_status()


@pytest.fixture
def tag() -> str:
    return uuid.uuid4().hex


def patient(tag: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": "urn:test", "value": tag}]} | elements


def ask(project: Project, tag: str, code: str, **elements: Any) -> tuple[str, str]:
    """Let a Bot with this body be asked about the Patients of a test; returns its id and the Subscription's."""
    bot = project.bot(f"exports.handler = async (medplum, event) => {{ {code} }};", filename="a.cjs")
    made = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}", extension=[ASKED], **elements)
    return bot, made["id"]


def test_bot_refuses_with_its_outcome_or_error(project: Project, tag: str) -> None:
    bot, subscription = ask(project, tag, "if (!event.input.name) throw new Error('A patient needs a name');")
    refused = project.http.post("/fhir/R4/Patient", json=patient(tag))
    assert (refused.status_code, text_of(refused)) == (400, "A patient needs a name")
    assert project.search(f"Patient?identifier=urn:test|{tag}") == []
    made = project.post("/fhir/R4/Patient", patient(tag, name=[{"family": "Doe"}]))
    nameless = {key: value for key, value in made.items() if key != "name"}
    assert project.http.put(f"/fhir/R4/Patient/{made['id']}", json=nameless).status_code == 400
    removed = [{"op": "remove", "path": "/name"}]
    assert project.http.patch(f"/fhir/R4/Patient/{made['id']}", json=removed).status_code == 400
    assert project.http.get(f"/fhir/R4/Patient/{made['id']}").json()["name"] == [{"family": "Doe"}]
    events = project.audit_events(f"Subscription/{subscription}", 4)
    assert [each["outcome"] for each in events] == ["4", "0", "4", "4"]
    assert events[0]["agent"][1]["who"]["reference"] == f"Bot/{bot}"
    assert parts(events[0], "urn:fhirbots:bot-run")["trigger"] == "pre-commit"


def test_outcome_decides_about_the_status(project: Project, tag: str) -> None:
    outcome = {
        "resourceType": "OperationOutcome",
        "id": "forbidden",
        "issue": [{"severity": "error", "code": "forbidden"}],
    }
    ask(project, tag, f"return {json.dumps(outcome)};")
    refused = project.http.post("/fhir/R4/Patient", json=patient(tag))
    assert (refused.status_code, refused.json()["id"]) == (403, "forbidden")


def test_returned_resource_is_written_instead(project: Project, tag: str) -> None:
    ask(project, tag, "return { ...event.input, active: true };")
    made = project.post("/fhir/R4/Patient", patient(tag))
    assert made["active"] is True
    assert project.http.get(f"/fhir/R4/Patient/{made['id']}").json()["active"] is True
    changed = project.http.put(
        f"/fhir/R4/Patient/{made['id']}", json=made | {"active": False, "gender": "other"}
    )
    assert (changed.json()["active"], changed.json()["gender"]) == (True, "other")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("'yes'", "must return a Patient, true or nothing"),
        ("{ resourceType: 'Observation' }", "must return a Patient, true or nothing"),
        ("{ ...event.input, id: 'other' }", "has returned another resource"),
        ("{ ...event.input, nonsense: 1 }", "nonsense"),
    ],
)
def test_other_answers_refuse_the_write(project: Project, tag: str, value: str, text: str) -> None:
    ask(project, tag, f"return {value};")
    refused = project.http.post("/fhir/R4/Patient", json=patient(tag))
    assert refused.status_code == 400
    assert text in refused.text


def test_delete_can_be_refused(project: Project, tag: str) -> None:
    _, subscription = ask(
        project,
        tag,
        "if (event.headers['X-Medplum-Deleted-Resource']) throw new Error('Keep ' + event.input.id);",
    )
    made = project.post("/fhir/R4/Patient", patient(tag))
    refused = project.http.delete(f"/fhir/R4/Patient/{made['id']}")
    assert (refused.status_code, text_of(refused)) == (400, f"Keep {made['id']}")
    assert project.http.get(f"/fhir/R4/Patient/{made['id']}").status_code == 200
    project.audit_events(f"Subscription/{subscription}", 2)


def test_writes_of_bots_and_batches_are_asked_about_too(project: Project, tag: str) -> None:
    ask(project, tag, "if (!event.input.name) throw new Error('nameless');")
    code = f"return (await medplum.createResource({json.dumps(patient(tag))})).id;"
    writer = project.bot(f"exports.handler = async (medplum) => {{ {code} }};", filename="a.cjs")
    answer = project.execute(writer)
    assert (answer.status_code, text_of(answer)) == (400, "nameless")
    entry = {"request": {"method": "POST", "url": "Patient"}, "resource": patient(tag)}
    batch = project.post("/fhir/R4/", {"resourceType": "Bundle", "type": "batch", "entry": [entry]}, 200)
    assert batch["entry"][0]["response"]["status"] == "400"


def test_only_the_first_is_asked_and_only_while_the_project_wants_it(project: Project, tag: str) -> None:
    _, first = ask(project, tag, "return { ...event.input, gender: 'male' };")
    _, second = ask(project, tag, "return { ...event.input, gender: 'female' };")
    assert project.post("/fhir/R4/Patient", patient(tag))["gender"] == "male"
    switch(project, is_on=False)
    try:
        assert "gender" not in project.post("/fhir/R4/Patient", patient(tag))
    finally:
        switch(project, is_on=True)
    assert len(project.audit_events(f"Subscription/{first}")) == 1
    assert project.audit_events(f"Subscription/{second}") == []


def test_bot_that_writes_what_it_is_asked_about_is_stopped(project: Project, tag: str) -> None:
    ask(project, tag, f"await medplum.createResource({json.dumps(patient(tag))});")
    refused = project.http.post("/fhir/R4/Patient", json=patient(tag))
    assert refused.status_code == 400
    assert project.search(f"Patient?identifier=urn:test|{tag}") == []


@pytest.mark.parametrize(
    "write",
    [
        "updateResource({ ...event.input, active: true })",
        "patchResource('Patient', event.input.id, [{ op: 'add', path: '/active', value: true }])",
        "deleteResource('Patient', event.input.id)",
        "executeBot(event.input.name[0].text, event.input)",
    ],
)
def test_the_very_resource_cannot_be_written_and_the_bot_hears_so_at_once(
    project: Project, tag: str, write: str
) -> None:
    other = project.bot(
        "exports.handler = async (medplum, event) => medplum.updateResource({ ...event.input, active: true });",
        filename="a.cjs",
    )
    made = project.post("/fhir/R4/Patient", patient(tag, name=[{"text": other}]))
    ask(project, tag, f"await medplum.{write};")
    refused = project.http.put(f"/fhir/R4/Patient/{made['id']}", json=made | {"gender": "other"})
    assert refused.status_code == 400
    assert f"Patient/{made['id']} is being written" in text_of(refused)
    assert "gender" not in project.http.get(f"/fhir/R4/Patient/{made['id']}").json()
