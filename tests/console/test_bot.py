"""Bots: creating, listing, their story."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

import pytest

from bots.api import bot_create
from fhirstore.api import Repository, system_identity
from tests.console.conftest import Person

NEW = {"name": "hello", "description": "Says hello", "access_policy": "", "language": "typescript"}


def record_run(
    person: Person, bot: str, text: str, outcome: str = "0", subscription: str | None = None
) -> str:
    """An AuditEvent as the executor writes it."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    references = [f"Bot/{bot}", *([f"Subscription/{subscription}"] if subscription else [])]
    event = {
        "resourceType": "AuditEvent",
        "type": {"system": "https://medplum.com/CodeSystem/audit-event", "code": "execute"},
        "recorded": now,
        "outcome": outcome,
        "outcomeDesc": text,
        "agent": [{"requestor": True}],
        "source": {"observer": {"reference": f"Bot/{bot}"}},
        "entity": [{"what": {"reference": reference}} for reference in references],
    }
    return Repository(system_identity(person.identity.project), trace_id=str(uuid.uuid4())).create(event).id


def test_creating_a_bot_is_acknowledged_with_its_id_and_the_next_steps(alice: Person) -> None:
    answer = alice.post("/admin/bots/new", NEW)
    page = alice.page(answer["Location"])
    found = re.search(r'data-copy="([0-9a-f-]{36})"', page)
    assert found is not None
    id = found.group(1)
    assert "Bot created" in page
    assert f"/Bot/{id}/editor" in page
    assert f"/Subscription/new?endpoint=Bot/{id}" in page
    bot = alice.repository.read("Bot", id).resource
    assert (bot["name"], bot["description"]) == ("hello", "Says hello")
    assert alice.repository.search_one("ProjectMembership", [("profile", f"Bot/{id}")]) is not None


def test_a_bot_can_be_written_in_python(alice: Person) -> None:
    answer = alice.post("/admin/bots/new", NEW | {"language": "python"})
    id = answer["Location"].partition("created=")[2]
    bot = alice.repository.read("Bot", id).resource
    assert (bot["sourceCode"]["contentType"], bot["sourceCode"]["title"]) == ("text/x-python", "index.py")
    page = alice.page(f"/Bot/{id}/editor")
    assert 'data-language="python"' in page
    assert "async def handler(medplum: MedplumClient, event: BotEvent):" in page


def test_a_bot_needs_a_name(alice: Person) -> None:
    answer = alice.post("/admin/bots/new", NEW | {"name": " "})
    assert answer.status_code == 422
    assert "This field is required" in answer.content.decode()


def test_policies_of_the_project_can_be_chosen_and_no_others(alice: Person, charlie: Person) -> None:
    policy = alice.repository.create({"resourceType": "AccessPolicy", "name": "Only patients"}).id
    foreign = charlie.repository.create({"resourceType": "AccessPolicy", "name": "Foreign"}).id
    page = alice.page("/admin/bots/new")
    assert "Only patients" in page
    assert "Foreign" not in page
    for reference in (f"AccessPolicy/{foreign}", f"AccessPolicy/{uuid.uuid4()}"):
        refused = alice.post("/admin/bots/new", NEW | {"access_policy": reference})
        assert refused.status_code == 422
        assert "There is no such access policy in this project." in refused.content.decode()
    assert alice.post("/admin/bots/new", NEW | {"access_policy": f"AccessPolicy/{policy}"}).status_code == 302


def test_bot_new_leads_to_the_form(alice: Person) -> None:
    assert alice.client.get("/Bot/new")["Location"] == "/admin/bots/new"


def test_an_empty_list_says_what_a_bot_is(alice: Person) -> None:
    page = alice.page("/Bot")
    assert "A Bot is a small program that runs when data changes." in page
    assert "New…" in page


def test_the_list_shows_state_runs_and_subscriptions(alice: Person, bot: str) -> None:
    record_run(alice, bot, "boom", outcome="4")
    alice.repository.create(
        {
            "resourceType": "Subscription",
            "status": "active",
            "reason": "x",
            "criteria": "Patient",
            "channel": {"type": "rest-hook", "endpoint": f"Bot/{bot}"},
        }
    )
    page = alice.page("/Bot")
    assert "hello-patient" in page
    assert "Never deployed" in page
    assert "Minor failure" in page
    assert f"/Bot/{bot}/event?outcome=4,8,12" in page
    assert f"/Bot/{bot}/subscriptions" in page
    assert "No Bot matches" in alice.page("/Bot?name=nothing-like-it")
    assert "hello-patient" in alice.page("/Bot?name=PATIENT")


def test_the_list_searches_no_more_often_for_many_bots(
    alice: Person, bot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[str] = []
    search = Repository.search

    def counted(self: Repository, request):  # type: ignore[no-untyped-def]
        if request.type != "SearchParameter":  # known for some seconds, read again after them
            searches.append(request.type)
        return search(self, request)

    monkeypatch.setattr(Repository, "search", counted)
    alice.page("/Bot")
    one = len(searches)
    searches.clear()
    for number in range(8):
        alice.repository.create({"resourceType": "Bot", "name": f"bot {number}"})
    alice.page("/Bot")
    assert len(searches) == one == 3


def test_the_timeline_tells_runs_with_outcome_time_and_log(alice: Person, bot: str) -> None:
    run = record_run(alice, bot, "Hello world\nsecond line")
    page = alice.page(f"/Bot/{bot}")
    assert 'aria-label="Timeline"' in page
    article = page.split("<article")[1].split("</article>")[0]
    assert "Success" in article
    assert "<time datetime=" in article
    assert "Hello world" in article
    assert f"/AuditEvent/{run}" in article
    assert "Created" in page


def test_older_items_are_behind_a_link(alice: Person, bot: str) -> None:
    for number in range(25):
        record_run(alice, bot, f"run number {number:02}")
    page = alice.page(f"/Bot/{bot}")
    newest = re.findall(r"run number (\d\d)", page)
    older = re.search(r'href="(\?before=[^"]+)"', page)
    assert older is not None
    oldest = re.findall(r"run number (\d\d)", alice.page(f"/Bot/{bot}{older.group(1)}"))
    # Runs of the same millisecond may stand in any order, but each stands once.
    assert sorted(newest + oldest) == [f"{number:02}" for number in range(25)]
    assert newest[0] > oldest[0]


def test_news_counts_what_is_newer_and_is_silent_otherwise(alice: Person, bob: Person, bot: str) -> None:
    record_run(alice, bot, "old")
    page = alice.page(f"/Bot/{bot}")
    found = re.search(r'hx-get="(/-/news/[^"]+)"', page)
    assert found is not None
    url = found.group(1)
    assert alice.client.get(url).status_code == 204
    record_run(alice, bot, "new")
    assert "1 new event." in alice.page(url)
    bob.page(url, 403)
    alice.page(url.split("?")[0] + "?after=yesterday", 400)


def test_events_are_filtered_by_outcome(alice: Person, bot: str) -> None:
    record_run(alice, bot, "fine")
    record_run(alice, bot, "boom", outcome="4")
    page = alice.page(f"/Bot/{bot}/event?outcome=4,8,12")
    assert "boom" in page
    assert "fine" not in page


def test_bot_subscriptions_warn_when_the_bot_was_never_deployed(alice: Person, bot: str) -> None:
    assert "No Subscription calls this Bot." in alice.page(f"/Bot/{bot}/subscriptions")
    data = {
        "status": "active",
        "reason": "x",
        "criteria": "Patient",
        "channel_type": "rest-hook",
        "endpoint": f"Bot/{bot}",
    }
    alice.post("/Subscription/new", data)
    assert "never been deployed" in alice.page(f"/Bot/{bot}/subscriptions")


def test_deleting_a_bot_names_what_still_points_to_it(alice: Person, bot: str) -> None:
    data = {
        "status": "active",
        "reason": "x",
        "criteria": "Patient",
        "channel_type": "rest-hook",
        "endpoint": f"Bot/{bot}",
    }
    alice.post("/Subscription/new", data)
    assert "Subscription on Patient" in alice.page(f"/Bot/{bot}/delete")


def test_a_bot_without_a_policy_is_said_to_be_unlimited_and_where_that_is_changed(
    alice: Person, bot: str
) -> None:
    said = "No access policy: this Bot can read and write everything in the project."
    for url in (f"/Bot/{bot}", f"/Bot/{bot}/editor"):
        assert said in alice.page(url)
    found = re.search(r'<a href="(/ProjectMembership/[^"]+/edit)">', alice.page(f"/Bot/{bot}/editor"))
    assert found is not None
    assert "accessPolicy" in alice.page(found.group(1))

    repository = alice.repository
    policy = repository.create(
        {"resourceType": "AccessPolicy", "name": "p", "resource": [{"resourceType": "Patient"}]}
    )
    membership = repository.read("ProjectMembership", found.group(1).split("/")[2]).resource
    repository.update({**membership, "accessPolicy": {"reference": f"AccessPolicy/{policy.id}"}})
    for url in (f"/Bot/{bot}", f"/Bot/{bot}/editor"):
        assert said not in alice.page(url)

    of_caller = bot_create(repository, name="as-caller", language="javascript").id
    repository.update({**repository.read("Bot", of_caller).resource, "runAsUser": True})
    orphan = repository.create({"resourceType": "Bot", "name": "orphan"}).id
    for id in (of_caller, orphan):
        assert said not in alice.page(f"/Bot/{id}")
