"""Subscriptions and events."""

from __future__ import annotations

import re

import pytest

from bots.api import INTERACTION_URL
from tests.console.conftest import Person
from tests.console.test_bot import record_run


def form_data(bot: str, **changes: str) -> dict[str, str]:
    return {
        "status": "active",
        "reason": "Say hello",
        "criteria": "Patient",
        "channel_type": "rest-hook",
        "endpoint": f"Bot/{bot}",
        "payload": "application/fhir+json",
        **changes,
    }


def create(person: Person, bot: str, **changes: str) -> str:
    answer = person.post("/Subscription/new", form_data(bot, **changes))
    assert answer.status_code == 302, answer.content.decode()
    return str(answer["Location"]).removeprefix("/Subscription/")


def test_the_fields_stand_in_the_tutorials_order(alice: Person) -> None:
    page = alice.page("/Subscription/new")
    labels = re.findall(r"<label[^>]*>([^<]+)</label>", page.split("<main")[1])
    assert labels[:6] == ["Status", "Reason", "Criteria", "Channel type", "Endpoint", "Payload"]
    assert "Create Subscription" in page


def test_a_subscription_is_created_as_the_form_says(alice: Person, bot: str) -> None:
    id = create(alice, bot, interactions="create")
    resource = alice.repository.read("Subscription", id).resource
    assert resource["channel"] == {
        "type": "rest-hook",
        "endpoint": f"Bot/{bot}",
        "payload": "application/fhir+json",
    }
    assert resource["extension"] == [{"url": INTERACTION_URL, "valueCode": "create"}]
    page = alice.page(f"/Subscription/{id}")
    assert "hello-patient" in page
    assert "Nothing has been delivered yet." in page or "Created" in page


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("reason", "", "This field is required"),
        ("criteria", "Nonsense", "Criteria must begin with a resource type"),
        ("criteria", "Patient?nmae=x", "Unknown search parameter"),
        ("status", "nonsense", "Select a valid choice"),
    ],
)
def test_errors_stand_at_their_fields(alice: Person, bot: str, field: str, value: str, said: str) -> None:
    answer = alice.post("/Subscription/new", form_data(bot, **{field: value}))
    page = answer.content.decode()
    assert answer.status_code == 422
    assert f'id="id_{field}_error"' in page
    assert said in page
    assert f"Bot/{bot}" in page


def test_the_form_begins_with_what_the_link_names(alice: Person, bot: str) -> None:
    page = alice.page(f"/Subscription/new?endpoint=Bot/{bot}&criteria=Patient")
    assert f'value="Bot/{bot}"' in page
    assert 'value="Patient"' in page


def test_the_timeline_shows_the_log_without_a_click(alice: Person, bot: str) -> None:
    id = create(alice, bot)
    record_run(alice, bot, "Hello world", subscription=id)
    page = alice.page(f"/Subscription/{id}")
    article = page.split("<article")[1].split("</article>")[0]
    assert "Hello world" in article
    assert "Success" in article


def test_pause_and_resume(alice: Person, bot: str) -> None:
    id = create(alice, bot)
    alice.post(f"/Subscription/{id}/status", {"status": "off"})
    assert alice.repository.read("Subscription", id).resource["status"] == "off"
    page = alice.page(f"/Subscription/{id}")
    assert "Changes during a pause are left out" in page
    assert "Resume" in page
    assert "Paused" in alice.page("/Subscription?status=off")
    alice.post(f"/Subscription/{id}/status", {"status": "active"})
    assert alice.repository.read("Subscription", id).resource["status"] == "active"


def test_the_list_names_the_bots_and_says_when_one_is_missing(alice: Person, bot: str) -> None:
    create(alice, bot)
    assert "hello-patient" in alice.page("/Subscription")
    alice.repository.delete("Bot", bot)
    assert "(missing)" in alice.page("/Subscription")


def test_a_subscription_of_another_project_is_not_found(alice: Person, charlie: Person, bot: str) -> None:
    id = create(alice, bot)
    charlie.page(f"/Subscription/{id}", 404)
    assert charlie.post(f"/Subscription/{id}/status", {"status": "off"}).status_code == 404
    assert alice.repository.read("Subscription", id).resource["status"] == "active"


def test_the_tutorials_link_works_literally(alice: Person, bot: str) -> None:
    run = record_run(alice, bot, "Hello world")
    page = alice.page("/AuditEvent?_count=20&_fields=id,_lastUpdated&_offset=0&_sort=-_lastUpdated")
    heads = re.findall(r'<th scope="col"[^>]*>(?:<a[^>]*>)?([^<]+)', page)
    assert [head.strip(" ↓") for head in heads] == ["id", "_lastUpdated"]
    assert f"/AuditEvent/{run}" in page
    assert "Show run columns" in page


def test_events_without_columns_are_shown_as_runs(alice: Person, bot: str) -> None:
    record_run(alice, bot, "Hello world")
    page = alice.page("/AuditEvent")
    assert "Hello world" in page
    assert "hello-patient" in page or f"Bot/{bot}" in page


def test_the_run_page_shows_log_and_bot(alice: Person, charlie: Person, bot: str) -> None:
    first, second = record_run(alice, bot, "first run"), record_run(alice, bot, "second run", outcome="4")
    page = alice.page(f"/AuditEvent/{second}")
    assert "second run" in page
    assert "Minor failure" in page
    assert f"/Bot/{bot}/editor" in page
    assert f"/AuditEvent/{first}" in page
    charlie.page(f"/AuditEvent/{second}", 404)
