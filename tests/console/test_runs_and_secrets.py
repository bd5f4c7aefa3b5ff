"""The page of a run, with what the archive has of it; secrets and settings of the project."""

from __future__ import annotations

import uuid

from tests.console.conftest import Person

SECRET = "a-very-secret-value"


def test_secrets_are_added_replaced_and_deleted_but_never_shown(alice: Person, bob: Person, bot: str) -> None:
    for url in ("/admin/secrets", f"/Bot/{bot}/secrets"):
        assert "No secrets yet." in alice.page(url)
        assert alice.post(url, {"name": "API_KEY", "value": SECRET}).headers["Location"] == url
        assert alice.post(url, {"name": "OTHER", "value": "x"}).status_code == 302
        page = alice.page(url)
        assert "API_KEY" in page
        assert SECRET not in page
        replaced = alice.client.post(
            url, {"name": "API_KEY", "value": "another"}, follow=True
        ).content.decode()
        assert "Secret API_KEY replaced" in replaced
        refused = alice.post(url, {"name": "1 bad name", "value": "x"})
        assert refused.status_code == 422
        assert "Letters, digits" in refused.content.decode()
        alice.post(url, {"delete": "OTHER"})
        assert "Secret OTHER deleted" in alice.page(url)
        assert "OTHER" not in alice.page(url)
        bob.page(url, 403)
    project = alice.repository.read("Project", alice.identity.project).resource
    assert project["secret"] == [{"name": "API_KEY", "valueString": "********"}]
    assert "API_KEY" in alice.page(f"/Bot/{bot}/secrets")


def test_settings_and_features_are_switched_in_the_console(alice: Person, bob: Person) -> None:
    given = {
        "name": "Clinic",
        "features": ["bots", "email"],
        "timeZone": "Europe/Berlin",
        "botAllowedHosts": "api.example.com",
        "subscriptionMaxAttempts": "6",
        "botRunData": "log",
        "botRunDays": "",
    }
    assert alice.post("/admin/settings", given).headers["Location"] == "/admin/project"
    project = alice.repository.read("Project", alice.identity.project).resource
    assert project["name"] == "Clinic"
    assert set(project["features"]) == {"bots", "email", "transaction-bundles"}
    assert {each["name"] for each in project["setting"]} == {
        "timeZone",
        "botAllowedHosts",
        "subscriptionMaxAttempts",
        "botRunData",
    }
    page = alice.page("/admin/settings")
    assert 'value="Europe/Berlin"' in page
    assert 'value="6"' in page
    refused = alice.post("/admin/settings", {**given, "botAllowedHosts": "not a host!!"})
    assert refused.status_code == 422
    emptied = {name: "" for name in given if name != "features"} | {"name": "Clinic"}
    alice.post("/admin/settings", emptied)
    project = alice.repository.read("Project", alice.identity.project).resource
    assert project["features"] == ["transaction-bundles"]
    assert "setting" not in project
    bob.page("/admin/settings", 403)


def test_a_run_without_archive_shows_the_log_of_its_auditevent(alice: Person, bot: str) -> None:
    event = alice.repository.create(
        {
            "resourceType": "AuditEvent",
            "type": {"system": "https://medplum.com/CodeSystem/audit-event", "code": "execute"},
            "recorded": "2026-01-01T00:00:00Z",
            "outcome": "0",
            "outcomeDesc": "Hello world",
            "agent": [{"requestor": False}],
            "source": {"observer": {"reference": f"Bot/{bot}"}},
            "entity": [{"what": {"reference": f"Bot/{bot}"}}],
        }
    )
    page = alice.page(f"/AuditEvent/{event.id}")
    assert "Hello world" in page
    assert "Run again" not in page
    alice.page(f"/-/run/{event.id}/input", 404)
    alice.page(f"/-/run/{uuid.uuid4()}/input", 404)
    assert alice.post(f"/AuditEvent/{event.id}/replay").status_code == 404
