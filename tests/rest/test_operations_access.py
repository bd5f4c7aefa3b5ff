"""Operations see what their caller may see: the AccessPolicy holds inside them as everywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fhirstore.api import FhirRequest, Identity, Policy, Repository, handle
from tests.rest.conftest import Caller, smith

RULES = [{"resourceType": "Patient", "hiddenFields": ["name"]}, {"resourceType": "Schedule"}]


@pytest.fixture(scope="module")
def patient(home: Caller) -> dict[str, Any]:
    """A patient with an observation the caller may not see."""
    made = home.create(smith())
    subject = {"reference": f"Patient/{made['id']}"}
    home.create({"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": subject})
    return made


def call(home: Caller, method: str, path: str, query: str = "", body: Any = None) -> tuple[int, bytes]:
    """Call an operation as somebody who may see Schedules, and Patients without names."""
    policy = Policy.compile({"resourceType": "AccessPolicy", "resource": RULES}, {})
    caller = Repository(Identity(project=home.project, profile="Practitioner/x", policy=policy))
    headers = {"content-type": "application/json"}
    sent = b"" if body is None else json.dumps(body).encode()
    answer = handle(FhirRequest(method, path, query, headers, sent, caller, "http://x/"))
    return answer.status, answer.body


def test_everything_leaves_out_what_is_not_allowed(home: Caller, patient: dict[str, Any]) -> None:
    status, body = call(home, "GET", f"Patient/{patient['id']}/$everything")
    assert status == 200
    assert [entry["resource"]["resourceType"] for entry in json.loads(body)["entry"]] == ["Patient"]
    assert b"Smith" not in body


def test_tables_have_no_hidden_fields(home: Caller, patient: dict[str, Any]) -> None:
    status, body = call(home, "GET", "Patient/$csv", f"_fields=id,name&_id={patient['id']}")
    assert (status, body.decode()) == (200, f'\ufeffid,name\n"{patient["id"]}",')
    assert call(home, "GET", "Observation/$csv", "_fields=id")[0] == 403


def test_graphql_refuses_in_place(home: Caller, patient: dict[str, Any]) -> None:
    query = '{ Patient(id: "ID") { id name { family } ObservationList(_reference: subject) { id } } }'
    status, body = call(home, "POST", "$graphql", body={"query": query.replace("ID", patient["id"])})
    answer = json.loads(body)
    assert status == 200
    assert answer["data"]["Patient"] == {"id": patient["id"], "name": None, "ObservationList": None}
    assert [error["message"] for error in answer["errors"]] == ["Forbidden"]


def test_free_time_needs_the_right_to_see_slots(home: Caller) -> None:
    schedule = home.create({"resourceType": "Schedule", "actor": [{"reference": "Practitioner/1"}]})
    query = "start=2026-03-02T00:00:00Z&end=2026-03-03T00:00:00Z"
    assert call(home, "GET", f"Schedule/{schedule['id']}/$find", query)[0] == 403


def test_terminology_is_for_everybody(home: Caller) -> None:
    url = "http://hl7.org/fhir/ValueSet/administrative-gender"
    assert call(home, "GET", "ValueSet/$expand", f"url={url}")[0] == 200
    question = "system=http://hl7.org/fhir/administrative-gender&code=male"
    assert call(home, "GET", "ConceptMap/$translate", question)[0] == 200
