"""Three people: Alice administers a project, Bob is a member of it, Charlie administers another one."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from console.access import MEMBERSHIP_KEY, PROJECT_NAME_KEY
from fhirstore.api import Identity, Invitation, Repository, bootstrap, identity_of_membership, member_invite

PASSWORD = "a password for tests"


@dataclass
class Person:
    """Somebody with a signed-in browser."""

    email: str
    membership: str
    client: Client

    @property
    def identity(self) -> Identity:
        return identity_of_membership(self.membership)

    @property
    def repository(self) -> Repository:
        return Repository(self.identity, trace_id=str(uuid.uuid4()))

    def page(self, url: str, status: int = 200) -> str:
        """The text of a page that must answer with this status."""
        answer = self.client.get(url)
        assert answer.status_code == status, (url, answer.status_code)
        return str(answer.content.decode())

    def post(self, url: str, data: dict[str, Any] | None = None, *, htmx: bool = False) -> Any:
        """Send a form, as a browser without JavaScript or as htmx does."""
        headers = {"HX-Request": "true"} if htmx else {}
        return self.client.post(url, data or {}, headers=headers)


def signed_in(email: str, membership: str, project: str) -> Person:
    client = Client()
    client.force_login(get_user_model().objects.get(email=email))
    session = client.session
    session[MEMBERSHIP_KEY], session[PROJECT_NAME_KEY] = membership, project
    session.save()
    return Person(email, membership, client)


def administrator(name: str) -> Person:
    email, project = f"{name}-{uuid.uuid4().hex[:12]}@example.com", f"Project of {name}"
    made = bootstrap(email=email, password=PASSWORD, project_name=project)
    assert made.membership is not None
    return signed_in(email, made.membership, project)


@pytest.fixture
def alice(database: None) -> Person:
    return administrator("alice")


@pytest.fixture
def charlie(database: None) -> Person:
    return administrator("charlie")


@pytest.fixture
def bob(alice: Person) -> Person:
    email = f"bob-{uuid.uuid4().hex[:12]}@example.com"
    invitation = Invitation("Practitioner", "Bob", "Member", email, password=PASSWORD)
    membership = member_invite(alice.repository, invitation)
    return signed_in(email, membership.id, "Project of alice")


@pytest.fixture
def bot(alice: Person) -> str:
    """Id of a Bot of Alice's project."""
    from bots.api import bot_create

    return bot_create(alice.repository, name="hello-patient", language="javascript").id
