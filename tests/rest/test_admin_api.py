"""Project administration: clients, invitations, members."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from fhirstore import models
from fhirstore.api import client_create, memberships_of_user
from tests.conftest import Server
from tests.rest.conftest import FORM, Caller, text_of


def invitation(**elements: Any) -> dict[str, Any]:
    """The body of an invitation as Medplum's command line sends it."""
    return {
        "resourceType": "Practitioner",
        "firstName": "Alice",
        "lastName": "Jones",
        "email": f"{uuid.uuid4()}@example.com",
        "sendEmail": False,
        **elements,
    }


def test_the_project_is_described(home: Caller) -> None:
    answer = home.send("GET", f"/admin/projects/{home.project}")
    assert answer.json() == {"project": {"id": home.project, "name": "Home"}}


def test_a_new_client_shows_its_secret_once_and_can_log_in(home: Caller) -> None:
    body = {"name": "Importer", "description": "x", "redirectUri": "https://example.com/cb"}
    answer = home.send("POST", f"/admin/projects/{home.project}/client", body)
    made = answer.json()
    assert answer.status_code == 201
    assert len(made["secret"]) == 64
    assert made["redirectUris"] == ["https://example.com/cb"]
    client = Caller(home.project, made["id"], made["secret"], "", "")
    assert client.send("GET", "/auth/me").json()["membership"].get("admin") is None
    assert "secret" not in home.send("GET", f"ClientApplication/{made['id']}").json()


def test_an_invitation_makes_user_profile_and_membership(home: Caller) -> None:
    body = invitation(password="correct horse battery", admin=True)
    answer = home.send(
        "POST", f"/admin/projects/{home.project}/invite", body, content_type="application/json"
    )
    membership = answer.json()
    assert answer.status_code == 200
    assert membership["admin"] is True
    profile = home.send("GET", membership["profile"]["reference"]).json()
    assert profile["name"] == [{"given": ["Alice"], "family": "Jones"}]
    user = models.User.objects.get(email=body["email"])
    assert user.check_password("correct horse battery")
    assert [each.id for each in memberships_of_user(user)] == [membership["id"]]


def test_the_running_server_keeps_a_password_as_a_costly_hash(server: Server) -> None:
    body = invitation(password="correct horse battery")
    credentials = (server.client_id, server.client_secret)
    with httpx.Client(base_url=server.base_url, auth=credentials, timeout=60) as http:
        project = http.get("/auth/me").json()["project"]["id"]
        assert http.post(f"/admin/projects/{project}/invite", json=body).status_code == 200
    assert models.User.objects.get(email=body["email"]).password.startswith("scrypt$16384$")


def test_inviting_again_is_a_conflict_unless_it_updates(home: Caller) -> None:
    path, body = f"/admin/projects/{home.project}/invite", invitation()
    first = home.send("POST", path, body).json()
    again = home.send("POST", path, body)
    assert (again.status_code, text_of(again)) == (409, "User is already a member of this project")
    updated = home.send("POST", path, {**body, "upsert": True, "membership": {"admin": True}}).json()
    assert (updated["id"], updated["admin"]) == (first["id"], True)


def test_a_user_of_another_project_becomes_a_member_with_his_own_password(
    home: Caller, foreign: Caller
) -> None:
    body = invitation(email=foreign.email.upper(), password="another one, longer")
    assert home.send("POST", f"/admin/projects/{home.project}/invite", body).status_code == 200
    user = models.User.objects.get(email=foreign.email)
    assert user.check_password(foreign.password)
    assert {each.project for each in memberships_of_user(user)} == {home.project, foreign.project}


NO_PATIENT = (
    "A RelatedPerson needs a patient: name the Patient in patient, or an existing RelatedPerson in membership.profile,"
    " or create a RelatedPerson with this email first"
)


def test_a_related_person_is_invited_for_a_patient_or_as_one_that_is_there(home: Caller) -> None:
    def invite(**elements: Any) -> Any:
        body = invitation(resourceType="RelatedPerson", **elements)
        return home.send("POST", f"/admin/projects/{home.project}/invite", body)

    patient = {"reference": f"Patient/{home.create({'resourceType': 'Patient'})['id']}"}
    made = invite(patient=patient).json()["profile"]["reference"]
    assert home.send("GET", made).json()["patient"] == patient

    there = {"resourceType": "RelatedPerson", "patient": patient}
    named = f"RelatedPerson/{home.create(there)['id']}"
    answer = invite(membership={"profile": {"reference": named}})
    assert answer.json()["profile"]["reference"] == named

    email = f"{uuid.uuid4()}@example.com"
    there["telecom"] = [{"system": "email", "value": email}]
    known = f"RelatedPerson/{home.create(there)['id']}"
    assert invite(email=email).json()["profile"]["reference"] == known, "as Medplum's command line asks"

    email = f"{uuid.uuid4()}@example.com"
    there["telecom"] = [{"system": "email", "value": email}]
    home.create(there)
    home.create(there)
    two = invite(email=email)
    assert (two.status_code, text_of(two)) == (400, NO_PATIENT)
    assert not models.User.objects.filter(email=email).exists()


def test_members_are_read_changed_and_removed(home: Caller) -> None:
    made = home.send("POST", f"/admin/projects/{home.project}/invite", invitation()).json()
    path = f"/admin/projects/{home.project}/members/{made['id']}"
    assert home.send("GET", path).json()["user"] == made["user"]
    assert home.send("POST", path, {**made, "admin": True}).json()["admin"] is True
    assert home.send("POST", path, {**made, "id": str(uuid.uuid4())}).status_code == 403
    assert home.send("DELETE", path).json()["id"] == "ok"
    assert home.send("GET", path).status_code == 410


def test_the_owner_cannot_be_removed(home: Caller) -> None:
    owner = memberships_of_user(models.User.objects.get(email=home.email))[0]
    answer = home.send("DELETE", f"/admin/projects/{home.project}/members/{owner.id}")
    assert (answer.status_code, text_of(answer)) == (400, "Cannot delete the owner of the project")


def test_only_admins_get_in(home: Caller) -> None:
    made = client_create(home.repository, name="Plain")
    plain = Caller(home.project, made["id"], made["secret"], "", "")
    for method, path in (("GET", ""), ("POST", "/client"), ("POST", "/invite"), ("DELETE", "/members/x")):
        answer = plain.send(method, f"/admin/projects/{home.project}{path}", {})
        assert (answer.status_code, answer.json()["id"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("path", "body", "status", "text", "expression"),
    [
        ("client", {}, 400, "Client name is required", ["name"]),
        ("client", {"name": " "}, 400, "Client name is required", ["name"]),
        ("client", b"{", 400, "The request body is not valid JSON", None),
        ("client", {"name": "x", "redirectUris": "y"}, 400, 'Expected a list of items but got type "str".', ["redirectUris"]),
        ("invite", invitation(firstName=""), 400, "First name is required", ["firstName"]),
        ("invite", invitation(lastName=None), 400, "Last name is required", ["lastName"]),
        ("invite", invitation(email="x"), 400, "Enter a valid email address.", ["email"]),
        ("invite", invitation(resourceType="Bot"), 400, '"Bot" is not a valid choice.', ["resourceType"]),
        ("invite", invitation(password="kq7w-z2"), 400, "This password is too short. It must contain at least 8 characters.", ["password"]),
        ("invite", invitation(resourceType="RelatedPerson"), 400, NO_PATIENT, ["patient"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_body_is_said(
    home: Caller, path: str, body: Any, status: int, text: str, expression: list[str] | None
) -> None:
    answer = home.send("POST", f"/admin/projects/{home.project}/{path}", body)
    issue = answer.json()["issue"][0]
    assert (answer.status_code, issue["details"]["text"], issue.get("expression")) == (
        status,
        text,
        expression,
    )


def test_methods_and_content_types_are_checked(home: Caller) -> None:
    path = f"/admin/projects/{home.project}/client"
    assert home.send("PUT", path, {}).json()["id"] == "method-not-allowed"
    form = home.send("POST", path, "name=x", content_type=FORM)
    assert (form.status_code, form.json()["id"]) == (415, "unsupported-media-type")
    other = home.send("GET", f"/admin/projects/{home.project}", accept="application/fhir+xml")
    assert (other.status_code, other.json()["id"]) == (406, "not-acceptable")


def test_a_failed_invitation_leaves_nothing(home: Caller) -> None:
    body = invitation(membership={"accessPolicy": {"reference": "Nonsense/1"}, "unheard": 1})
    answer = home.send("POST", f"/admin/projects/{home.project}/invite", body)
    assert answer.status_code == 400
    assert not models.User.objects.filter(email=body["email"]).exists()
    assert home.send("GET", f"Practitioner?email={body['email']}&_summary=count").json()["total"] == 0


@pytest.mark.parametrize(
    "element",
    [
        {"id": str(uuid.uuid4())},
        {"user": {"reference": "User/x"}},
        {"project": {"reference": "Project/x"}},
        {"resourceType": "Project"},
        {"meta": {"author": {"reference": "Practitioner/forged"}}},
        {"repository": 1},
    ],
)
def test_an_invitation_says_nothing_of_what_is_the_servers(home: Caller, element: dict[str, Any]) -> None:
    (name,) = element
    answer = home.send(
        "POST", f"/admin/projects/{home.project}/invite", invitation(membership={"admin": True, **element})
    )
    assert (answer.status_code, text_of(answer)) == (400, f"An invitation cannot set {name}")


def test_odd_profiles_and_bodies_are_refused(home: Caller) -> None:
    path = f"/admin/projects/{home.project}/invite"
    assert home.send("POST", path, invitation(membership={"profile": "x"})).status_code == 400
    assert home.send("POST", path, "[" * 100_000).status_code == 400
    assert home.send("POST", path, '"' + "x" * 11_000_000 + '"').status_code == 413
