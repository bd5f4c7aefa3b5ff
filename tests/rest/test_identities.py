"""Who may do what: memberships, access policies, acting for others, and how changes reach the cache."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from fhirstore import models
from fhirstore.api import (
    FhirError,
    client_create,
    identity_of_membership,
    membership_create,
    memberships_of_user,
)
from fhirstore.auth import identities
from tests.rest.conftest import Caller, new_caller, smith, text_of


def new_client(home: Caller, **membership: Any) -> Caller:
    """A further client of the project."""
    made = client_create(home.repository, name="Other", membership=membership)
    return Caller(home.project, made["id"], made["secret"], "", "")


def membership_of(caller: Caller) -> dict[str, Any]:
    """The ProjectMembership of a caller."""
    id = identities.membership_of_profile(caller.project, f"ClientApplication/{caller.client_id}")
    assert id is not None
    return caller.repository.read("ProjectMembership", id).resource


def policy(home: Caller, *resources: dict[str, Any]) -> dict[str, str]:
    """An AccessPolicy; returns a reference to it."""
    stored = home.repository.create(
        {"resourceType": "AccessPolicy", "name": "p", "resource": list(resources)}
    )
    return {"reference": f"AccessPolicy/{stored.id}"}


def test_a_client_without_policy_reaches_all_data_but_no_administration(home: Caller) -> None:
    client = new_client(home)
    assert client.send("POST", "Patient", smith()).status_code == 201
    for path in ("AccessPolicy", "ProjectMembership", "Project", f"/admin/projects/{home.project}"):
        assert client.send("GET", path).status_code == 403, path
    attempt = {"resourceType": "ProjectMembership", "user": {"reference": "x"}}
    assert client.send("POST", "ProjectMembership", attempt).status_code == 403


def test_a_policy_limits_what_is_seen_and_written(home: Caller) -> None:
    reference = policy(home, {"resourceType": "Patient", "criteria": "Patient?gender=male", "readonly": True})
    client = new_client(home, accessPolicy=reference)
    seen, hidden = home.create(smith(gender="male"))["id"], home.create(smith(gender="female"))["id"]
    assert client.send("GET", f"Patient/{seen}").status_code == 200
    assert client.send("GET", f"Patient/{hidden}").status_code == 404
    assert client.send("GET", "Observation").status_code == 403
    assert client.send("POST", "Patient", smith(gender="male")).status_code == 403
    found = client.send("GET", "Patient?_count=1000").json()["entry"]
    assert {entry["resource"]["gender"] for entry in found} == {"male"}
    assert (
        client.send("GET", "/auth/me").json()["accessPolicy"]["resource"][0]["criteria"]
        == "Patient?gender=male"
    )


def test_several_access_entries_join_and_take_their_parameters(home: Caller) -> None:
    family = uuid.uuid4().hex
    by_family = policy(home, {"resourceType": "Patient", "criteria": "Patient?family=%family"})
    tasks = policy(home, {"resourceType": "Task"})
    parameter = [{"name": "family", "valueString": family}]
    client = new_client(home, access=[{"policy": by_family, "parameter": parameter}, {"policy": tasks}])
    mine = home.create(smith(name=[{"family": family}]))["id"]
    other = home.create(smith())["id"]
    assert client.send("GET", f"Patient/{mine}").status_code == 200
    assert client.send("GET", f"Patient/{other}").status_code == 404
    assert client.send("GET", "Task").status_code == 200
    assert client.send("GET", "Encounter").status_code == 403


def test_changes_of_policy_membership_and_project_count_at_once(home: Caller) -> None:
    reference = policy(home, {"resourceType": "Patient"})
    client = new_client(home, accessPolicy=reference)
    assert client.send("GET", "Patient").status_code == 200
    id = reference["reference"].partition("/")[2]
    changed = {"resourceType": "AccessPolicy", "id": id, "resource": [{"resourceType": "Task"}]}
    assert home.send("PUT", f"AccessPolicy/{id}", changed).status_code == 200
    assert client.send("GET", "Patient").status_code == 403
    home.repository.delete("AccessPolicy", id)
    assert client.send("GET", "Task").status_code == 403, "a policy that is gone grants nothing"
    membership = membership_of(client)
    membership.pop("accessPolicy")
    home.repository.update(membership)
    assert client.send("GET", "Patient").status_code == 200
    home.repository.update({**membership, "active": False})
    assert client.send("GET", "Patient").status_code == 401
    home.repository.update({**membership, "active": True})
    assert client.send("GET", "Patient").status_code == 200
    home.repository.delete("ProjectMembership", membership["id"])
    assert client.send("GET", "Patient").status_code == 401


def test_an_inactive_project_lets_nobody_in(database: None) -> None:
    caller = new_caller()
    assert caller.send("GET", "Patient").status_code == 200
    project = caller.repository.read("Project", caller.project).resource
    caller.repository.update({**project, "active": False})
    assert caller.send("GET", "Patient").status_code == 401
    assert memberships_of_user(models.User.objects.get(email=caller.email)) == []


def test_a_rolled_back_change_is_no_change(home: Caller) -> None:
    client = new_client(home)
    membership = membership_of(client)

    def fail_late() -> None:
        with home.repository.transaction():
            home.repository.delete("ProjectMembership", membership["id"])
            home.repository.read("Patient", str(uuid.uuid4()))

    with pytest.raises(FhirError):
        fail_late()
    assert client.send("GET", "Patient").status_code == 200


def test_an_admin_may_act_for_another_member(home: Caller) -> None:
    reference = policy(home, {"resourceType": "Patient"})
    client = new_client(home, accessPolicy=reference)
    membership = membership_of(client)
    for target in (f"ProjectMembership/{membership['id']}", f"ClientApplication/{client.client_id}"):
        headers = {"x_medplum_on_behalf_of": target, "x_medplum": "extended"}
        meta = home.send("POST", "Patient", smith(), **headers).json()["meta"]
        assert meta["author"]["reference"] == f"ClientApplication/{home.client_id}"
        assert meta["onBehalfOf"]["reference"] == f"ClientApplication/{client.client_id}"
        assert home.send("GET", "Task", **headers).status_code == 403, "under the other's policy"
    assert client.send("GET", "Patient", x_medplum_on_behalf_of=target).status_code == 403
    unknown = home.send("GET", "Patient", x_medplum_on_behalf_of=f"ProjectMembership/{uuid.uuid4()}")
    assert (unknown.status_code, text_of(unknown)) == (
        400,
        "X-Medplum-On-Behalf-Of names no member of this project",
    )


def test_nobody_acts_for_a_member_of_another_project(home: Caller, foreign: Caller) -> None:
    theirs = f"ProjectMembership/{membership_of(foreign)['id']}"
    assert home.send("GET", "Patient", x_medplum_on_behalf_of=theirs).status_code == 400


def test_identity_of_membership_knows_profile_rights_and_features(home: Caller) -> None:
    identity = identity_of_membership(membership_of(home)["id"])
    assert identity.project == home.project
    assert identity.profile == f"ClientApplication/{home.client_id}"
    assert identity.is_admin
    assert "bots" in identity.features
    for unknown in (str(uuid.uuid4()), "x"):
        with pytest.raises(FhirError) as refused:
            identity_of_membership(unknown)
        assert refused.value.status == 401


def test_memberships_of_user_names_every_project(home: Caller, foreign: Caller) -> None:
    user = models.User.objects.get(email=home.email)
    assert [each.project for each in memberships_of_user(user)] == [home.project]
    practitioner = foreign.repository.create({"resourceType": "Practitioner"})
    membership = membership_create(
        foreign.repository,
        user={"reference": f"User/{user.id}"},
        profile={"reference": f"Practitioner/{practitioner.id}"},
    )
    both = memberships_of_user(user)
    assert {each.project for each in both} == {home.project, foreign.project}
    assert {each.is_admin for each in both if each.project == foreign.project} == {False}
    foreign.repository.delete("ProjectMembership", membership.id)


def test_a_client_secret_never_enters_the_resource_and_only_admins_set_it(home: Caller) -> None:
    resource = {
        "resourceType": "ClientApplication",
        "name": "x",
        "secret": "first",
        "retiringSecret": "second",
    }
    answer = home.send("POST", "ClientApplication", resource)
    assert answer.status_code == 201
    assert not {"secret", "retiringSecret"} & answer.json().keys()
    id = answer.json()["id"]
    assert not {"secret", "retiringSecret"} & home.repository.read("ClientApplication", id).resource.keys()
    for secret in ("first", "second"):
        assert identities.project_of_client(id, secret) == home.project
    assert identities.project_of_client(id, "third") is None
    plain = new_client(home)
    plain.send("PUT", f"ClientApplication/{home.client_id}", {**resource, "id": home.client_id})
    assert identities.project_of_client(home.client_id, "first") is None
    assert identities.project_of_client(home.client_id, home.secret) == home.project
    assert plain.send("POST", "ClientApplication", resource).status_code == 403
    home.send("PUT", f"ClientApplication/{id}", {**answer.json(), "description": "kept"})
    assert identities.project_of_client(id, "first") == home.project
    home.send("DELETE", f"ClientApplication/{id}")
    assert identities.project_of_client(id, "first") is None


def test_rotating_a_secret_keeps_the_old_one_until_it_is_removed(home: Caller) -> None:
    client = new_client(home)
    path = f"ClientApplication/{client.client_id}/$rotate-secret"
    rotated = home.send("POST", path, {"secret": client.secret}).json()
    assert rotated["secret"] != client.secret
    renewed = Caller(home.project, client.client_id, rotated["secret"], "", "")
    assert client.send("GET", "Patient").status_code == 200
    assert renewed.send("GET", "Patient").status_code == 200
    parameters = {
        "resourceType": "Parameters",
        "parameter": [{"name": "retiringSecret", "valueString": client.secret}],
    }
    assert home.send("POST", path, parameters).status_code == 200
    assert client.send("GET", "Patient").status_code == 401
    assert renewed.send("GET", "Patient").status_code == 200
    for wrong in (
        {},
        {"secret": "x"},
        {"secret": "x", "retiringSecret": "y"},
        {"retiringSecret": "x"},
        {"secret": 5},
    ):
        assert home.send("POST", path, wrong).status_code == 400, wrong
    assert renewed.send("POST", path, {"secret": rotated["secret"]}).status_code == 403


def test_what_a_transaction_takes_back_is_not_remembered(home: Caller) -> None:
    reference = policy(home, {"resourceType": "Patient"})
    client = new_client(home, accessPolicy=reference)
    membership, id = membership_of(client)["id"], reference["reference"].partition("/")[2]

    def open_for_a_moment() -> None:
        with home.repository.transaction():
            wide = {"resourceType": "AccessPolicy", "id": id, "resource": [{"resourceType": "*"}]}
            home.repository.update(wide)
            identity_of_membership(membership)
            home.repository.read("Patient", str(uuid.uuid4()))

    with pytest.raises(FhirError):
        open_for_a_moment()
    assert client.send("GET", "Task").status_code == 403


def test_only_admins_decide_where_the_codes_of_a_client_go(home: Caller) -> None:
    """Whoever is signed in is sent to the address without being asked: a member could make himself an admin by it."""
    plain = new_client(home)
    evil = {"redirectUris": ["https://evil.example/cb"]}
    refused = plain.send(
        "POST", "ClientApplication", {"resourceType": "ClientApplication", "name": "x", **evil}
    )
    assert (refused.status_code, text_of(refused)) == (
        403,
        "Only a project admin may change redirectUris of a client",
    )
    present = home.send("GET", f"ClientApplication/{home.client_id}").json()
    for change in (evil, {"redirectUri": "https://evil.example"}, {"pkceOptional": True}):
        assert plain.send("PUT", f"ClientApplication/{home.client_id}", present | change).status_code == 403
    described = plain.send("PUT", f"ClientApplication/{home.client_id}", present | {"description": "x"})
    assert described.status_code == 200
    assert (
        home.send("POST", "ClientApplication", {"resourceType": "ClientApplication", **evil}).status_code
        == 201
    )
