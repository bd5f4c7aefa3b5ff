"""Deliveries to URLs, retries, dead letters, pauses, and who may hear of what (subscriptions-and-cron.md §3-§5)."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from django.core import mail

from bots.api import deliveries, subscription_state
from bots.endpoints import Event, headers, is_success, max_attempts, post
from bots.endpoints import mail as send_mail
from bots.models import Delivery
from bots.subscriptions import ATTEMPTS_URL, DESTINATION_URL, FHIRPATH_URL, INTERACTION_URL, SUCCESS_URL
from tests.bots.conftest import Project, wait_until
from tests.bots.remote import Remote, running_remote
from tests.bots.test_audit import parts
from tests.bots.test_cron import parameters

HELLO = "exports.handler = async (medplum, event) => { console.log('Hello world'); };"
TELL = "exports.handler = async (medplum, event) => { console.log(JSON.stringify(event.headers)); };"
FAIL = "exports.handler = async () => { throw new Error('no'); };"
SECRET = "https://www.medplum.com/fhir/StructureDefinition/subscription-secret"


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    with running_remote() as server:
        yield server


@pytest.fixture
def tag() -> str:
    return uuid.uuid4().hex


def patient(tag: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": "urn:test", "value": tag}]} | elements


def hook(project: Project, url: str, tag: str, *extensions: dict[str, Any], **channel: Any) -> str:
    """Subscribe a URL (or, with a type, an address) to the Patients of a test; returns the Subscription's id."""
    elements: dict[str, Any] = {
        "channel": {"type": "rest-hook", "endpoint": url, "payload": "application/fhir+json"} | channel
    }
    if extensions:
        elements["extension"] = list(extensions)
    return str(project.subscribe("", f"Patient?identifier=urn:test|{tag}", **elements)["id"])


def listen(project: Project, bot: str, tag: str, *extensions: dict[str, Any]) -> str:
    elements = {"extension": list(extensions)} if extensions else {}
    return str(project.subscribe(bot, f"Patient?identifier=urn:test|{tag}", **elements)["id"])


def states(project: Project, subscription: str) -> list[tuple[str, int]]:
    """State and attempts of the deliveries, oldest first."""
    found = reversed(deliveries(project.admin, subscription, count=100))
    return [(each.state, each.attempts) for each in found]


def wait_for(project: Project, subscription: str, *expected: tuple[str, int]) -> None:
    try:
        wait_until(lambda: states(project, subscription) == list(expected))
    except AssertionError:
        pytest.fail(f"{states(project, subscription)} instead of {expected}")


def hurry(subscription: str) -> None:
    """Let the next attempts come now."""
    Delivery.objects.filter(subscription_id=subscription, state="retrying").update(due=datetime.now(UTC))


def attempts(number: int) -> dict[str, Any]:
    return {"url": ATTEMPTS_URL, "valueInteger": number}


# --- URLs ------------------------------------------------------------------------------------------------------------


def test_request_to_a_url(project: Project, remote: Remote, tag: str) -> None:
    secret = {"url": SECRET, "valueString": "key"}
    lines = ["Authorization: Basic a:b", "X-Medplum-Interaction: mine", "bad name: x"]
    subscription = hook(project, f"{remote.rule}/{tag}", tag, secret, header=lines)
    trace = str(uuid.uuid4())
    made = project.http.post("/fhir/R4/Patient", json=patient(tag), headers={"x-trace-id": trace}).json()
    project.http.delete(f"/fhir/R4/Patient/{made['id']}").raise_for_status()
    first, second = project.audit_events(f"Subscription/{subscription}", 2)
    created, deleted = [each for each in remote.seen if each[1] == f"/{tag}"]
    method, _, seen, body = created
    assert method == "POST"
    assert (
        json.loads(body)
        == project.repository.read_version("Patient", made["id"], made["meta"]["versionId"]).resource
    )
    assert seen["content-type"] == "application/fhir+json"
    assert seen["authorization"] == "Basic a:b"
    assert seen["x-medplum-subscription"] == subscription
    assert seen["x-medplum-interaction"] == "mine"
    assert seen["x-signature"] == hmac.new(b"key", body, hashlib.sha256).hexdigest()
    assert seen["x-trace-id"] == trace
    assert seen["traceparent"].startswith(f"00-{trace.replace('-', '')}-")
    assert seen["x-fhirbots-attempt"] == "1"
    assert deleted[3] == b"{}"
    assert deleted[2]["x-medplum-deleted-resource"] == f"Patient/{made['id']}"
    assert first["type"]["code"] == "transmit"
    assert first["agent"] == [{"type": {"text": "Subscription"}, "requestor": False}]
    assert first["source"]["observer"]["reference"] == f"Subscription/{subscription}"
    assert [each["what"]["reference"] for each in first["entity"]] == [
        f"Patient/{made['id']}",
        f"Subscription/{subscription}",
    ]
    assert (first["outcome"], first["outcomeDesc"]) == ("0", "Attempt 1 received status 200")
    assert first["period"]["start"] == made["meta"]["lastUpdated"]
    assert parts(first, "https://medplum.com/fhir/StructureDefinition/tracing")["traceId"] == trace
    assert [each.audit_event_id for each in deliveries(project.admin, subscription)] == [
        second["id"],
        first["id"],
    ]


def test_url_that_fails_is_tried_again_and_each_attempt_is_visible(
    project: Project, remote: Remote, tag: str
) -> None:
    subscription = hook(project, f"{remote.rule}/status?503", tag, attempts(3))
    project.post("/fhir/R4/Patient", patient(tag))
    for number in (1, 2):
        wait_for(project, subscription, ("retrying", number))
        hurry(subscription)
    wait_for(project, subscription, ("failed", 3))
    events = project.audit_events(f"Subscription/{subscription}", 3)
    assert [each["outcomeDesc"] for each in events] == [f"Attempt {n} received status 503" for n in (1, 2, 3)]
    assert {each["outcome"] for each in events} == {"4"}


def test_success_codes_and_destination_of_audit_events(project: Project, remote: Remote, tag: str) -> None:
    codes = {"url": SUCCESS_URL, "valueString": "404, 500-599"}
    subscription = hook(
        project, f"{remote.rule}/status?503", tag, codes, {"url": DESTINATION_URL, "valueCode": "log"}
    )
    project.post("/fhir/R4/Patient", patient(tag))
    wait_for(project, subscription, ("done", 1))
    assert project.audit_events(f"Subscription/{subscription}") == []


def test_private_addresses_and_dead_servers_are_failures(project: Project, tag: str) -> None:
    private = hook(project, "http://127.0.0.1:9/x", tag, attempts(1))
    dead = hook(project, "http://localhost:9/x", tag, attempts(1))
    project.post("/fhir/R4/Patient", patient(tag))
    for subscription, text in ((private, "not on the public internet"), (dead, "connection refused")):
        (event,) = project.audit_events(f"Subscription/{subscription}", 1)
        assert text in event["outcomeDesc"]
        assert "/x" not in event["outcomeDesc"]


def test_slow_endpoints_leave_room_for_bots(project: Project, remote: Remote, tag: str) -> None:
    slow = hook(project, f"{remote.rule}/wait", tag)
    fast = listen(project, project.bot(HELLO, filename="a.cjs"), tag)
    for _ in range(12):
        project.post("/fhir/R4/Patient", patient(tag))
    wait_for(project, fast, *[("done", 1)] * 12)
    assert "running" in {state for state, _ in states(project, slow)}
    remote.gate.set()
    wait_for(project, slow, *[("done", 1)] * 12)


@pytest.mark.parametrize(
    ("channel", "text"),
    [
        ({"type": "rest-hook", "endpoint": "ftp://example.com"}, "must be Bot/{id} or an address"),
        ({"type": "email", "endpoint": "nobody"}, "must be an address such as mailto:"),
        ({"type": "sms"}, "channel type sms is not supported"),
    ],
)
def test_channel_that_cannot_be_delivered_to_is_warned_of(
    project: Project, tag: str, channel: dict[str, str], text: str
) -> None:
    subscription = {
        "resourceType": "Subscription", "status": "active", "reason": "test", "criteria": f"Patient?identifier={tag}",
        "channel": channel,
    }  # fmt: skip
    answer = project.http.post("/fhir/R4/Subscription", json=subscription)
    assert answer.status_code == 201
    assert text in answer.headers["warning"]
    assert text in subscription_state(project.admin, answer.json()["id"]).problem


# --- Bots ------------------------------------------------------------------------------------------------------------


def test_bot_that_fails_is_tried_again_under_the_same_delivery(project: Project, tag: str) -> None:
    code = """exports.handler = async (medplum, event) => {
      console.log(JSON.stringify(event.headers));
      if (event.headers['X-Fhirbots-Attempt'] === '1') throw new Error('not yet');
    };"""
    bot = project.bot(code, filename="a.cjs")
    subscription = listen(project, bot, tag)
    project.post("/fhir/R4/Patient", patient(tag))
    wait_for(project, subscription, ("retrying", 1))
    hurry(subscription)
    wait_for(project, subscription, ("done", 2))
    events = project.audit_events(f"Subscription/{subscription}", 2)
    assert [each["outcome"] for each in events] == ["4", "0"]
    assert parts(events[1], "urn:fhirbots:bot-run")["attempt"] == 2
    told = [json.loads(each["outcomeDesc"].partition("\n")[0]) for each in events]
    assert len({each["X-Fhirbots-Delivery"] for each in told}) == 1


def test_one_attempt_where_the_subscription_says_so(project: Project, tag: str) -> None:
    subscription = listen(project, project.bot(FAIL, filename="a.cjs"), tag, attempts(1))
    project.post("/fhir/R4/Patient", patient(tag))
    wait_for(project, subscription, ("failed", 1))


def test_newer_version_supersedes_what_waits_for_its_next_attempt(project: Project, tag: str) -> None:
    code = """exports.handler = async (medplum, event) => {
      if (!event.input.active) throw new Error('no');
      console.log(String(event.input.active)); };"""
    subscription = listen(project, project.bot(code, filename="a.cjs"), tag)
    made = project.post("/fhir/R4/Patient", patient(tag))
    wait_for(project, subscription, ("retrying", 1))
    project.http.put(f"/fhir/R4/Patient/{made['id']}", json=made | {"active": True}).raise_for_status()
    wait_for(project, subscription, ("skipped", 2), ("done", 1))
    assert "newer version" in deliveries(project.admin, subscription)[1].outcome


def test_deleted_resource_ends_the_attempts(project: Project, tag: str) -> None:
    interactions = {"url": INTERACTION_URL, "valueCode": "create"}
    subscription = listen(project, project.bot(FAIL, filename="a.cjs"), tag, interactions)
    made = project.post("/fhir/R4/Patient", patient(tag))
    wait_for(project, subscription, ("retrying", 1))
    project.http.delete(f"/fhir/R4/Patient/{made['id']}").raise_for_status()
    hurry(subscription)
    wait_for(project, subscription, ("skipped", 2))
    assert "deleted" in deliveries(project.admin, subscription)[0].outcome


# --- which changes ---------------------------------------------------------------------------------------------------


def test_fhirpath_criteria_compare_with_the_version_before(project: Project, tag: str) -> None:
    def path(expression: str) -> dict[str, str]:
        return {"url": FHIRPATH_URL, "valueString": expression}

    bot = project.bot(HELLO, filename="a.cjs")
    turned = listen(project, bot, tag, path("%previous.active = false and %current.active = true"))
    new = listen(project, bot, tag, path("%previous.exists().not() or %previous.id.empty()"))
    two = listen(project, bot, tag, path("active"), path("%previous.active.exists()"))
    gone = listen(
        project, bot, tag, path("%current = %previous"), {"url": INTERACTION_URL, "valueCode": "delete"}
    )
    every = listen(project, bot, tag)
    made = project.post("/fhir/R4/Patient", patient(tag, active=False))
    project.http.put(f"/fhir/R4/Patient/{made['id']}", json=made | {"active": True}).raise_for_status()
    project.http.delete(f"/fhir/R4/Patient/{made['id']}").raise_for_status()
    wait_for(project, every, *[("done", 1)] * 3)
    for subscription, heard in (
        (turned, ["update"]),
        (new, ["create"]),
        (two, ["delete", "update"]),
        (gone, ["delete"]),
    ):
        found = sorted(each.interaction for each in deliveries(project.admin, subscription))
        assert found == heard, subscription


def test_subscription_whose_end_has_passed_hears_nothing(project: Project, tag: str) -> None:
    bot = project.bot(HELLO, filename="a.cjs")
    moment = (datetime.now(UTC) - timedelta(seconds=1)).isoformat(timespec="milliseconds")
    over = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}", end=moment)["id"]
    every = listen(project, bot, tag)
    project.post("/fhir/R4/Patient", patient(tag))
    wait_for(project, every, ("done", 1))
    assert states(project, over) == []
    assert "its end has passed" in subscription_state(project.admin, over).problem


def test_author_hears_only_what_its_access_policy_lets_it_read(
    project: Project, remote: Remote, tag: str
) -> None:
    subscription = {
        "resourceType": "Subscription", "status": "active", "reason": "test",
        "criteria": f"Patient?identifier=urn:test|{tag}",
        "channel": {"type": "rest-hook", "endpoint": f"{remote.rule}/{tag}"},
    }  # fmt: skip
    client = project.restricted_client()
    author = httpx.Client(base_url=project.http.base_url, auth=(client["id"], client["secret"]), timeout=30)
    made = author.post("/fhir/R4/Subscription", json=subscription).json()["id"]
    observations = author.post(
        "/fhir/R4/Subscription", json=subscription | {"criteria": f"Observation?code={tag}"}
    ).json()["id"]
    author.close()
    project.post("/fhir/R4/Patient", patient(tag, active=False))
    project.post("/fhir/R4/Patient", patient(tag, active=True, birthDate="2000-01-01"))
    wait_for(project, made, ("skipped", 1), ("done", 1))
    assert "author of the Subscription may not read" in deliveries(project.admin, made)[1].outcome
    (sent,) = [each for each in remote.seen if each[1] == f"/{tag}"]
    assert json.loads(sent[3])["active"] is True
    assert "birthDate" not in json.loads(sent[3])
    assert "does not allow to read Observation" in subscription_state(project.admin, observations).problem
    (membership,) = project.search(f"ProjectMembership?profile=ClientApplication/{client['id']}")
    project.http.delete(f"/fhir/R4/ProjectMembership/{membership['id']}").raise_for_status()
    wait_until(lambda: "no longer a member" in subscription_state(project.admin, made).problem)
    project.post("/fhir/R4/Patient", patient(tag, active=True))
    wait_for(project, made, ("skipped", 1), ("done", 1), ("failed", 1))


# --- pause, dead letters, giving up ----------------------------------------------------------------------------------


def test_changes_during_a_pause_are_counted_and_can_be_made_up_for(project: Project, tag: str) -> None:
    subscription = listen(project, project.bot(HELLO, filename="a.cjs"), tag)
    path = f"/fhir/R4/Subscription/{subscription}"
    off = [{"op": "replace", "path": "/status", "value": "off"}]
    project.http.patch(path, json=off).raise_for_status()
    for _ in range(3):
        project.post("/fhir/R4/Patient", patient(tag))
    wait_for(project, subscription, *[("skipped", 0)] * 3)
    assert subscription_state(project.admin, subscription).counts == {"skipped": 3}
    project.http.patch(path, json=[off[0] | {"value": "active"}]).raise_for_status()
    assert parameters(project.http.post(f"{path}/$replay").json())["replayed"] == 0
    answer = project.http.post(f"{path}/$replay?paused=true")
    assert parameters(answer.json())["replayed"] == 3
    wait_for(project, subscription, *[("done", 1)] * 3)


def test_dead_letters_are_listed_and_replayed(project: Project, remote: Remote, tag: str) -> None:
    subscription = hook(project, f"{remote.rule}/status?500", tag, attempts(1))
    first, second = (project.post("/fhir/R4/Patient", patient(tag))["id"] for _ in range(2))
    wait_for(project, subscription, ("failed", 1), ("failed", 1))
    path = f"/fhir/R4/Subscription/{subscription}"
    listed = parameters(project.http.get(f"{path}/$deliveries", params={"state": "failed"}).json())
    assert listed["total"] == 2
    found = [parameters({"parameter": each}) for each in listed["delivery"]]
    assert [each["resource"]["reference"] for each in found] == [f"Patient/{second}", f"Patient/{first}"]
    assert found[0]["outcome"] == "Attempt 1 received status 500"
    whole = parameters(project.http.get("/fhir/R4/Subscription/$deliveries?state=failed&_count=1").json())
    assert (
        parameters({"parameter": whole["delivery"]})["owner"]["reference"] == f"Subscription/{subscription}"
    )
    body = project.http.get(path).json()
    body["channel"]["endpoint"] = f"{remote.rule}/status?200"
    project.http.put(path, json=body).raise_for_status()
    one = project.http.post(f"{path}/$replay", params={"delivery": found[1]["id"]})
    assert parameters(one.json())["replayed"] == 1
    wait_for(project, subscription, ("done", 2), ("failed", 1))
    assert parameters(project.http.post(f"{path}/$replay").json())["replayed"] == 1
    wait_for(project, subscription, ("done", 2), ("done", 2))
    for query in ("$deliveries?state=lost", "$deliveries?_count=x"):
        assert project.http.get(f"{path}/{query}").status_code == 400
    assert project.http.post(f"{path}/$replay?delivery=x").status_code == 400


def test_subscription_that_always_fails_is_switched_off(project: Project, remote: Remote, tag: str) -> None:
    rules = json.dumps([{"maxConsecutiveFailures": 3, "timeWindowSeconds": 600}])
    setting = [{"name": "subscriptionAutoDisable", "valueString": rules}]
    project.http.patch(
        f"/fhir/R4/Project/{project.id}", json=[{"op": "add", "path": "/setting", "value": setting}]
    ).raise_for_status()
    try:
        subscription = hook(project, f"{remote.rule}/status?500", tag, attempts(1))
        for number in range(3):
            assert project.repository.read("Subscription", subscription).resource["status"] == "active"
            project.post("/fhir/R4/Patient", patient(tag))
            wait_for(project, subscription, *[("failed", 1)] * (number + 1))
        stored = project.repository.read("Subscription", subscription).resource
        assert stored["status"] == "off"
        assert (
            stored["error"]
            == "Automatically disabled after 3 consecutive failed events in the last 600 seconds"
        )
        assert "Automatically disabled" in subscription_state(project.admin, subscription).problem
        assert project.audit_events(f"Subscription/{subscription}", 4)[-1]["outcome"] in ("4", "8")
        outcomes = [each["outcome"] for each in project.audit_events(f"Subscription/{subscription}")]
        assert sorted(outcomes) == ["4", "4", "4", "8"]
    finally:
        project.http.patch(
            f"/fhir/R4/Project/{project.id}", json=[{"op": "remove", "path": "/setting"}]
        ).raise_for_status()


def test_resend(project: Project, tag: str) -> None:
    bot = project.bot(TELL, filename="a.cjs")
    made = project.post("/fhir/R4/Patient", patient(tag))
    subscription, other = listen(project, bot, tag), listen(project, bot, tag)
    path = f"/fhir/R4/Patient/{made['id']}/$resend"
    reference = f"Subscription/{subscription}"
    answer = project.http.post(
        path, json={"subscription": reference, "interaction": "create", "verbose": True}
    )
    assert parameters(answer.json()) == {"subscription": {"reference": reference}}
    wait_for(project, subscription, ("done", 1))
    assert states(project, other) == []
    assert deliveries(project.admin, subscription)[0].interaction == "create"
    assert project.http.post(path).json()["id"] == "ok"
    wait_for(project, subscription, ("done", 1), ("done", 1))
    wait_for(project, other, ("done", 1))
    for body in ({"interaction": "read"}, {"subscription": "Bot/1"}):
        assert project.http.post(path, json=body).status_code == 400
    assert project.http.post(f"/fhir/R4/Patient/{uuid.uuid4()}/$resend").status_code == 404


def test_replay_resend_and_the_list_of_the_project_are_for_admins(project: Project, tag: str) -> None:
    client = project.post(f"/admin/projects/{project.id}/client", {"name": "C"})
    made = project.post("/fhir/R4/Patient", patient(tag))
    subscription = listen(project, project.bot(), tag)
    with httpx.Client(
        base_url=project.http.base_url, auth=(client["id"], client["secret"]), timeout=30
    ) as plain:
        for method, path in (
            ("POST", f"Patient/{made['id']}/$resend"),
            ("POST", f"Subscription/{subscription}/$replay"),
            ("POST", "Subscription/$replay"),
            ("GET", "Subscription/$deliveries"),
        ):
            assert plain.request(method, f"/fhir/R4/{path}").status_code == 403, path
        assert plain.get(f"/fhir/R4/Subscription/{subscription}/$deliveries").status_code == 200


# --- as functions ----------------------------------------------------------------------------------------------------

EVENT = Event(7, 1, "s", "update", "Patient/p", "v", "not a uuid", datetime(2026, 1, 1, tzinfo=UTC))


def test_mail_tells_what_happened_and_attaches_only_what_is_asked_for() -> None:
    channel = {"type": "email", "endpoint": "mailto:a@example.com", "header": ["Subject: News"]}
    subscription = {"channel": channel, "reason": "why"}
    assert send_mail(EVENT, subscription, b'{"secret":1}').ok
    assert send_mail(EVENT, {"channel": channel | {"payload": "application/fhir+json"}}, b'{"secret":1}').ok
    plain, full = mail.outbox
    assert (plain.to, plain.subject, plain.attachments) == (["a@example.com"], "News", [])
    assert "Patient/p was updated" in plain.body
    assert "secret" not in plain.body
    assert full.attachments[0][1] == '{"secret":1}'


def test_attempt_that_breaks_in_our_own_hands_has_failed_and_says_so() -> None:
    endpoint: dict[str, Any] = {
        "endpoint": "https://example.com/",
        "header": 5,
    }  # stored before it was checked
    for send in (post, send_mail):
        sent = send(EVENT, {"channel": endpoint}, b"{}")
        assert not sent.ok
        assert sent.text == "Attempt 1 failed by a fault of the server (TypeError), whose log tells more"


def test_success_codes_that_cannot_be_read_are_the_usual_ones() -> None:
    def subscription(text: str) -> dict[str, Any]:
        return {"extension": [{"url": SUCCESS_URL, "valueString": text}]}

    assert is_success({}, 302)
    assert not is_success({}, 404)
    assert is_success(subscription("404"), 404)
    assert not is_success(subscription("404"), 200)
    assert is_success(subscription("2xx"), 200)


def test_attempts_of_the_subscription_its_project_and_by_default() -> None:
    project = {"setting": [{"name": "subscriptionMaxAttempts", "valueInteger": 9}]}
    assert max_attempts({}, {}) == 4
    assert max_attempts({}, project) == 9
    assert max_attempts({"extension": [attempts(2)]}, project) == 2


def test_headers_of_the_channel_are_split_once_and_replace_ours() -> None:
    channel = {"header": ["X: a:b:c", "content-type: text/plain", "evil: x\ny: z", "no colon"]}
    found = headers(EVENT, {"channel": channel}, b"")
    assert found["X"] == "a:b:c"
    assert [name for name in found if name.lower() == "content-type"] == ["content-type"]
    assert "evil" not in found
    assert "traceparent" not in found
