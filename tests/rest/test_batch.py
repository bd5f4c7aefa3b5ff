"""Bundles of type batch and transaction."""

from __future__ import annotations

import base64
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fhirstore.jobs import run_due_jobs
from fhirstore.rest import batch
from tests.rest.conftest import Caller, new_caller, smith, text_of


def entry(method: str, url: str, resource: Any = None, **request: str) -> dict[str, Any]:
    """A Bundle entry; `full_url` among `request` is its fullUrl."""
    full_url = request.pop("full_url", None)
    made: dict[str, Any] = {"request": {"method": method, "url": url, **request}}
    if resource is not None:
        made["resource"] = resource
    if full_url:
        made["fullUrl"] = full_url
    return made


def send(caller: Caller, kind: str, *entries: Any, status: int = 200, **headers: str) -> Any:
    """POST a Bundle; returns the parsed answer."""
    bundle = {"resourceType": "Bundle", "type": kind, "entry": list(entries)}
    answer = caller.send("POST", "", bundle, **headers)
    assert answer.status_code == status, answer.content
    return answer.json()


def test_a_batch_answers_each_entry_in_order(home: Caller) -> None:
    patient = home.create(smith())
    answer = send(
        home,
        "batch",
        entry("GET", f"Patient/{patient['id']}"),
        entry("POST", "Patient", smith()),
        entry("GET", f"/Patient/{uuid.uuid4()}"),
        entry("GET", f"/Patient?_id={patient['id']}"),
        entry("POST", "Patient/$validate", smith(nmae=[])),
        entry("DELETE", f"Patient/{home.create(smith())['id']}"),
    )
    assert answer["type"] == "batch-response"
    assert [each["response"]["status"] for each in answer["entry"]] == [
        "200",
        "201",
        "404",
        "200",
        "400",
        "200",
    ]
    assert answer["entry"][0]["resource"]["id"] == patient["id"]
    created = answer["entry"][1]
    assert created["response"]["location"].endswith(f"Patient/{created['resource']['id']}")
    assert created["response"]["etag"] == f'W/"{created["resource"]["meta"]["versionId"]}"'
    assert answer["entry"][2]["response"]["outcome"]["id"] == "not-found"
    assert "resource" not in answer["entry"][2]
    assert answer["entry"][3]["resource"]["entry"][0]["resource"]["id"] == patient["id"]
    assert answer["entry"][5]["response"]["outcome"]["id"] == "ok"


def test_references_among_entries_are_resolved_in_any_order(home: Caller) -> None:
    one, two = f"urn:uuid:{uuid.uuid4()}", f"urn:uuid:{uuid.uuid4()}"
    observation = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": two},
    }
    patient = smith(link=[{"other": {"reference": two}, "type": "seealso"}])
    for kind in ("batch", "transaction"):
        answer = send(
            home,
            kind,
            entry("POST", "Observation", observation, full_url=one),
            entry("POST", "Patient", patient, full_url=two),
        )
        made = [each["resource"] for each in answer["entry"]]
        reference = f"Patient/{made[1]['id']}"
        assert made[0]["subject"]["reference"] == reference
        assert made[1]["link"][0]["other"]["reference"] == reference


def test_conditional_references_and_creates_find_what_is_there(home: Caller) -> None:
    family, urn = uuid.uuid4().hex, f"urn:uuid:{uuid.uuid4()}"
    patient = home.create(smith(name=[{"family": family}]))
    task = {"resourceType": "Task", "status": "draft", "intent": "order"}
    answer = send(
        home,
        "batch",
        entry("POST", "Task", {**task, "for": {"reference": f"Patient?family={family}"}}),
        entry("POST", "Task", {**task, "for": {"reference": f"Patient?family={uuid.uuid4().hex}"}}),
        entry("POST", "Patient", smith(), ifNoneExist=f"family={family}", full_url=urn),
        entry("POST", "Task", {**task, "for": {"reference": urn}}),
    )
    assert [each["response"]["status"] for each in answer["entry"]] == ["201", "400", "200", "201"]
    assert answer["entry"][0]["resource"]["for"]["reference"] == f"Patient/{patient['id']}"
    assert answer["entry"][3]["resource"]["for"]["reference"] == f"Patient/{patient['id']}"


def test_a_transaction_is_all_or_nothing(home: Caller) -> None:
    family = uuid.uuid4().hex
    answer = send(
        home,
        "transaction",
        entry("POST", "Patient", smith(name=[{"family": family}])),
        entry("POST", "Patient", smith(nmae=[])),
        status=400,
    )
    assert answer["issue"][0]["expression"] == ["Patient.nmae"]
    assert answer["issue"][0]["diagnostics"] == "Bundle.entry[1]"
    assert home.send("GET", f"Patient?family={family}&_summary=count").json()["total"] == 0


def test_every_project_has_atomic_transactions(home: Caller) -> None:
    project = home.repository.read("Project", home.project).resource
    home.repository.update({**project, "features": ["bots"]})
    family = uuid.uuid4().hex
    try:
        send(
            home,
            "transaction",
            entry("POST", "Patient", smith(name=[{"family": family}])),
            entry("GET", "Patient/x"),
            status=404,
        )
    finally:
        home.repository.update(project)
    assert home.send("GET", f"Patient?family={family}&_summary=count").json()["total"] == 0


def test_patch_entries_come_as_binary_or_parameters(home: Caller) -> None:
    operations = [{"op": "add", "path": "/gender", "value": "male"}]
    data = base64.b64encode(json.dumps(operations).encode()).decode()
    binary = {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": data}
    part = [
        {"name": "op", "valueCode": "add"},
        {"name": "path", "valueString": "/gender"},
        {"name": "value", "valueString": '"female"'},
    ]
    parameters = {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": part}]}
    path = f"Patient/{home.create(smith())['id']}"
    answer = send(
        home,
        "batch",
        entry("PATCH", path, binary),
        entry("PATCH", path, parameters),
        entry("PATCH", path, smith()),
    )
    assert [each["response"]["status"] for each in answer["entry"]] == ["200", "200", "400"]
    assert [each["resource"]["gender"] for each in answer["entry"][:2]] == ["male", "female"]


def test_entries_respect_if_match_and_minimal_answers(home: Caller) -> None:
    patient = home.create(smith())
    path = f"Patient/{patient['id']}"
    stale = entry("PUT", path, {**patient, "gender": "male"}, ifMatch=f'W/"{uuid.uuid4()}"')
    assert send(home, "batch", stale)["entry"][0]["response"]["status"] == "412"
    minimal = send(home, "batch", entry("POST", "Patient", smith()), prefer="return=minimal")
    assert minimal["entry"][0].keys() == {"response"}


@pytest.mark.parametrize(
    ("bundle", "text"),
    [
        (smith(), "Incorrect resource type: expected Bundle, but found Patient"),
        (
            {"resourceType": "Bundle", "type": "collection", "entry": []},
            "Unrecognized bundle type: collection",
        ),
        ({"resourceType": "Bundle"}, "Unrecognized bundle type: None"),
        ({"resourceType": "Bundle", "type": "batch"}, "Missing bundle entries"),
        ({"resourceType": "Bundle", "type": "batch", "entry": {}}, "Missing bundle entries"),
    ],
)
def test_what_is_no_batch_is_refused(home: Caller, bundle: Any, text: str) -> None:
    answer = home.send("POST", "", bundle)
    assert (answer.status_code, text_of(answer)) == (400, text)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (None, "Missing Bundle entry request"),
        ({"request": {"url": "Patient"}}, "Missing or unknown Bundle entry request method"),
        (
            {"request": {"method": "TRACE", "url": "Patient"}},
            "Missing or unknown Bundle entry request method",
        ),
        ({"request": {"method": "GET"}}, "Missing Bundle entry request URL"),
        ({"request": {"method": "POST", "url": "/"}}, "A Bundle entry cannot hold another batch"),
        ({"request": {"method": "POST", "url": "Patient"}}, "The request body is empty; expected JSON"),
    ],
)
def test_a_bad_entry_is_refused_by_itself(home: Caller, bad: Any, text: str) -> None:
    good = entry("GET", f"Patient/{home.create(smith())['id']}")
    answer = send(home, "batch", bad, good)["entry"]
    assert answer[0]["response"]["status"] == "400"
    assert answer[0]["response"]["outcome"]["issue"][0]["details"]["text"] == text
    assert answer[1]["response"]["status"] == "200"


def test_conditions_stand_for_one_resource(home: Caller) -> None:
    """Several entries with the same condition, and updates by condition, are what their fullUrl refers to."""
    task = {"resourceType": "Task", "status": "draft", "intent": "order"}
    for kind in ("batch", "transaction"):
        family = uuid.uuid4().hex
        one, two, three = (f"urn:uuid:{uuid.uuid4()}" for _ in range(3))
        patient = smith(name=[{"family": family}])
        answer = send(
            home,
            kind,
            entry("POST", "Task", {**task, "for": {"reference": one}}),
            entry("POST", "Task", {**task, "for": {"reference": two}}),
            entry("POST", "Task", {**task, "for": {"reference": three}}),
            entry("POST", "Patient", patient, ifNoneExist=f"family={family}", full_url=one),
            entry("POST", "Patient", patient, ifNoneExist=f"?family={family}", full_url=two),
            entry("PUT", f"Patient?family={family}", {**patient, "gender": "male"}, full_url=three),
        )
        assert [each["response"]["status"] for each in answer["entry"]] == ["201"] * 4 + ["200"] * 2, kind
        reference = f"Patient/{answer['entry'][3]['resource']['id']}"
        assert {each["resource"]["for"]["reference"] for each in answer["entry"][:3]} == {reference}
        assert answer["entry"][5]["resource"]["gender"] == "male"
        again = send(
            home,
            kind,
            entry("PUT", f"Patient?family={family}", {**patient, "gender": "female"}, full_url=one),
            entry("PUT", f"Patient?family={uuid.uuid4().hex}", patient, full_url=two),
            entry("POST", "Task", {**task, "for": {"reference": one}, "owner": {"reference": two}}),
        )
        assert [each["response"]["status"] for each in again["entry"]] == ["200", "201", "201"]
        made = again["entry"][2]["resource"]
        assert made["for"]["reference"] == reference
        assert made["owner"]["reference"] == f"Patient/{again['entry'][1]['resource']['id']}"


def test_full_urls_may_be_addresses(home: Caller) -> None:
    url = f"https://other.example/fhir/Patient/{uuid.uuid4()}"
    task = {"resourceType": "Task", "status": "draft", "intent": "order", "for": {"reference": url}}
    answer = send(
        home, "transaction", entry("POST", "Task", task), entry("POST", "Patient", smith(), full_url=url)
    )
    assert (
        answer["entry"][0]["resource"]["for"]["reference"]
        == f"Patient/{answer['entry'][1]['resource']['id']}"
    )


def test_verbs_are_carried_out_in_their_order(home: Caller) -> None:
    old, tag = home.create(smith()), uuid.uuid4().hex
    urn = f"urn:uuid:{uuid.uuid4()}"
    patch = base64.b64encode(b'[{"op": "add", "path": "/active", "value": true}]').decode()
    answer = send(
        home,
        "transaction",
        entry("GET", f"Patient?_tag={tag}"),
        entry("PATCH", f"Patient/{old['id']}", {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": patch}),
        entry("PUT", f"Patient/{old['id']}", {**old, "generalPractitioner": [{"reference": urn}]}),
        entry("POST", "Practitioner", {"resourceType": "Practitioner"}, full_url=urn),
        entry("POST", "Patient", smith(meta={"tag": [{"code": tag}]})),
        entry("DELETE", f"Patient/{home.create(smith())['id']}"),
        entry("POST", "Patient/$validate", smith()),
    )  # fmt: skip
    assert [each["response"]["status"] for each in answer["entry"]] == ["200"] * 3 + ["201"] * 2 + ["200"] * 2
    assert len(answer["entry"][0]["resource"]["entry"]) == 1
    patched = answer["entry"][1]["resource"]
    assert patched["active"] is True
    assert (
        patched["generalPractitioner"][0]["reference"]
        == f"Practitioner/{answer['entry'][3]['resource']['id']}"
    )


def test_reads_may_be_conditional(home: Caller) -> None:
    patient = home.create(smith())
    path = f"Patient/{patient['id']}"
    answer = send(
        home,
        "batch",
        entry("GET", path, ifNoneMatch=f'W/"{patient["meta"]["versionId"]}"'),
        entry("GET", path, ifModifiedSince=patient["meta"]["lastUpdated"]),
        entry("GET", path, ifModifiedSince="2001-01-01T00:00:00Z"),
        entry("GET", path, ifModifiedSince="yesterday"),
    )
    assert [each["response"]["status"] for each in answer["entry"]] == ["304", "304", "200", "400"]


def test_hundreds_of_entries_that_refer_to_each_other(home: Caller) -> None:
    """The kind of Bundle that Synthea makes: a patient, whom all others refer to, and practitioners by condition."""
    npi = uuid.uuid4().hex
    home.create({"resourceType": "Practitioner", "identifier": [{"system": "http://npi", "value": npi}]})
    urns = [f"urn:uuid:{uuid.uuid4()}" for _ in range(600)]
    entries = [entry("POST", "Patient", smith(), full_url=urns[0])]
    for number in range(1, 600, 2):
        encounter = {
            "resourceType": "Encounter",
            "status": "finished",
            "class": {"code": "AMB"},
            "subject": {"reference": urns[0]},
            "participant": [{"individual": {"reference": f"Practitioner?identifier=http://npi|{npi}"}}],
        }
        observation = {
            "resourceType": "Observation",
            "status": "final",
            "code": {"text": str(number)},
            "subject": {"reference": urns[0]},
            "encounter": {"reference": urns[number]},
        }
        entries += [
            entry("POST", "Observation", observation, full_url=urns[number + 1] if number < 599 else None),
            entry("POST", "Encounter", encounter, full_url=urns[number]),
        ]
    answer = send(home, "transaction", *entries)
    assert {each["response"]["status"] for each in answer["entry"]} == {"201"}
    patient = answer["entry"][0]["resource"]["id"]
    found = home.send(
        "GET", f"Observation?patient={patient}&encounter={answer['entry'][2]['resource']['id']}"
    )
    assert [each["resource"]["id"] for each in found.json()["entry"]] == [
        answer["entry"][1]["resource"]["id"]
    ]
    assert home.send("GET", f"Encounter?subject=Patient/{patient}&_summary=count").json()["total"] == 300


def test_a_bundle_has_at_most_ten_thousand_entries(home: Caller) -> None:
    answer = home.send("POST", "", {"resourceType": "Bundle", "type": "batch", "entry": [{}] * 10_001})
    assert (answer.status_code, answer.json()["id"]) == (413, "content-too-large")


def test_an_operation_of_another_process_is_no_part_of_a_transaction(home: Caller) -> None:
    execute = entry("POST", f"Bot/{uuid.uuid4()}/$execute", {"resourceType": "Basic", "code": {"text": "x"}})
    refused = send(home, "transaction", execute, status=400)
    assert "cannot be part of a transaction" in refused["issue"][0]["details"]["text"]
    # In a batch it is asked; there is no such Bot.
    assert send(home, "batch", execute)["entry"][0]["response"]["status"] == "404"


@pytest.mark.parametrize(("kind", "status"), [("batch", "completed"), ("transaction", "error")])
def test_a_bundle_can_be_carried_out_in_the_background(home: Caller, kind: str, status: str) -> None:
    bundle = {
        "resourceType": "Bundle",
        "type": kind,
        "entry": [entry("POST", "Patient", smith()), entry("GET", "Patient/x")],
    }
    accepted = home.send("POST", "", bundle, prefer="respond-async")
    assert accepted.status_code == 202
    run_due_jobs()
    job = home.send("GET", accepted["content-location"].removeprefix("http://127.0.0.1:8000")).json()
    assert job["status"] == status
    output = job["output"]["parameter"][0]
    if kind == "transaction":
        assert output["resource"]["id"] == "not-found"
        return
    assert output["name"] == "results"
    results = json.loads(home.send("GET", output["valueReference"]["reference"], accept="*/*").content)
    assert [each["response"]["status"] for each in results["entry"]] == ["201", "404"]


def test_transactions_that_change_the_same_resources_wait_for_each_other(home: Caller) -> None:
    paths = [f"Patient/{home.create(smith())['id']}" for _ in range(6)]

    def change(number: int) -> tuple[int, str]:
        order = paths if number % 2 else paths[::-1]
        patch = [{"op": "add", "path": "/telecom/-", "value": {"system": "phone", "value": str(number)}}]
        data = base64.b64encode(json.dumps(patch).encode()).decode()
        binary = {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": data}
        bundle = {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [entry("PATCH", each, binary) for each in order],
        }
        answer = home.send("POST", "", bundle)
        return answer.status_code, answer.content.decode()

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(change, range(12)))
    assert [status for status, _ in answers] == [200] * 12, answers
    for path in paths:
        telecom = home.send("GET", path).json()["telecom"]
        assert sorted(int(each["value"]) for each in telecom) == list(range(12))


def test_a_resource_may_be_changed_several_times(home: Caller) -> None:
    patient = home.create(smith())
    path = f"Patient/{patient['id']}"
    answer = send(
        home,
        "transaction",
        entry("PUT", path, {**patient, "gender": "male"}),
        entry("PUT", path, {**patient, "gender": "female"}),
        entry("PUT", f"Patient?_id={patient['id']}", {**patient, "active": True}),
        entry("GET", path),
    )
    versions = [each["resource"]["meta"]["versionId"] for each in answer["entry"]]
    assert len(set(versions)) == 3
    assert versions[2] == versions[3]
    assert answer["entry"][3]["resource"]["active"] is True
    history = home.send("GET", f"{path}/_history").json()
    assert history["total"] == 4
    gone = send(
        home, "transaction", entry("PUT", path, {**patient, "gender": "other"}), entry("DELETE", path)
    )
    assert gone["entry"][0]["response"]["status"] == "200"
    assert home.send("GET", path).json()["gender"] == "other"


def test_a_transaction_may_refer_to_what_it_makes_where_references_are_checked(database: None) -> None:
    place = new_caller()
    project = place.send("GET", f"Project/{place.project}", x_medplum="extended").json()
    assert (
        place.send("PUT", f"Project/{place.project}", {**project, "checkReferencesOnWrite": True}).status_code
        == 200
    )
    first, second = f"urn:uuid:{uuid.uuid4()}", f"urn:uuid:{uuid.uuid4()}"

    def person(url: str, other: str) -> dict[str, Any]:
        links = [{"other": {"reference": other}, "type": "seealso"}]
        return {
            "fullUrl": url,
            "request": {"method": "POST", "url": "Patient"},
            "resource": smith(link=links),
        }

    circle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [person(first, second), person(second, first)],
    }
    answer = place.send("POST", "", circle)
    assert answer.status_code == 200, answer.content
    lost = {**circle, "entry": [person(first, f"Patient/{uuid.uuid4()}")]}
    refused = place.send("POST", "", lost)
    assert (refused.status_code, text_of(refused)) == (400, "Invalid reference (Not found)")


def test_answers_have_a_limit_together(home: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_ANSWER", 2000)
    path = f"Basic/{home.create({'resourceType': 'Basic', 'code': {'text': 'x' * 1500}})['id']}"
    answer = send(home, "batch", *(entry("GET", path) for _ in range(4)), entry("POST", "Patient", smith()))
    assert [each["response"]["status"] for each in answer["entry"]] == ["200", "413", "413", "413", "201"]
    refused = send(home, "transaction", *(entry("GET", path) for _ in range(4)), status=413)
    assert "2000 bytes" in refused["issue"][0]["details"]["text"]
