"""The project's pages and the overview."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from django.core import mail
from django.test import Client

from bots.api import bot_create
from fhirstore.api import Invitation, client_create, member_invite
from tests.console.conftest import PASSWORD, Person
from tests.console.test_bot import record_run


def test_the_project_page_offers_a_new_bot(alice: Person) -> None:
    page = alice.page("/admin/project")
    assert "Create new Bot" in page
    assert alice.identity.project in page
    assert "bots" in page


def test_the_secret_of_a_client_is_shown_once_and_never_again(alice: Person, bot: str) -> None:
    answer = alice.post("/admin/clients/new", {"name": "ci", "admin": "on"})
    page = answer.content.decode()
    client, secret = re.findall(r'data-copy="([^"]+)"', page)
    assert len(secret) >= 32
    pages = ["/admin/clients", "/admin/project", "/", "/ClientApplication?_fields=id,name,secret"]
    pages += [
        f"/ClientApplication/{client}{tab}"
        for tab in ("", "/details", "/edit", "/edit?view=json", "/json", "/history")
    ]
    for url in pages:
        assert secret not in alice.page(url), url
    assert client in alice.page("/admin/clients")


def test_a_client_needs_a_name(alice: Person) -> None:
    assert alice.post("/admin/clients/new", {"name": ""}).status_code == 422


def test_people_are_listed_with_their_role(alice: Person, bob: Person) -> None:
    page = alice.page("/admin/users")
    assert "Bob Member" in page
    assert "Admin" in page


def test_a_person_is_invited(alice: Person) -> None:
    data = {"first_name": "Dora", "last_name": "New", "email": "dora@example.com", "role": "Practitioner"}
    assert alice.post("/admin/invite", data | {"password": "short"}).status_code == 422
    assert alice.post("/admin/invite", data)["Location"] == "/admin/users"
    assert "Dora New" in alice.page("/admin/users")
    again = alice.post("/admin/invite", data)
    assert again.status_code == 422
    assert "already a member" in again.content.decode()


DORA = {"first_name": "Dora", "last_name": "New", "role": "Practitioner"}


def test_an_invitation_mails_the_link_to_choose_a_password_when_asked_to(alice: Person) -> None:
    assert re.search(r'<input type="checkbox" name="send_email"[^>]*>', alice.page("/admin/invite"))
    data = DORA | {"email": f"dora-{alice.membership}@example.com"}
    assert alice.post("/admin/invite", data).status_code == 302
    assert mail.outbox == []

    data["email"] = f"mailed-{alice.membership}@example.com"
    page = alice.client.post("/admin/invite", data | {"send_email": "on"}, follow=True).content.decode()
    assert "An email with a link to choose a password was sent." in page
    (message,) = mail.outbox
    assert message.to == [data["email"]]
    assert message.subject == "Welcome to Project of alice"
    (path,) = re.findall(r"/setpassword/\S+", str(message.body))
    assert "/setpassword/" not in page
    visitor = Client()
    assert visitor.post(path, {"password": PASSWORD}).status_code == 302
    signed = visitor.post("/signin", {"email": data["email"], "password": PASSWORD})
    assert signed.headers["Location"] == "/"


def test_a_mail_server_that_refuses_is_named_and_the_person_is_a_member(alice: Person, settings: Any) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1  # where nobody listens
    data = DORA | {"email": f"dora-{alice.membership}@example.com", "send_email": "on"}
    answer = alice.post("/admin/invite", data)
    assert answer.status_code == 422
    page = answer.content.decode()
    assert "The person is a member now, but the email could not be sent: the mail server refused it" in page
    assert "Dora New" in alice.page("/admin/users")


def test_bots_are_listed_by_membership(alice: Person, bot: str) -> None:
    alice.repository.create({"resourceType": "Bot", "name": "orphan"})
    page = alice.page("/admin/bots")
    assert "hello-patient" in page
    assert "full access to the project" in page
    assert "Missing" in page


def all_rows(person: Person, url: str) -> list[str]:
    """The names in the first column of all pages, followed by *Next*."""
    found: list[str] = []
    address = url
    while address:
        page = person.page(address)
        found += re.findall(r'<th scope="row" data-label="Name"><a href="[^"]*">([^<]*)</a>', page)
        following = re.search(r'rel="next" href="([^"]*)"', page)
        address = url.partition("?")[0] + html.unescape(following.group(1)) if following else ""
    return found


@pytest.fixture
def crowd(alice: Person) -> None:
    """More Bots, clients and people than a page holds."""
    repository = alice.repository
    for number in range(55):
        with repository.transaction():
            bot_create(repository, name=f"bot {number:02}", language="javascript")
            client_create(repository, name=f"client {number:02}", description=None, membership=None)
        member_invite(
            repository,
            Invitation(
                "Practitioner", "Eve", f"Number{number:02}", f"eve{number}-{alice.membership}@example.com"
            ),
        )


def test_every_row_of_the_lists_is_reached_and_found_by_name(alice: Person, crowd: None) -> None:
    assert sorted(all_rows(alice, "/admin/bots")) == [f"bot {number:02}" for number in range(55)]
    assert sorted(all_rows(alice, "/admin/clients")) == [f"client {number:02}" for number in range(55)]
    people = all_rows(alice, "/admin/users")
    assert sorted(people)[:55] == [f"Eve Number{number:02}" for number in range(55)]
    assert len(people) == 56  # and Alice herself
    assert all_rows(alice, "/admin/bots?name=OT+17") == ["bot 17"]
    assert all_rows(alice, "/admin/clients?name=17") == ["client 17"]
    assert all_rows(alice, "/admin/users?name=number17") == ["Eve Number17"]
    assert all_rows(alice, f"/admin/users?name=eve17-{alice.membership}@example.com") == ["Eve Number17"]
    assert len(all_rows(alice, "/admin/users?name=eve")) == 55
    project = alice.page("/admin/project")
    assert '<a href="/admin/users">56</a>' in project
    assert '<a href="/admin/clients">55</a>' in project
    assert '<a href="/admin/bots">55</a>' in project


@pytest.mark.parametrize("url", ["/admin/users", "/admin/bots", "/admin/clients", "/Bot"])
@pytest.mark.parametrize("text", ['"', "\\\\", "a,b|$c", 'x") or (name pr true', "<b>", "é" * 300])
def test_any_text_may_be_searched(alice: Person, url: str, text: str) -> None:
    page = alice.client.get(url, {"name": text})
    assert page.status_code == 200
    assert f'value="{html.escape(text)}"' in page.content.decode().replace("&quot;", "&#34;").replace(
        "&#34;", "&quot;"
    )
    if url != "/Bot":
        assert "Nothing matches this search." in page.content.decode()


def test_the_overview_teaches_the_first_steps_and_names_failing_bots(alice: Person, bot: str) -> None:
    page = alice.page("/")
    assert "First steps" in page
    assert "Nothing needs you." in page
    record_run(alice, bot, "boom", outcome="4")
    record_run(alice, bot, "fine")
    page = alice.page("/")
    assert "1 failed run in 24 hours" in page
    assert f"/Bot/{bot}/event?outcome=4,8,12" in page


def test_another_projects_runs_do_not_count(alice: Person, charlie: Person, bot: str) -> None:
    record_run(alice, bot, "boom", outcome="4")
    assert "failed run" not in charlie.page("/")


def test_health_is_a_fragment_for_admins(alice: Person, bob: Person) -> None:
    assert "Database" in alice.page("/-/health")
    bob.page("/-/health", 403)


def test_unknown_addresses_get_the_shell(alice: Person) -> None:
    page = alice.page("/nothing-here", 404)
    assert "Not found, or not in this project" in page
    assert "Project of alice" in page
