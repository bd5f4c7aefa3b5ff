"""What the Repository promises about single resources."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fhirstore import database, hooks
from fhirstore.errors import FhirError, bad_request
from fhirstore.identity import Identity
from fhirstore.repository import Repository
from tests.fhirstore.conftest import patient


def status(call: object, *arguments: object, **named: object) -> int:
    with pytest.raises(FhirError) as refused:
        call(*arguments, **named)  # type: ignore[operator]
    return refused.value.status


def test_create_writes_its_own_meta_and_keeps_the_clients(repository: Repository) -> None:
    given = patient(
        id="mine",
        meta={
            "versionId": "1",
            "lastUpdated": "2001-01-01T00:00:00Z",
            "project": str(uuid.uuid4()),
            "author": {"reference": "Practitioner/somebody"},
            "tag": [{"code": "kept"}],
            "profile": ["https://example.com/kept"],
            "security": [{"code": "kept"}],
        },
    )
    stored = repository.create(given)
    resource = stored.resource
    assert uuid.UUID(stored.id)
    assert resource["id"] == stored.id != "mine"
    meta = resource["meta"]
    assert meta["versionId"] == stored.version_id
    assert datetime.fromisoformat(meta["lastUpdated"]) == stored.last_updated
    assert datetime.now(UTC) - stored.last_updated < timedelta(minutes=1)
    assert meta["project"] == repository.identity.project
    assert meta["author"] == {"reference": repository.identity.profile, "display": "Bob"}
    assert meta["compartment"] == [
        {"reference": f"Project/{repository.identity.project}"},
        {"reference": f"Patient/{stored.id}"},
    ]
    assert (meta["tag"], meta["profile"], meta["security"]) == (
        [{"code": "kept"}],
        ["https://example.com/kept"],
        [{"code": "kept"}],
    )
    assert given["id"] == "mine", "the caller's resource is not changed"
    assert repository.read("Patient", stored.id) == stored
    assert repository.read_reference(f"Patient/{stored.id}") == stored


def test_a_resource_is_in_the_compartment_of_its_patient(repository: Repository) -> None:
    reference = f"Patient/{uuid.uuid4()}"
    stored = repository.create(
        {
            "resourceType": "Observation",
            "status": "final",
            "code": {"text": "Weight"},
            "subject": {"reference": reference},
        }
    )
    assert {"reference": reference} in stored.resource["meta"]["compartment"]
    assert [found.id for found in repository.search_all("Observation", f"_compartment={reference}")] == [
        stored.id
    ]


def test_on_behalf_of_stands_in_meta(project: str, database: None) -> None:
    acting = Repository(Identity(project, "ClientApplication/x", on_behalf_of="Practitioner/y"))
    assert acting.create(patient()).resource["meta"]["onBehalfOf"] == {"reference": "Practitioner/y"}


def test_only_admins_set_author_and_accounts(repository: Repository, admin: Repository) -> None:
    account = {"reference": f"Organization/{uuid.uuid4()}"}
    given = patient(meta={"author": {"reference": "Practitioner/other"}, "account": account})
    assert "account" not in repository.create(given).resource["meta"]
    stored = admin.create(given)
    assert stored.resource["meta"]["author"] == {"reference": "Practitioner/other"}
    assert account in stored.resource["meta"]["compartment"]
    # Bob's update keeps the account he cannot set, and Alice's is hers although she sends back the old author.
    updated, _ = repository.update({**patient("Jones"), "id": stored.id})
    assert updated.resource["meta"]["account"] == account
    updated, _ = admin.update({**updated.resource, "active": True})
    assert updated.resource["meta"]["author"]["reference"] == admin.identity.profile


def test_nulls_are_stripped_and_invalid_resources_refused(repository: Repository) -> None:
    stored = repository.create(patient(gender=None, contact=[{"name": {"family": "X", "text": None}}]))
    assert "gender" not in stored.resource
    assert stored.resource["contact"] == [{"name": {"family": "X"}}]
    with pytest.raises(FhirError) as refused:
        repository.create(patient(colour="red"))
    assert refused.value.status == 400
    assert refused.value.outcome["issue"][0]["details"]["text"] == 'Invalid additional property "colour"'
    assert status(repository.create, {"name": []}) == 400
    assert status(repository.create, {"resourceType": "Nonsense"}) == 400
    assert status(repository.create, patient(meta="x")) == 400
    deep: dict[str, object] = {"resourceType": "Patient"}
    for _ in range(500):
        deep = {"resourceType": "Patient", "contained": [deep]}
    assert status(repository.create, deep) == 400


def test_reading_what_is_not_there(repository: Repository) -> None:
    assert status(repository.read, "Patient", str(uuid.uuid4())) == 404
    assert status(repository.read, "Patient", "not-a-uuid") == 404
    assert status(repository.read, "Nonsense", str(uuid.uuid4())) == 400
    assert status(repository.read_reference, "Patient") == 400
    assert status(repository.history, "Patient", str(uuid.uuid4())) == 404
    stored = repository.create(patient())
    assert status(repository.read, "Observation", stored.id) == 404
    assert status(repository.read, "Patient", stored.id.upper()) == 404
    assert status(repository.read_version, "Patient", stored.id, str(uuid.uuid4())) == 404
    assert status(repository.read_version, "Patient", stored.id, "1") == 404


def test_update_makes_a_version_only_for_a_difference(repository: Repository) -> None:
    first = repository.create(patient(active=True))
    same, made = repository.update({**first.resource, "meta": {"author": {"reference": "Practitioner/x"}}})
    assert (same, made) == (first, False)
    second, made = repository.update({**first.resource, "active": False})
    assert made
    assert second.version_id != first.version_id
    assert second.last_updated > first.last_updated
    assert repository.read("Patient", first.id) == second
    tagged, made = repository.update({**second.resource, "meta": {"tag": [{"code": "x"}]}})
    assert made
    assert tagged.resource["meta"]["tag"] == [{"code": "x"}]
    assert len(repository.history("Patient", first.id)[0]) == 3


def test_update_with_an_outdated_version_is_refused(repository: Repository) -> None:
    first = repository.create(patient())
    second, _ = repository.update({**first.resource, "active": True}, if_match=first.version_id)
    assert status(repository.update, {**first.resource, "active": False}, if_match=first.version_id) == 412
    operations = [{"op": "add", "path": "/gender", "value": "male"}]
    assert status(repository.patch, "Patient", first.id, operations, if_match=first.version_id) == 412
    assert (
        repository.patch("Patient", first.id, operations, if_match=second.version_id).resource["gender"]
        == "male"
    )


def test_update_of_an_unknown_id_is_for_the_server_only(repository: Repository, system: Repository) -> None:
    id = str(uuid.uuid4())
    assert status(repository.update, {**patient(), "id": id}) == 404
    assert status(repository.update, {**patient(), "id": "x"}) == 404
    assert status(repository.update, patient()) == 404
    stored, made = system.update({**patient(), "id": id})
    assert made
    assert (stored.id, stored.interaction) == (id, "create")
    assert status(system.create, patient(), id=id) == 409
    assert system.read("Patient", id) == stored


def test_delete_hides_update_restores_and_history_tells_all(repository: Repository) -> None:
    first = repository.create(patient())
    repository.delete("Patient", first.id)
    repository.delete("Patient", first.id)
    assert status(repository.read, "Patient", first.id) == 410
    assert repository.search_all("Patient", "name=smith") == []
    assert status(repository.patch, "Patient", first.id, []) == 410
    assert status(repository.delete, "Patient", str(uuid.uuid4())) == 404
    assert status(repository.delete, "Patient", "x") == 404
    restored, made = repository.update({**patient("Jones"), "id": first.id})
    assert made
    assert repository.read("Patient", first.id) == restored
    assert [found.id for found in repository.search_all("Patient", "name=jones")] == [first.id]
    versions, total = repository.history("Patient", first.id)
    assert total == 3
    assert [version.interaction for version in versions] == ["update", "delete", "create"]
    assert versions[1].deleted
    assert versions[1].resource["meta"]["author"]["reference"] == repository.identity.profile
    assert status(repository.read_version, "Patient", first.id, versions[1].version_id) == 410
    assert repository.read_version("Patient", first.id, first.version_id) == first
    page, total = repository.history("Patient", first.id, count=1, offset=1)
    assert (page, total) == ([versions[1]], 3)


def test_history_pages_through_many_versions(repository: Repository) -> None:
    stored = repository.create(patient())
    for number in range(5):
        repository.update({**patient(), "id": stored.id, "birthDate": f"200{number}-01-01"})
    assert repository.history("Patient", stored.id, count=0) == ([], 6)
    assert repository.history("Patient", stored.id, count=4, offset=10) == ([], 6)
    pages = [repository.history("Patient", stored.id, count=2, offset=offset)[0] for offset in (0, 2, 4)]
    times = [version.last_updated for page in pages for version in page]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 6


def test_a_failed_transaction_leaves_nothing(repository: Repository) -> None:
    def write_two_and_fail() -> None:
        with repository.transaction():
            repository.create(patient("First"))
            with repository.transaction():
                repository.create(patient("Second"))
            assert len(repository.search_all("Patient", "")) == 2, "a transaction sees its own writes"
            raise bad_request("No")

    assert status(write_two_and_fail) == 400
    assert repository.search_all("Patient", "") == []
    assert not database.in_transaction()


def test_hooks_change_and_refuse_inside_the_transaction(repository: Repository) -> None:
    seen = []

    def stamp(acting: Repository, resource: dict[str, object], previous: dict[str, object] | None) -> None:
        seen.append(previous and previous["id"])
        if resource.get("status") == "busy":
            acting.create(patient("Side effect"))
            raise bad_request("Refused by the hook")
        resource["comment"] = "stamped"

    def guard(acting: Repository, previous: dict[str, object]) -> None:
        raise bad_request("Not this one")

    hooks.before_write(["Slot"], stamp)
    hooks.before_delete(["Slot"], guard)
    try:
        slot = {
            "resourceType": "Slot",
            "schedule": {"reference": f"Schedule/{uuid.uuid4()}"},
            "status": "free",
            "start": "2026-01-01T10:00:00Z",
            "end": "2026-01-01T11:00:00Z",
        }
        stored = repository.create(slot)
        assert stored.resource["comment"] == "stamped"
        assert status(repository.update, {**stored.resource, "status": "busy"}) == 400
        assert seen == [None, stored.id]
        assert repository.search_all("Patient", "") == [], "what the hook wrote is rolled back"
        assert status(repository.delete, "Slot", stored.id) == 400
        assert repository.read("Slot", stored.id) == stored
    finally:
        hooks.write_hooks("Slot").clear()
        hooks.delete_hooks("Slot").clear()


def test_values_that_postgresql_cannot_take_are_no_server_errors(repository: Repository) -> None:
    stored = repository.create(patient('quote " back\\slash {brace}, NULL', birthDate="0001-01-01"))
    assert [
        found.id for found in repository.search_all("Patient", [("family", 'quote " back\\slash {')])
    ] == [stored.id]
    assert repository.search_all("Patient", [("family", "nul\0character")]) == []
    assert repository.search_all("Patient", "birthdate=gt9999") == []
    observation = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
    observation["valueQuantity"] = {"value": 1e300, "unit": "g"}
    assert repository.create(observation)
    assert len(repository.search_all("Observation", "value-quantity=gt1e90")) == 1


def test_references_are_checked_where_the_project_wants_it(repository: Repository) -> None:
    checking = Repository(replace(repository.identity, check_references=True))
    there = repository.create({"resourceType": "Organization", "name": "Here"})
    gone = repository.create({"resourceType": "Organization", "name": "Gone"})
    repository.delete("Organization", gone.id)

    def organizations(*ids: str) -> list[dict[str, str]]:
        return [{"reference": f"Organization/{id}"} for id in ids]

    elsewhere = [
        {"reference": "urn:uuid:1"},
        {"reference": "https://example.com/Organization/1"},
        {"display": "x"},
    ]
    stored = checking.create(patient(generalPractitioner=[*organizations(there.id), *elsewhere]))
    for lost in (gone.id, str(uuid.uuid4())):
        broken = {**stored.resource, "generalPractitioner": organizations(there.id, lost)}
        for call in (checking.create, checking.update):
            with pytest.raises(FhirError, match="Invalid reference") as refused:
                call(broken)
            assert refused.value.outcome["issue"][0]["expression"] == [
                "Patient.generalPractitioner[1].reference"
            ]
    repository.delete("Organization", there.id)
    assert checking.update({**stored.resource, "active": True})[1], "what was there before is not asked again"
    assert repository.create(patient(generalPractitioner=organizations(gone.id))), "nor in other projects"


def test_without_strict_mode_only_structure_counts(repository: Repository) -> None:
    lenient = Repository(replace(repository.identity, lenient=True))
    nameless = patient(contact=[{"gender": "male"}])
    with pytest.raises(FhirError, match="pat-1"):
        repository.create(nameless)
    assert lenient.create(nameless)
    with pytest.raises(FhirError, match="Invalid additional property"):
        lenient.create(patient(nonsense=1))
