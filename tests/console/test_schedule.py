"""The schedule of a Bot, and what became of deliveries."""

from __future__ import annotations

import re
import uuid

from bots.api import Delivery
from bots.tasks import dispatch_changes
from tests.console.conftest import Person


def test_a_schedule_is_written_previewed_run_and_removed(alice: Person, bot: str) -> None:
    url = f"/Bot/{bot}/schedule"
    assert "The schedule has not run this Bot yet." in alice.page(url)
    preview = alice.page("/-/preview/cron?cron=0+9+*+*+1-5&zone=Europe/Berlin")
    assert "09:00" in preview
    assert "Europe/Berlin" in preview
    assert preview.count("<li>") == 6
    assert "five fields" in alice.page("/-/preview/cron?cron=every+day")
    saved = alice.post(
        url,
        {
            "action": "save",
            "cron": "0 9 * * 1-5",
            "zone": "Europe/Berlin",
            "overlap": "queue",
            "missed": "skip",
        },
    )
    assert saved.headers["Location"] == url
    resource = alice.repository.read("Bot", bot).resource
    assert resource["cronString"] == "0 9 * * 1-5"
    assert {each["valueCode"] for each in resource["extension"]} == {"Europe/Berlin", "queue", "skip"}
    page = alice.page(url)
    assert "never been deployed" in page
    assert re.search(r'value="Europe/Berlin"', page)
    alice.post(url, {"action": "run"})
    assert Delivery.objects.filter(bot_id=bot, trigger="cron").count() == 1
    assert "Waiting" in alice.page(url)
    alice.post(url, {"action": "remove"})
    resource = alice.repository.read("Bot", bot).resource
    assert "cronString" not in resource
    assert "extension" not in resource


def test_a_schedule_that_makes_no_sense_is_refused_at_its_field(alice: Person, bot: str) -> None:
    url = f"/Bot/{bot}/schedule"
    for given, sentence in (
        ({"cron": "75 * * * *"}, "Invalid cron expression"),
        ({"cron": "0 9 * * *", "zone": "Mars/Base"}, "Unknown time zone"),
    ):
        answer = alice.post(url, {"action": "save", "overlap": "skip", "missed": "once", **given})
        assert answer.status_code == 422
        assert sentence in answer.content.decode()
    assert "cronString" not in alice.repository.read("Bot", bot).resource


def test_deliveries_are_listed_and_carried_out_again(alice: Person, bob: Person, bot: str) -> None:
    subscription = alice.repository.create(
        {
            "resourceType": "Subscription",
            "status": "active",
            "reason": "test",
            "criteria": "Patient",
            "channel": {"type": "rest-hook", "endpoint": f"Bot/{bot}"},
        }
    ).id
    url = f"/Subscription/{subscription}/deliveries"
    assert "Nothing has been delivered yet." in alice.page(url)
    patient = alice.repository.create({"resourceType": "Patient", "name": [{"family": "Doe"}]})
    dispatch_changes()
    rows = Delivery.objects.filter(subscription_id=subscription)
    assert rows.count() == 1
    rows.update(state="failed", outcome="The Bot failed: code", finished=rows.get().changed)
    page = alice.page(url)
    assert f"/Patient/{patient.id}/history/" in page
    assert "Given up" in page
    assert "Doe" not in page
    assert "No delivery is in this state." in alice.page(f"{url}?state=done")
    alice.post(url, {"delivery": str(rows.get().pk)})
    assert rows.get().state != "failed"
    rows.update(state="failed", finished=rows.get().changed)
    alice.post(url, {"all": "failed"})
    assert rows.get().state != "failed"
    assert (
        "nothing to deliver again" in alice.client.post(url, {"all": "failed"}, follow=True).content.decode()
    )
    bob.page(url, 403)
    alice.page(f"/Subscription/{uuid.uuid4()}/deliveries", 404)
