"""Addresses that need no login, and CDS Hooks."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from bots.context import NO_POLICY, RefusedError, context_of, run_as
from bots.request import ExecutionRequest
from tests.bots.conftest import Project

EVENT = "exports.handler = async (medplum, event) => ({...event, profile: medplum.getProfile()});"


def membership_of(project: Project, bot: str) -> str:
    """Id of the Bot's ProjectMembership."""
    (found,) = project.search(f"ProjectMembership?profile=Bot/{bot}")
    return str(found["id"])


@pytest.fixture(scope="module")
def policy(project: Project) -> dict[str, str]:
    """An AccessPolicy that lets a Bot see Patients."""
    made = project.post(
        "/fhir/R4/AccessPolicy",
        {"resourceType": "AccessPolicy", "name": "Hook", "resource": [{"resourceType": "Patient"}]},
    )
    return {"reference": f"AccessPolicy/{made['id']}"}


def public_bot(project: Project, policy: dict[str, str] | None, code: str = EVENT, **elements: Any) -> str:
    """A Bot with a webhook; returns the path."""
    body = {"name": "Hook"} | ({"accessPolicy": policy} if policy else {})
    bot = project.post(f"/admin/projects/{project.id}/bot", body)["id"]
    for name, value in elements.items():
        operations = [{"op": "add", "path": f"/{name}", "value": value}]
        project.http.patch(f"/fhir/R4/Bot/{bot}", json=operations).raise_for_status()
    project.deploy(bot, code, "a.cjs")
    return f"{project.http.base_url}/webhook/{membership_of(project, bot)}"


def test_webhook_runs_the_bot_without_a_login(project: Project, policy: dict[str, str]) -> None:
    url = public_bot(project, policy, publicWebhook=True)
    event = httpx.post(url, json={"a": 1}, headers={"X-Signature": "s"}).json()
    assert (event["input"], event["contentType"]) == ({"a": 1}, "application/json")
    assert event["headers"]["x-signature"] == "s"
    assert "requester" not in event
    assert event["profile"]["resourceType"] == "Bot"
    assert httpx.get(url, params={"challenge": "c"}).json()["input"] == {"challenge": "c"}
    form = httpx.post(url, data={"Body": "hi"}).json()
    assert form["input"] == {"Body": "hi"}
    (first, *_) = project.audit_events(event["bot"]["reference"], 3)
    assert first["agent"][0] == {"requestor": True}
    assert first["agent"][1]["who"]["reference"] == event["bot"]["reference"]


def test_webhook_acts_under_the_policy_of_its_membership(project: Project, policy: dict[str, str]) -> None:
    code = "exports.handler = async (medplum) => medplum.createResource({resourceType: 'Basic', code: {text: 'x'}});"
    url = public_bot(project, policy, code, publicWebhook=True, runAsUser=True)
    assert httpx.post(url, json={}).status_code == 403


def test_webhook_of_what_is_not_public_is_refused(project: Project, policy: dict[str, str]) -> None:
    for url, status in (
        (public_bot(project, policy), 403),
        (public_bot(project, None, publicWebhook=True), 403),
        (f"{project.http.base_url}/webhook/{uuid.uuid4()}", 404),
        (f"{project.http.base_url}/webhook/nonsense", 404),
    ):
        answer = httpx.post(url, json={})
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith(
            "text/plain" if status == 403 else "application/fhir+json"
        )
    person = project.search("ProjectMembership?profile-type=Practitioner")
    answer = httpx.post(f"{project.http.base_url}/webhook/{person[0]['id']}", json={})
    assert (answer.status_code, answer.text) == (403, "ProjectMembership must be for a Bot resource")
    assert httpx.put(public_bot(project, policy), json={}).status_code == 405


def test_webhook_whose_policy_goes_before_it_runs_is_refused(
    project: Project, policy: dict[str, str]
) -> None:
    membership = public_bot(project, policy, publicWebhook=True).rpartition("/")[2]
    profile = project.repository.read("ProjectMembership", membership).resource["profile"]["reference"]
    request = ExecutionRequest(
        project=project.id,
        bot_id=profile.removeprefix("Bot/"),
        trigger="webhook",
        received=datetime.now(UTC),
        trace_id="t",
        caller=membership,
        as_caller=True,
    )
    assert run_as(request, context_of(request)).policy is not None
    project.admin.patch("ProjectMembership", membership, [{"op": "remove", "path": "/accessPolicy"}])
    with pytest.raises(RefusedError, match=NO_POLICY):
        run_as(request, context_of(request))
    person = replace(request, caller=project.admin.identity.membership, replay_of=str(uuid.uuid4()))
    assert run_as(person, context_of(person)).profile == project.admin.identity.profile


def test_webhook_refuses_what_it_cannot_read(project: Project, policy: dict[str, str]) -> None:
    url = public_bot(project, policy, publicWebhook=True)
    answer = httpx.post(url, content="{", headers={"content-type": "application/json"})
    assert answer.status_code == 400


SERVICE = {
    "hook": "patient-view",
    "title": "Greeter",
    "description": "Greets",
    "prefetch": [{"key": "patient", "query": "Patient/{{context.patientId}}"}],
}


def test_cds_services_are_listed_and_called(project: Project) -> None:
    code = "exports.handler = async (medplum, event) => ({cards: [{summary: event.input.hook, by: medplum.getProfile().resourceType}]});"
    bot = project.bot(code, filename="a.cjs", cdsService=SERVICE)
    project.bot(code, filename="a.cjs")
    (service,) = project.http.get("/cds-services").json()["services"]
    assert service == {**SERVICE, "id": bot, "prefetch": {"patient": "Patient/{{context.patientId}}"}}
    answer = project.http.post(f"/cds-services/{bot}", json={"hook": "patient-view"})
    assert answer.json() == {"cards": [{"summary": "patient-view", "by": "ClientApplication"}]}
    assert httpx.get(f"{project.http.base_url}/cds-services").status_code == 401


def test_bot_that_is_no_cds_service_is_not_found(project: Project) -> None:
    bot = project.bot()
    assert project.http.post(f"/cds-services/{bot}", json={}).status_code == 404
    assert project.http.post(f"/cds-services/{uuid.uuid4()}", json={}).status_code == 404
