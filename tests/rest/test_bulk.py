"""Bulk export: what is in the files, for whom, since when, and how the job ends."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.http import HttpResponse

from fhirstore import jobs
from fhirstore.api import Repository
from tests.rest.conftest import Caller, new_caller, smith, text_of

pytestmark = pytest.mark.usefixtures("database")

BASE = "http://127.0.0.1:8000"


@pytest.fixture
def own() -> Caller:
    """A project of the test's own: an export holds all of it."""
    return new_caller()


def read_file(caller: Caller, url: str) -> list[dict[str, Any]]:
    """The lines of a file, fetched without login as its address allows."""
    parts = urlsplit(url)
    answer = caller.send("GET", f"{parts.path}?{parts.query}", authorization="")
    assert answer.status_code == 200
    assert answer["content-type"] == "application/fhir+ndjson"
    content = b"".join(answer.streaming_content) if answer.streaming else answer.content
    return [json.loads(line) for line in content.splitlines()]


def kick_off(caller: Caller, path: str, **headers: str) -> str:
    """Start an export; returns the path of its status."""
    answer = caller.send("POST", path, prefer="respond-async", **headers)
    assert answer.status_code == 202, answer.content
    assert answer.json()["id"] == "accepted"
    location: str = answer["content-location"]
    assert location.startswith(f"{BASE}/fhir/R4/bulkdata/export/")
    return location.removeprefix(BASE)


def exported(caller: Caller, path: str, **headers: str) -> dict[str, list[dict[str, Any]]]:
    """Export, and return all resources by type; deletions and errors under their names."""
    status = kick_off(caller, path, **headers)
    jobs.run_due_jobs()
    manifest = caller.send("GET", status)
    assert manifest.status_code == 200, manifest.content
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in ("output", "deleted", "error"):
        for file in manifest.json()[kind]:
            lines = read_file(caller, file["url"])
            assert len(lines) == file["count"]
            found.setdefault(file["type"], []).extend(lines)
    return found


def ids(resources: list[dict[str, Any]]) -> set[str]:
    return {each["id"] for each in resources}


def observation(patient: str) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": f"Patient/{patient}"},
    }


def test_a_system_export_holds_every_type_and_nothing_of_others(own: Caller, foreign: Caller) -> None:
    foreign.create(smith())
    patients = [own.create(smith()) for _ in range(3)]
    seen = own.create(observation(patients[0]["id"]))
    gone = own.create(smith())
    own.send("DELETE", f"Patient/{gone['id']}")
    found = exported(own, "$export")
    assert ids(found["Patient"]) == ids(patients)
    assert ids(found["Observation"]) == {seen["id"]}
    assert {"Project", "ProjectMembership", "ClientApplication"} <= found.keys()
    assert "Bundle" not in found
    assert all("project" not in each["meta"] for each in found["Patient"])
    extended = exported(own, "$export?_type=Patient", x_medplum="extended")
    assert extended.keys() == {"Patient"}
    assert {each["meta"]["project"] for each in extended["Patient"]} == {own.project}


def test_the_manifest_says_when_and_what_for(own: Caller) -> None:
    patient = own.create(smith())
    status = kick_off(own, "$export?_type=Patient")
    waiting = own.send("GET", status)
    assert waiting.status_code == 202
    assert waiting["retry-after"]
    jobs.run_due_jobs()
    manifest = own.send("GET", status).json()
    assert manifest["request"] == f"{BASE}/fhir/R4/$export?_type=Patient"
    assert manifest["requiresAccessToken"] is False
    assert manifest["transactionTime"] > patient["meta"]["lastUpdated"]
    assert [file["type"] for file in manifest["output"]] == ["Patient"]
    assert manifest["deleted"] == manifest["error"] == []


def test_patient_and_group_exports_hold_their_compartments(own: Caller) -> None:
    member, other = own.create(smith()), own.create(smith())
    seen, unseen = own.create(observation(member["id"])), own.create(observation(other["id"]))
    own.create({"resourceType": "Organization", "name": "Outside"})
    own.create({"resourceType": "Basic", "code": {"text": "nobody's"}})
    group = own.create(
        {
            "resourceType": "Group",
            "type": "person",
            "actual": True,
            "member": [{"entity": {"reference": f"Patient/{member['id']}"}}],
        }
    )
    of_patients = exported(own, "Patient/$export")
    assert ids(of_patients["Patient"]) == ids([member, other])
    assert ids(of_patients["Observation"]) == ids([seen, unseen])
    assert not {"Organization", "Basic", "Project"} & of_patients.keys()
    of_group = exported(own, f"Group/{group['id']}/$export")
    assert ids(of_group["Patient"]) == {member["id"]}
    assert ids(of_group["Observation"]) == {seen["id"]}
    named = exported(own, f"Group/{group['id']}/$export?_type=Patient,Organization")
    assert named.keys() == {"Patient", "OperationOutcome"}
    assert own.send("GET", f"Group/{uuid.uuid4()}/$export").status_code == 404


def test_since_leaves_out_the_old_and_names_the_deleted(own: Caller) -> None:
    own.create(smith())
    gone = own.create(smith())
    since = own.create({"resourceType": "Basic", "code": {"text": "x"}})["meta"]["lastUpdated"]
    young = own.create(smith())
    own.send("DELETE", f"Patient/{gone['id']}")
    found = exported(own, f"$export?_type=Patient&_since={since}")
    assert ids(found["Patient"]) == {young["id"]}
    (bundle,) = found["Bundle"]
    assert bundle["entry"] == [{"request": {"method": "DELETE", "url": f"Patient/{gone['id']}"}}]


def test_type_filters_choose_and_leave_other_types_alone(own: Caller) -> None:
    man = own.create(smith(gender="male"))
    woman = own.create(smith(gender="female", birthDate="1980-01-01"))
    own.create(smith(gender="female", birthDate="1990-01-01"))
    thing = own.create({"resourceType": "Basic", "code": {"text": "x"}})
    query = "Patient%3Fgender%3Dmale,Patient%3Fgender%3Dfemale%26birthdate%3Dlt1985"
    own.create(observation(man["id"]))
    chained = exported(
        own, "$export?_type=Patient&_typeFilter=Patient%3F_has:Observation:patient:status%3Dfinal"
    )
    assert ids(chained["Patient"]) == {man["id"]}
    found = exported(own, f"$export?_type=Patient,Basic&_typeFilter={query}")
    assert ids(found["Patient"]) == ids([man, woman])
    assert ids(found["Basic"]) == {thing["id"]}


def test_an_export_holds_what_its_caller_may_see(own: Caller) -> None:
    shown = own.create(smith(gender="female", birthDate="1980-01-01"))
    own.create(smith(gender="male"))
    own.create(observation(shown["id"]))
    policy = own.create(
        {
            "resourceType": "AccessPolicy",
            "resource": [
                {
                    "resourceType": "Patient",
                    "criteria": "Patient?gender=female",
                    "readonly": True,
                    "hiddenFields": ["birthDate"],
                }
            ],
        }
    )
    restricted = with_policy(own, policy["id"])
    found = exported(restricted, "$export")
    assert ids(found["Patient"]) == {shown["id"]}
    assert "birthDate" not in found["Patient"][0]
    assert not {"Observation", "ClientApplication", "AccessPolicy", "Project"} & found.keys()
    named = exported(restricted, "$export?_type=Patient,Observation")
    assert named.keys() == {"Patient", "OperationOutcome"}


def test_a_group_s_export_does_not_tell_what_is_hidden(own: Caller) -> None:
    member = own.create(smith())
    own.create(observation(member["id"]))
    entity = {"entity": {"reference": f"Patient/{member['id']}"}}
    group = own.create({"resourceType": "Group", "type": "person", "actual": True, "member": [entity]})
    rules = [
        {"resourceType": "Patient"},
        {"resourceType": "Group"},
        {"resourceType": "Observation", "hiddenFields": ["subject"]},
    ]
    policy = own.create({"resourceType": "AccessPolicy", "resource": rules})
    restricted = with_policy(own, policy["id"])
    found = exported(restricted, f"Group/{group['id']}/$export?_type=Patient,Observation")
    assert found.keys() == {"Patient", "OperationOutcome"}
    assert "hidden" in found["OperationOutcome"][0]["issue"][0]["details"]["text"]


def with_policy(caller: Caller, policy: str) -> Caller:
    """Another client of the project, under an AccessPolicy."""
    made = caller.send("POST", f"/admin/projects/{caller.project}/client", {"name": "Restricted"}).json()
    repository: Repository = caller.repository
    membership = repository.search_one("ProjectMembership", f"profile=ClientApplication/{made['id']}")
    assert membership
    repository.update({**membership.resource, "accessPolicy": {"reference": f"AccessPolicy/{policy}"}})
    return Caller(caller.project, made["id"], made["secret"], caller.email, caller.password)


def test_an_export_is_one_moment(own: Caller) -> None:
    first = own.create(smith())
    status = kick_off(own, "$export?_type=Patient,RelatedPerson")
    # While patients are read, somebody writes: what comes later in the same export does not know of it.
    original = Repository.scan

    def scan(self: Repository, type: str, **options: Any) -> Any:
        yield from original(self, type, **options)
        if type == "Patient":
            caller = Caller(own.project, own.client_id, own.secret, "", "")
            in_thread(
                lambda: caller.create(
                    {"resourceType": "RelatedPerson", "patient": {"reference": f"Patient/{first['id']}"}}
                )
            )

    Repository.scan = scan  # type: ignore[method-assign]  only to be told that the patients are read
    try:
        jobs.run_due_jobs()
    finally:
        Repository.scan = original  # type: ignore[method-assign]
    manifest = own.send("GET", status).json()
    assert [file["type"] for file in manifest["output"]] == ["Patient"]
    assert own.send("GET", "RelatedPerson?_total=accurate").json()["total"] == 1


def in_thread(work: Any) -> None:
    """Do something outside of this thread's transaction."""
    import threading

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_cancelling_and_deleting_an_export(own: Caller) -> None:
    own.create(smith())
    cancelled = kick_off(own, "$export")
    assert own.send("DELETE", cancelled).status_code == 202
    jobs.run_due_jobs()
    assert own.send("GET", cancelled).status_code == 404
    done = kick_off(own, "$export?_type=Patient")
    jobs.run_due_jobs()
    (file,) = own.send("GET", done).json()["output"]
    assert own.send("DELETE", done).status_code == 202
    parts = urlsplit(file["url"])
    assert own.send("GET", f"/fhir/R4/Binary/{parts.path.split('/')[2]}").status_code == 404
    assert own.send("GET", f"{parts.path}?{parts.query}", authorization="").status_code == 404
    assert own.send("DELETE", done).status_code == 202  # again


def test_files_of_jobs_go_after_a_time(own: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    own.create(smith())
    status = kick_off(own, "$export?_type=Patient")
    jobs.run_due_jobs()
    manifest = own.send("GET", status)
    url = manifest.json()["output"][0]["url"]
    jobs.expire_files()
    assert len(read_file(own, url)) == 1
    left = parsedate_to_datetime(manifest["expires"]) - datetime.now(UTC)
    assert timedelta(days=6) < left <= jobs.KEPT
    monkeypatch.setattr(jobs, "KEPT", timedelta(0))
    status = kick_off(own, "$export?_type=Patient")
    jobs.run_due_jobs()
    assert own.send("GET", status).status_code == 404
    assert jobs.expire_files() >= 1
    assert len(read_file(own, url)) == 1
    assert own.send("DELETE", status).status_code == 202  # its files are gone already


def test_an_export_is_its_caller_s(own: Caller, foreign: Caller) -> None:
    status = kick_off(own, "$export?_type=Patient")
    jobs.run_due_jobs()
    for method in ("GET", "DELETE"):
        assert foreign.send(method, status).status_code == 404
    assert own.send("GET", status).status_code == 200
    assert own.send("GET", f"bulkdata/export/{uuid.uuid4()}").status_code == 404


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("$export?_type=Nothing", "Unknown resource type in _type: Nothing"),
        ("$export?_type=Binary", "Binary cannot be exported"),
        ("$export?_since=yesterday", "Invalid _since"),
        ("$export?_outputFormat=text/csv", "Unsupported _outputFormat"),
        ("$export?_typeFilter=Patient", "Invalid _typeFilter"),
        ("$export?_typeFilter=Patient%3Fnmae%3Dx", "Unknown search parameter: nmae"),
        ("$export?_elements=id", "Unknown parameter of $export: _elements"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(home: Caller, path: str, text: str) -> None:
    answer: HttpResponse = home.send("GET", path, prefer="respond-async")
    assert answer.status_code == 400
    assert text in text_of(answer)


def scoped(caller: Caller, scope: str) -> str:
    """An ``Authorization`` header with a token of the client that SMART scopes limit."""
    form = f"grant_type=client_credentials&client_id={caller.client_id}&client_secret={caller.secret}&scope={scope}"
    answer = caller.send(
        "POST", "/oauth2/token", form, content_type="application/x-www-form-urlencoded", authorization=""
    )
    return f"Bearer {answer.json()['access_token']}"


def test_an_export_keeps_to_the_scopes_of_its_token(own: Caller) -> None:
    patient = own.create(smith())
    own.create(observation(patient["id"]))
    bearer = scoped(own, "system/Patient.read")
    answer = own.send("POST", "$export", prefer="respond-async", authorization=bearer)
    jobs.run_due_jobs()
    manifest = own.send("GET", answer["content-location"].removeprefix(BASE)).json()
    types = {file["type"] for file in manifest["output"]}
    assert "Patient" in types
    assert not types & {"Observation", "ClientApplication", "ProjectMembership"}


def test_a_token_with_scopes_does_not_administer(own: Caller) -> None:
    bearer = scoped(own, "system/Patient.read")
    body = {"name": "Wide open"}
    made = own.send("POST", f"/admin/projects/{own.project}/client", body, authorization=bearer)
    assert made.status_code == 403
    assert own.send("POST", "$reindex", prefer="respond-async", authorization=bearer).status_code == 403
    everything = scoped(own, "system/*.*")
    for path in ("AccessPolicy", "ProjectMembership", f"Project/{own.project}", "Subscription/$deliveries"):
        assert own.send("GET", path, authorization=everything).status_code == 403, path
        assert own.send("GET", path).status_code == 200, path


def test_a_written_async_job_reaches_no_other_file(own: Caller) -> None:
    target = own.create({"resourceType": "Binary", "contentType": "text/plain", "data": "c2VjcmV0"})
    parts = [{"name": "url", "valueUri": f"Binary/{target['id']}"}, {"name": "type", "valueCode": "Patient"}]
    forged = own.create(
        {
            "resourceType": "AsyncJob",
            "status": "completed",
            "request": "x/$export",
            "requestTime": "2026-01-01T00:00:00Z",
            "output": {"resourceType": "Parameters", "parameter": [{"name": "output", "part": parts}]},
        }
    )
    path = f"bulkdata/export/{forged['id']}"
    assert own.send("GET", path).json()["output"][0]["url"] == f"Binary/{target['id']}"
    assert own.send("DELETE", path).status_code == 202
    assert own.send("GET", f"Binary/{target['id']}").status_code == 200


def test_who_may_read_async_jobs_gets_no_files_of_others(own: Caller) -> None:
    policy = own.create(
        {
            "resourceType": "AccessPolicy",
            "resource": [
                {"resourceType": "Patient", "criteria": "Patient?gender=male"},
                {"resourceType": "AsyncJob"},
                {"resourceType": "Binary"},
            ],
        }
    )
    own.create(smith(gender="female"))
    status = kick_off(own, "$export?_type=Patient")
    jobs.run_due_jobs()
    url = own.send("GET", status).json()["output"][0]["url"]
    limited = with_policy(own, policy["id"])
    assert limited.send("GET", f"AsyncJob/{status.rpartition('/')[2]}").status_code == 200
    assert limited.send("GET", status).status_code == 404
    binary = urlsplit(url).path.split("/")[2]
    assert limited.send("GET", f"Binary/{binary}").status_code == 404
