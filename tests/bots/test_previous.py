"""``event.previous``: the version before the change, for Bots of Subscriptions that ask for it (docs/triggers.md)."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest

from bots.subscriptions import ATTEMPTS_URL, PRE_COMMIT_URL, PREVIOUS_URL
from tests.bots.conftest import Project
from tests.bots.remote import running_remote

TELL = """exports.handler = async (medplum, event) => {
  console.log(JSON.stringify({has: 'previous' in event, previous: event.previous, input: event.input}));
};"""
PYTHON = """
import json

def handler(medplum, event):
    print(json.dumps({"has": "previous" in event, "previous": event.previous, "input": event.input}))
"""
ASKED = [{"url": PREVIOUS_URL, "valueBoolean": True}, {"url": ATTEMPTS_URL, "valueInteger": 1}]


@pytest.fixture
def tag() -> str:
    return uuid.uuid4().hex


def patient(tag: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": "urn:test", "value": tag}]} | elements


def put(project: Project, resource: dict[str, Any]) -> Any:
    answer = project.http.put(f"/fhir/R4/Patient/{resource['id']}", json=resource)
    assert answer.status_code == 200, answer.text
    return answer.json()


def told(project: Project, subscription: str, count: int) -> list[dict[str, Any]]:
    events = project.audit_events(f"Subscription/{subscription}", count)
    assert [each["outcome"] for each in events] == ["0"] * count, events
    return [json.loads(each["outcomeDesc"]) for each in events]


@pytest.mark.parametrize(("code", "filename"), [(TELL, "a.cjs"), (PYTHON, "a.py")])
def test_bot_gets_the_version_before(project: Project, tag: str, code: str, filename: str) -> None:
    bot = project.bot(code, filename=filename, timeout=60)
    asked = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}", extension=ASKED)["id"]
    made = project.post("/fhir/R4/Patient", patient(tag, gender="male"))
    changed = put(project, made | {"gender": "female"})
    project.http.delete(f"/fhir/R4/Patient/{made['id']}").raise_for_status()
    put(project, changed)
    created, updated, deleted, restored = told(project, asked, 4)
    assert (created["has"], restored["has"]) == (False, False)
    assert (updated["previous"]["gender"], updated["input"]["gender"]) == ("male", "female")
    assert updated["previous"]["meta"]["versionId"] == made["meta"]["versionId"]
    assert deleted["previous"] == deleted["input"]["deletedResource"]


def test_only_who_asks_gets_it(project: Project, tag: str) -> None:
    bot = project.bot(TELL, filename="a.cjs")
    criteria = f"Patient?identifier=urn:test|{tag}"
    plain = project.subscribe(bot, criteria)["id"]
    refusing = project.subscribe(bot, criteria, extension=[{"url": PREVIOUS_URL, "valueBoolean": False}])
    made = project.post("/fhir/R4/Patient", patient(tag))
    put(project, made | {"gender": "female"})
    for subscription in (plain, refusing["id"]):
        assert [each["has"] for each in told(project, subscription, 2)] == [False, False]


def test_replay_has_it_too(project: Project, tag: str) -> None:
    bot = project.bot(TELL, filename="a.cjs")
    asked = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}", extension=ASKED)["id"]
    made = project.post("/fhir/R4/Patient", patient(tag, gender="male"))
    put(project, made | {"gender": "female"})
    told(project, asked, 2)
    run = project.audit_events(f"Subscription/{asked}")[1]["id"]
    project.post(f"/fhir/R4/Bot/{bot}/$replay", {"run": run}, 200)
    (line,) = project.http.get(f"/fhir/R4/Bot/{bot}/$logs?count=1").json()["lines"]
    assert json.loads(line["text"])["previous"]["gender"] == "male"


def test_it_is_what_the_author_of_the_subscription_may_see(project: Project, tag: str) -> None:
    subscription = {
        "resourceType": "Subscription", "status": "active", "reason": "test", "extension": ASKED,
        "criteria": f"Patient?identifier=urn:test|{tag}",
        "channel": {"type": "rest-hook", "endpoint": f"Bot/{project.bot(TELL, filename='a.cjs')}"},
    }  # fmt: skip
    client = project.restricted_client()
    with httpx.Client(base_url=project.http.base_url, auth=(client["id"], client["secret"])) as author:
        asked = author.post("/fhir/R4/Subscription", json=subscription).json()["id"]
    made = project.post("/fhir/R4/Patient", patient(tag, active=False, birthDate="2000-01-01"))
    seen = put(project, made | {"active": True})
    put(project, seen | {"gender": "female"})
    unseen, hidden = told(project, asked, 2)
    assert unseen["has"] is False
    assert hidden["previous"]["active"] is True
    assert "birthDate" not in hidden["previous"]


def test_urls_do_not_get_it_and_whoever_asks_is_told(project: Project, tag: str) -> None:
    with running_remote() as remote:
        subscription = {
            "resourceType": "Subscription", "status": "active", "reason": "test", "extension": ASKED,
            "criteria": f"Patient?identifier=urn:test|{tag}",
            "channel": {"type": "rest-hook", "endpoint": f"{remote.rule}/{tag}"},
        }  # fmt: skip
        answer = project.http.post("/fhir/R4/Subscription", json=subscription)
        assert "only to a Bot that runs after the change" in answer.headers["warning"]
        made = project.post("/fhir/R4/Patient", patient(tag, gender="male"))
        changed = put(project, made | {"gender": "female"})
        project.audit_events(f"Subscription/{answer.json()['id']}", 2)
        assert json.loads(remote.seen[1][3])["meta"]["versionId"] == changed["meta"]["versionId"]
        assert all(
            b"previous" not in body and "male" not in str(headers) for *_, headers, body in remote.seen
        )
    bot = project.bot(TELL, filename="a.cjs")
    criteria = f"Patient?identifier=urn:test|{uuid.uuid4().hex}"
    wrong = project.subscribe(bot, criteria, 400, extension=[{"url": PREVIOUS_URL, "valueString": "yes"}])
    assert "valueBoolean" in wrong["issue"][0]["details"]["text"]
    before = subscription | {
        "extension": [*ASKED, {"url": PRE_COMMIT_URL, "valueBoolean": True}],
        "criteria": criteria,
        "channel": {"type": "rest-hook", "endpoint": f"Bot/{bot}"},
    }
    answer = project.http.post("/fhir/R4/Subscription", json=before)
    assert "only to a Bot that runs after the change" in answer.headers["warning"]
