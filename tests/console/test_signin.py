"""Signing in and out, and choosing a theme."""

from __future__ import annotations

import re

import pytest
from django.core import mail
from django.test import Client

from fhirstore import models
from fhirstore.api import Invitation, member_invite
from fhirstore.auth.passwords import post_office
from tests.console.conftest import PASSWORD, Person


def sign_in(email: str, password: str, **extra: str) -> tuple[Client, int, str]:
    client = Client()
    answer = client.post("/signin", {"email": email, "password": password, **extra})
    return client, answer.status_code, answer.headers.get("Location", answer.content.decode())


def test_email_and_password_open_the_project(alice: Person) -> None:
    client, status, location = sign_in(alice.email, PASSWORD, next="/Bot")
    assert (status, location) == (302, "/Bot")
    assert "Project of alice" in client.get("/Bot").content.decode()


def test_unknown_people_and_wrong_passwords_get_the_same_sentence(alice: Person) -> None:
    _client, status, wrong = sign_in(alice.email, "wrong")
    _client, _status, unknown = sign_in("nobody@example.com", "wrong")
    sentence = "The email or the password is not right."
    assert status == 422
    assert sentence in wrong
    assert sentence in unknown


def test_after_several_tries_one_has_to_wait(alice: Person) -> None:
    for _ in range(10):
        sign_in(alice.email, "wrong")
    _client, status, page = sign_in(alice.email, PASSWORD)
    assert status == 422
    assert "Too many failed attempts. Try again in " in page
    models.Failure.objects.all().delete()


def test_a_forgotten_password_is_replaced_by_a_link(bob: Person) -> None:
    client = Client()
    assert "Forgotten your password?" in client.get("/signin").content.decode()
    page = client.post("/resetpassword", {"email": bob.email}).content.decode()
    assert "is on its way" in page
    assert "is on its way" in client.post("/resetpassword", {"email": "nobody@example.com"}).content.decode()
    post_office.submit(str).result()
    (message,) = mail.outbox
    path = re.findall(r"/setpassword/\S+", str(message.body))[0]
    assert "too short" in client.post(path, {"password": "x"}).content.decode()
    assert client.post(path, {"password": PASSWORD + "2"}).headers["Location"] == "/signin?signed-out"
    assert client.get(path).status_code == 404
    assert sign_in(bob.email, PASSWORD + "2")[1] == 302


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example/", "/signin?next=/", "javascript:alert(1)"]
)
def test_signing_in_leads_nowhere_else(alice: Person, target: str) -> None:
    _client, _status, location = sign_in(alice.email, PASSWORD, next=target)
    assert location == "/"


def test_with_several_memberships_the_project_is_chosen(alice: Person, charlie: Person) -> None:
    joined = member_invite(charlie.repository, Invitation("Practitioner", "Alice", "Admin", alice.email))
    client, status, page = sign_in(alice.email, PASSWORD)
    assert status == 200
    assert "Choose a project" in page
    assert "Project of charlie" in page
    client.post("/signin", {"membership": joined.id})
    assert "Project of charlie" in client.get("/").content.decode()


def test_nobody_chooses_the_membership_of_another_person(alice: Person, charlie: Person) -> None:
    client, _status, _location = sign_in(alice.email, PASSWORD)
    answer = client.post("/signin", {"membership": charlie.membership})
    assert "Project of charlie" not in answer.content.decode()
    assert "Project of charlie" not in client.get("/").content.decode()


def test_signing_out_ends_the_session(alice: Person) -> None:
    assert "Sign out" in alice.page("/signout")
    assert "data-signed-out" in alice.client.post("/signout", follow=True).content.decode()
    assert "data-signed-out" not in alice.page("/signin")
    assert alice.client.get("/").status_code == 302


def test_the_theme_is_part_of_the_first_answer(alice: Person) -> None:
    assert "data-bs-theme" not in alice.page("/help")
    assert alice.post("/-/theme", {"theme": "dark", "next": "/help"})["Location"] == "/help"
    assert 'data-bs-theme="dark"' in alice.page("/help")
    alice.post("/-/theme", {"theme": ""})
    assert "data-bs-theme" not in alice.page("/help")
