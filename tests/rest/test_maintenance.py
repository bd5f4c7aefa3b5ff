"""$expunge, $set-accounts, $refresh-reference-display: for admins, audited, whole."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.core.files.storage import storages

from fhirstore import jobs
from fhirstore.database import connection
from tests.rest.conftest import Caller, new_caller, smith
from tests.rest.test_bulk import with_policy

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def own() -> Caller:
    """A project of the test's own."""
    return new_caller()


def observation(patient: str) -> dict[str, Any]:
    subject = {"reference": f"Patient/{patient}"}
    return {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": subject}


def rows(project: str) -> dict[str, int]:
    """Rows that a project's resources have, by table."""
    found = {}
    with connection() as session:
        for table in ("version", "value_string", "value_date", "value_number", "change"):
            row = session.execute(
                f"SELECT count(*) FROM {table} t JOIN resource r ON r.rid = t.rid WHERE r.project = %s",
                [project],
            ).fetchone()
            orphans = session.execute(
                f"SELECT count(*) FROM {table} t WHERE NOT EXISTS (SELECT FROM resource r WHERE r.rid = t.rid)"
            ).fetchone()
            assert row
            assert orphans == (0,), table
            found[table] = row[0]
    return found


def test_expunge_leaves_nothing_but_the_audit_event(own: Caller) -> None:
    patient = own.create(smith(birthDate="1980-01-01"))
    path = f"Patient/{patient['id']}"
    own.send("PUT", path, {**patient, "gender": "male"})
    before = own.send("GET", f"{path}/_history").json()["total"]
    assert before == 2
    assert own.send("POST", f"{path}/$expunge").status_code == 200
    for gone in (path, f"{path}/_history", f"{path}/_history/{patient['meta']['versionId']}"):
        assert own.send("GET", gone).status_code == 404
    assert "entry" not in own.send("GET", "Patient?family=Smith").json()
    rows(own.project)
    (event,) = own.send("GET", "AuditEvent?action=D").json()["entry"]
    assert event["resource"]["entity"] == [{"name": path}]
    assert event["resource"]["agent"][0]["who"]["reference"] == f"ClientApplication/{own.client_id}"
    assert own.send("POST", f"{path}/$expunge").status_code == 404


def test_expunge_takes_deleted_resources_and_the_files_of_binaries(own: Caller) -> None:
    gone = own.create(smith())
    own.send("DELETE", f"Patient/{gone['id']}")
    assert own.send("POST", f"Patient/{gone['id']}/$expunge").status_code == 200
    assert own.send("GET", f"Patient/{gone['id']}").status_code == 404
    binary = own.send("POST", "Binary", b"one", content_type="text/plain").json()
    own.send("PUT", f"Binary/{binary['id']}", b"two", content_type="text/plain")
    folder = f"{own.project}/{binary['id'][-2:]}/{binary['id']}"
    assert len(storages["binary"].listdir(folder)[1]) == 2
    assert own.send("POST", f"Binary/{binary['id']}/$expunge").status_code == 200
    assert storages["binary"].listdir(folder)[1] == []


def test_expunging_everything_of_a_patient(own: Caller) -> None:
    patient, other = own.create(smith()), own.create(smith())
    seen, unseen = own.create(observation(patient["id"])), own.create(observation(other["id"]))
    deleted = own.create(observation(patient["id"]))
    own.send("DELETE", f"Observation/{deleted['id']}")
    document = own.create(
        {
            "resourceType": "DocumentReference",
            "status": "current",
            "content": [{"attachment": {"title": "x"}}],
        }
    )
    binary = own.send(
        "POST",
        "Binary",
        b"x",
        content_type="text/plain",
        x_security_context=f"DocumentReference/{document['id']}",
    ).json()
    document |= {
        "subject": {"reference": f"Patient/{patient['id']}"},
        "content": [{"attachment": {"url": binary["url"]}}],
    }
    assert own.send("PUT", f"DocumentReference/{document['id']}", document).status_code == 200
    started = own.send("POST", f"Patient/{patient['id']}/$expunge?everything=true")
    assert started.status_code == 202
    jobs.run_due_jobs()
    job = own.send("GET", started["content-location"].removeprefix("http://127.0.0.1:8000")).json()
    assert job["status"] == "completed", job
    assert job["output"]["parameter"] == [{"name": "resourcesExpunged", "valueInteger": 5}]
    for gone in (
        f"Patient/{patient['id']}",
        f"Observation/{seen['id']}",
        f"Observation/{deleted['id']}/_history",
        f"DocumentReference/{document['id']}",
        f"Binary/{binary['id']}",
    ):
        assert own.send("GET", gone).status_code == 404, gone
    assert own.send("GET", f"Observation/{unseen['id']}").status_code == 200
    rows(own.project)


def test_only_admins_expunge_and_never_another_project_s(own: Caller, foreign: Caller) -> None:
    patient = own.create(smith())
    path = f"Patient/{patient['id']}/$expunge"
    policy = own.create({"resourceType": "AccessPolicy", "resource": [{"resourceType": "Patient"}]})
    assert with_policy(own, policy["id"]).send("POST", path).status_code == 403
    assert foreign.send("POST", path).status_code == 404
    assert foreign.send("POST", f"{path}?everything=true").status_code == 404
    assert own.send("POST", f"Project/{own.project}/$expunge").status_code == 400
    assert own.send("POST", f"Patient/{uuid.uuid4()}/$expunge").status_code == 404
    assert own.send("GET", f"Patient/{patient['id']}").status_code == 200


def accounts(*references: str, propagate: bool = False) -> dict[str, Any]:
    given: list[dict[str, Any]] = [
        {"name": "accounts", "valueReference": {"reference": reference}} for reference in references
    ]
    return {
        "resourceType": "Parameters",
        "parameter": [*given, {"name": "propagate", "valueBoolean": propagate}],
    }


def accounts_of(caller: Caller, path: str) -> list[str]:
    meta = caller.send("GET", path, x_medplum="extended").json()["meta"]
    return [each["reference"] for each in meta.get("accounts", ())]


def test_accounts_are_set_and_propagated(own: Caller) -> None:
    first, second, third = (
        f"Organization/{own.create({'resourceType': 'Organization', 'name': name})['id']}" for name in "abc"
    )
    patient = f"Patient/{own.create(smith())['id']}"
    seen = f"Observation/{own.create(observation(patient.removeprefix('Patient/')))['id']}"
    answer = own.send("POST", f"{patient}/$set-accounts", accounts(first))
    assert answer.json()["parameter"] == [{"name": "resourcesUpdated", "valueInteger": 1}]
    assert accounts_of(own, patient) == [first]
    assert accounts_of(own, seen) == []
    own.send("POST", f"{seen}/$set-accounts", accounts(first, third))
    answer = own.send("POST", f"{patient}/$set-accounts", accounts(second, propagate=True))
    assert answer.json()["parameter"] == [{"name": "resourcesUpdated", "valueInteger": 2}]
    assert accounts_of(own, patient) == [second]
    assert accounts_of(own, seen) == [third, second]
    started = own.send("POST", f"{patient}/$set-accounts", accounts(propagate=True), prefer="respond-async")
    assert started.status_code == 202
    jobs.run_due_jobs()
    assert accounts_of(own, patient) == []
    assert accounts_of(own, seen) == [third]
    found = own.send("GET", f"Observation?_compartment={third}").json()["entry"]
    assert [f"Observation/{each['resource']['id']}" for each in found] == [seen]


def test_accounts_are_set_by_admins_with_references(own: Caller) -> None:
    patient = f"Patient/{own.create(smith())['id']}"
    policy = own.create({"resourceType": "AccessPolicy", "resource": [{"resourceType": "Patient"}]})
    path = f"{patient}/$set-accounts"
    assert with_policy(own, policy["id"]).send("POST", path, accounts()).status_code == 403
    wrong = {"resourceType": "Parameters", "parameter": [{"name": "accounts", "valueString": "x"}]}
    assert own.send("POST", path, wrong).status_code == 400


def test_references_are_named_anew(own: Caller) -> None:
    patient = own.create(smith())
    task = own.create(
        {
            "resourceType": "Task",
            "status": "requested",
            "intent": "order",
            "for": {"reference": f"Patient/{patient['id']}", "display": "Old Name"},
            "owner": {"reference": f"Practitioner/{uuid.uuid4()}", "display": "Gone"},
        }
    )
    answer = own.send("POST", f"Task/{task['id']}/$refresh-reference-display")
    assert answer.status_code == 200
    assert answer.json()["for"]["display"] == "Jane Smith"
    assert answer.json()["owner"]["display"] == "Gone"


def finished(caller: Caller, path: str) -> dict[str, Any]:
    """The output of the job a request starts, by name."""
    started = caller.send("POST", path)
    assert started.status_code == 202, started.content
    jobs.run_due_jobs()
    job = caller.send("GET", started["content-location"].removeprefix("http://127.0.0.1:8000")).json()
    assert job["status"] == "completed", job
    return {each["name"]: each["valueInteger"] for each in job["output"]["parameter"]}


def spoil(caller: Caller) -> None:
    """Make the index of all patients say nothing."""
    with connection() as session:
        session.execute(
            "DELETE FROM value_string WHERE rid IN (SELECT rid FROM resource WHERE project = %s AND type = 'Patient')",
            [caller.project],
        )


def test_reindexing_finds_again_what_was_lost(own: Caller) -> None:
    ids = [own.create(smith())["id"] for _ in range(2)]
    own.create({"resourceType": "Basic", "code": {"text": "x"}})
    spoil(own)
    assert "entry" not in own.send("GET", "Patient?family=Smith").json()
    assert own.send("POST", f"Patient/{ids[0]}/$reindex").status_code == 200
    assert len(own.send("GET", "Patient?family=Smith").json()["entry"]) == 1
    assert finished(own, "Patient/$reindex") == {"resourcesSeen": 2, "resourcesChanged": 1}
    assert len(own.send("GET", "Patient?family=Smith").json()["entry"]) == 2
    spoil(own)
    assert finished(own, "$reindex?_type=Basic,Patient") == {"resourcesSeen": 3, "resourcesChanged": 2}
    assert finished(own, "$reindex")["resourcesChanged"] == 0
    versions = own.send("GET", f"Patient/{ids[0]}/_history").json()["total"]
    assert versions == 1


def test_reindexing_is_for_admins(own: Caller, foreign: Caller) -> None:
    patient = own.create(smith())["id"]
    policy = own.create({"resourceType": "AccessPolicy", "resource": [{"resourceType": "Patient"}]})
    restricted = with_policy(own, policy["id"])
    for path in ("$reindex", "Patient/$reindex", f"Patient/{patient}/$reindex"):
        assert restricted.send("POST", path).status_code == 403
    assert foreign.send("POST", f"Patient/{patient}/$reindex").status_code == 404
    assert own.send("POST", "$reindex?_type=Nothing").status_code == 400
