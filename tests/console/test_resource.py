"""Pages of any resource."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import pytest

from console.views.resource import PAGE_SIZE
from tests.console.conftest import Person


def create_patient(person: Person, **elements: Any) -> str:
    return person.repository.create({"resourceType": "Patient", **elements}).id


def test_a_type_alone_leads_to_its_whole_address(alice: Person) -> None:
    answer = alice.client.get("/Patient")
    assert answer["Location"] == (
        "/Patient?_count=20&_fields=id,name,birthDate,gender,_lastUpdated&_offset=0&_sort=-_lastUpdated"
    )


def test_the_list_shows_the_columns_of_the_address(alice: Person) -> None:
    id = create_patient(alice, name=[{"given": ["Jane"], "family": "Doe"}], birthDate="1970-01-02")
    page = alice.page("/Patient?_fields=name,birthDate")
    assert "Jane Doe" in page
    assert "1970-01-02" in page
    assert f"/Patient/{id}" in page


def test_an_unknown_column_is_a_notice_and_an_unknown_parameter_an_error(alice: Person) -> None:
    page = alice.page("/Patient?_fields=id,nonsense")
    assert "nonsense" in page
    assert "no such element" in page
    page = alice.page("/Patient?_fields=id&nonsense=1", 400)
    assert "Unknown search parameter" in page
    assert "nonsense" in page


def test_filters_sort_and_pages_are_in_the_address(alice: Person) -> None:
    for number in range(PAGE_SIZE + 3):
        create_patient(alice, name=[{"family": f"Smith{number:02}"}], active=number % 2 == 0)
    first = alice.page(f"/Patient?_fields=name&_sort=family&_count={PAGE_SIZE}")
    assert "Smith00" in first
    assert "Smith22" not in first
    assert "_offset=20" in first
    second = alice.page(f"/Patient?_fields=name&_sort=family&_count={PAGE_SIZE}&_offset=20")
    assert "Smith22" in second
    filtered = alice.page("/Patient?_fields=name&active=true&_sort=family")
    assert "Smith02" in filtered
    assert "Smith01" not in filtered
    assert "Remove filter active = true" in filtered
    added = alice.client.get("/Patient?_fields=name&_add=family&_modifier=:exact&_value=Smith05")
    assert added["Location"] == "/Patient?_fields=name&family:exact=Smith05&_offset=0"
    added = alice.client.get("/Patient?_fields=name&_add=birthdate&_modifier=ge&_value=1970")
    assert added["Location"] == "/Patient?_fields=name&birthdate=ge1970&_offset=0"


def test_unknown_types_are_not_found(alice: Person) -> None:
    for url in ("/Nonsense", "/Nonsense/new", "/Nonsense/1", "/Nonsense/1/edit", "/Nonsense/1/history"):
        alice.page(url, 404)


def test_a_patient_is_created_by_the_form(alice: Person) -> None:
    page = alice.page("/Patient/new")
    names = re.findall(r'name="([^"]+)"', page)
    assert "r.name.0.given.0" in names
    base = json.dumps({"resourceType": "Patient", "name": [{}]})
    data = {
        "action": "save",
        "mode": "form",
        "base": base,
        "r.name.0.given.0": "Jane",
        "r.name.0.family": "Doe",
    }
    answer = alice.post("/Patient/new", data)
    assert answer.status_code == 302
    id = answer["Location"].removeprefix("/Patient/")
    assert alice.repository.read("Patient", id).resource["name"] == [{"given": ["Jane"], "family": "Doe"}]
    page = alice.page(f"/Patient/{id}")
    assert "Patient created." in page
    assert "Jane Doe" in page
    assert "<title>" in page
    assert "Jane" not in page.split("</title>")[0]


def test_htmx_is_sent_on_to_the_new_page(alice: Person) -> None:
    data = {"action": "save", "mode": "json", "json": '{"resourceType": "Patient"}'}
    answer = alice.post("/Patient/new", data, htmx=True)
    assert answer.status_code == 204
    assert answer["HX-Redirect"].startswith("/Patient/")


def test_any_resource_is_created_as_json(alice: Person) -> None:
    observation = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
    data = {"action": "save", "mode": "json", "json": json.dumps(observation)}
    location = alice.post("/Observation/new", data)["Location"]
    assert alice.repository.read_reference(location.removeprefix("/")).resource["status"] == "final"


def test_validation_issues_stand_at_their_fields(alice: Person) -> None:
    data = {"action": "save", "mode": "form", "base": '{"resourceType": "Patient"}', "r.birthDate": "never"}
    answer = alice.post("/Patient/new", data)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert 'id="f-birthDate-error"' in page
    assert 'value="never"' in page
    assert alice.post("/Patient/new", data, htmx=True).status_code == 200


def test_the_form_refuses_what_the_store_refuses_and_keeps_the_text(alice: Person) -> None:
    text = '{"resourceType": "Patient", "nonsense": 1}'
    answer = alice.post("/Patient/new", {"action": "save", "mode": "json", "json": text})
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "Invalid additional property" in page
    assert "&quot;nonsense&quot;: 1" in page


def test_an_edit_sends_the_version_it_has_seen(alice: Person) -> None:
    id = create_patient(alice, gender="female")
    stored = alice.repository.read("Patient", id)
    data = {
        "action": "save",
        "mode": "json",
        "version": stored.version_id,
        "json": json.dumps(stored.resource | {"gender": "male"}),
    }
    assert alice.post(f"/Patient/{id}/edit", data)["Location"] == f"/Patient/{id}"
    assert alice.repository.read("Patient", id).resource["gender"] == "male"
    refused = alice.post(f"/Patient/{id}/edit", data | {"json": data["json"].replace("male", "other")})
    assert refused.status_code == 422
    assert "Precondition Failed" in refused.content.decode()
    assert alice.repository.read("Patient", id).resource["gender"] == "male"


def test_details_json_history_and_difference(alice: Person) -> None:
    id = create_patient(alice, gender="female")
    alice.repository.update(alice.repository.read("Patient", id).resource | {"gender": "male"})
    assert id in alice.page(f"/Patient/{id}/details")
    assert "male" in alice.page(f"/Patient/{id}/json")
    page = alice.page(f"/Patient/{id}/history")
    assert "Changed: gender" in page
    new, old = re.findall(r'name="old" value="([^"]+)"', page)
    moved = alice.client.get(f"/Patient/{id}/history?old={old}&new={new}")
    page = alice.page(moved["Location"])
    assert '"gender": "female"' in page.replace("&quot;", '"')
    assert "\N{MINUS SIGN}" in page
    assert "female" in alice.page(f"/Patient/{id}/history/{old}")
    assert alice.client.get(f"/Patient/{id}/_history")["Location"] == f"/Patient/{id}/history"


def test_deleting_needs_the_name_and_leaves_the_history(alice: Person) -> None:
    id = alice.repository.create({"resourceType": "Organization", "name": "Clinic"}).id
    assert alice.post(f"/Organization/{id}/delete", {"name": "wrong"}).status_code == 422
    assert alice.post(f"/Organization/{id}/delete", {"name": "Clinic"})["Location"] == "/Organization"
    page = alice.page(f"/Organization/{id}", 410)
    assert "Deleted" in page
    assert f"/Organization/{id}/history" in page
    assert "Deleted" in alice.page(f"/Organization/{id}/history")


def test_a_resource_of_another_project_is_not_found(alice: Person, charlie: Person) -> None:
    id = create_patient(alice, name=[{"family": "Hidden-Name"}])
    for tab in ("", "/details", "/edit", "/history", "/json", "/delete"):
        assert "Hidden-Name" not in charlie.page(f"/Patient/{id}{tab}", 404)
    assert "Hidden-Name" not in charlie.page("/Patient?_fields=id,name")


def test_markup_in_resources_is_text(alice: Person) -> None:
    id = create_patient(alice, name=[{"family": "<script>alert(1)</script>"}])
    for url in (
        f"/Patient/{id}",
        f"/Patient/{id}/details",
        f"/Patient/{id}/edit",
        f"/Patient/{id}/json",
        "/Patient?_fields=name",
    ):
        assert "<script>alert" not in alice.page(url)


@pytest.mark.parametrize("id", ["x", "..", str(uuid.uuid4()), "1" * 64])
def test_odd_ids_are_not_found(alice: Person, id: str) -> None:
    alice.page(f"/Patient/{id}", 404)


def test_the_list_of_types_can_be_searched(alice: Person) -> None:
    page = alice.page("/resources?q=patient")
    assert 'href="/Patient"' in page
    assert 'href="/Subscription">Subscription' not in page.split("<main")[1]


def test_an_old_version_is_restored_as_a_new_one_also_after_deleting(alice: Person) -> None:
    id = create_patient(alice, gender="female")
    first = alice.repository.read("Patient", id)
    alice.repository.update(first.resource | {"gender": "male"})
    assert "Restore this version" in alice.page(f"/Patient/{id}/history/{first.version_id}")
    alice.post(f"/Patient/{id}/history/{first.version_id}/restore")
    restored = alice.repository.read("Patient", id).resource
    assert restored["gender"] == "female"
    assert restored["meta"]["author"]["reference"] == alice.identity.profile
    alice.repository.delete("Patient", id)
    page = alice.page(f"/Patient/{id}", 410)
    last = re.search(rf'href="/Patient/{id}/history/([^"]+)"', page)
    assert last is not None
    alice.post(f"/Patient/{id}/history/{last.group(1)}/restore")
    assert alice.repository.read("Patient", id).resource["gender"] == "female"
