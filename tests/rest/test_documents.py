"""$summary, $graph, $import, $expand-profile and $apply."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.rest.conftest import Caller, smith, text_of

pytestmark = pytest.mark.usefixtures("database")


def concept(code: str, text: str, system: str = "http://loinc.org") -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}], "text": text}


@pytest.fixture(scope="module")
def record(home: Caller) -> dict[str, dict[str, Any]]:
    """A patient's record, by a word for each resource."""
    patient = home.create(smith(birthDate="1980-01-01"))
    subject = {"subject": {"reference": f"Patient/{patient['id']}"}}
    clinical = "http://terminology.hl7.org/CodeSystem/condition-clinical"
    category = "http://terminology.hl7.org/CodeSystem/observation-category"
    observation = {"resourceType": "Observation", "status": "final", **subject}
    resources = {
        "problem": {
            "resourceType": "Condition",
            "clinicalStatus": {"coding": [{"system": clinical, "code": "active"}]},
            "code": {"text": "Asthma <mild>"},
            "onsetDateTime": "2020-05",
            **subject,
        },
        "past": {
            "resourceType": "Condition",
            "clinicalStatus": {"coding": [{"system": clinical, "code": "resolved"}]},
            "code": {"text": "Measles"},
            **subject,
        },
        "medication": {
            "resourceType": "MedicationRequest",
            "status": "active",
            "intent": "order",
            "medicationCodeableConcept": {"text": "Salbutamol"},
            **subject,
        },
        "weight": {
            **observation,
            "category": [concept("vital-signs", "v", category)],
            "code": concept("29463-7", "Body weight"),
            "valueQuantity": {"value": 70, "unit": "kg"},
        },
        "sodium": {
            **observation,
            "category": [concept("laboratory", "l", category)],
            "code": concept("2951-2", "Sodium"),
        },
        "wrong": {**observation, "status": "entered-in-error", "code": {"text": "nonsense"}},
    }
    return {"patient": patient, **{name: home.create(resource) for name, resource in resources.items()}}


def test_a_patient_summary_is_a_valid_document(home: Caller, record: dict[str, dict[str, Any]]) -> None:
    answer = home.send("GET", f"Patient/{record['patient']['id']}/$summary")
    assert answer.status_code == 200
    bundle = answer.json()
    assert home.send("POST", "Bundle/$validate", bundle).json()["id"] == "ok"
    assert bundle["type"] == "document"
    composition, patient, *_ = (entry["resource"] for entry in bundle["entry"])
    assert (composition["resourceType"], patient["id"]) == ("Composition", record["patient"]["id"])
    sections = {section["title"]: section for section in composition["section"]}
    ids = {
        title: [each["reference"].partition("/")[2] for each in section.get("entry", ())]
        for title, section in sections.items()
    }
    assert ids == {
        "Problems": [record["problem"]["id"]],
        "Allergies": [],
        "Medications": [record["medication"]["id"]],
        "Vital signs": [record["weight"]["id"]],
        "Results": [record["sodium"]["id"]],
        "Past illnesses": [record["past"]["id"]],
    }
    assert "Asthma &lt;mild&gt; (2020-05)" in sections["Problems"]["text"]["div"]
    assert "Body weight: 70 kg" in sections["Vital signs"]["text"]["div"]
    assert sections["Allergies"]["emptyReason"]
    shown = {entry["fullUrl"].rpartition("/")[2] for entry in bundle["entry"]}
    assert {each for some in ids.values() for each in some} < shown
    assert record["wrong"]["id"] not in shown


def test_a_summary_of_another_project_s_patient_is_not_there(
    foreign: Caller, record: dict[str, dict[str, Any]]
) -> None:
    assert foreign.send("GET", f"Patient/{record['patient']['id']}/$summary").status_code == 404


def test_a_graph_follows_paths_and_comes_back(home: Caller, record: dict[str, dict[str, Any]]) -> None:
    doctor = home.create({"resourceType": "Practitioner", "name": [{"family": "Gopher"}]})
    patient = home.create(smith(generalPractitioner=[{"reference": f"Practitioner/{doctor['id']}"}]))
    observation = home.create(
        {
            "resourceType": "Observation",
            "status": "final",
            "code": {"text": "x"},
            "subject": {"reference": f"Patient/{patient['id']}"},
            "performer": [{"reference": f"Practitioner/{uuid.uuid4()}"}],
        }
    )
    back = {"type": "Observation", "params": "patient={ref}", "link": [{"path": "Observation.performer"}]}
    definition = {
        "resourceType": "GraphDefinition",
        "name": "record",
        "status": "active",
        "start": "Patient",
        "link": [
            {"path": "Patient.generalPractitioner", "target": [{"type": "Practitioner"}]},
            {"target": [back]},
        ],
    }
    home.create(definition)
    bundle = home.send("GET", f"Patient/{patient['id']}/$graph?graph=record").json()
    assert bundle["type"] == "collection"
    found = [entry["resource"]["id"] for entry in bundle["entry"]]
    assert found == [patient["id"], doctor["id"], observation["id"]]
    for path, text in (
        (f"Patient/{patient['id']}/$graph?graph=other", "GraphDefinition not found"),
        (f"Patient/{patient['id']}/$graph", "Missing parameter graph"),
        (f"Observation/{observation['id']}/$graph?graph=record", "begins at Patient"),
    ):
        answer = home.send("GET", path)
        assert answer.status_code == 400
        assert text in text_of(answer)


def test_codes_are_imported_with_their_properties(home: Caller, foreign: Caller) -> None:
    url = f"http://example.com/{uuid.uuid4()}"
    system = {
        "resourceType": "CodeSystem",
        "url": url,
        "status": "active",
        "content": "complete",
        "property": [{"code": "weight", "type": "integer"}],
        "concept": [{"code": "a", "display": "Old"}],
    }
    made = home.create(system)
    parameters = [
        {"name": "system", "valueUri": url},
        {"name": "concept", "valueCoding": {"code": "a", "display": "Animal"}},
        {"name": "concept", "valueCoding": {"code": "b", "display": "Bear"}},
        {"name": "property", "part": property_of("b", "parent", "a")},
        {"name": "property", "part": property_of("b", "weight", "300")},
    ]
    body = {"resourceType": "Parameters", "parameter": parameters}
    assert home.send("POST", "CodeSystem/$import", body).json()["id"] == made["id"]
    assert home.send("POST", "CodeSystem/$import", body).status_code == 200  # again: nothing twice
    resource = home.send("GET", f"CodeSystem/{made['id']}").json()
    assert resource["concept"] == [
        {"code": "a", "display": "Animal"},
        {
            "code": "b",
            "display": "Bear",
            "property": [{"code": "parent", "valueCode": "a"}, {"code": "weight", "valueInteger": 300}],
        },
    ]
    outcome = home.send("GET", f"CodeSystem/$subsumes?system={url}&codeA=a&codeB=b").json()
    assert outcome["parameter"][0]["valueCode"] == "subsumes"
    assert foreign.send("POST", "CodeSystem/$import", body).status_code == 404
    for part in (
        property_of("c", "weight", "1"),
        property_of("b", "colour", "x"),
        property_of("b", "weight", "x"),
    ):
        wrong = {
            "resourceType": "Parameters",
            "parameter": [parameters[0], {"name": "property", "part": part}],
        }
        assert home.send("POST", "CodeSystem/$import", wrong).status_code == 400


def property_of(code: str, name: str, value: str) -> list[dict[str, Any]]:
    return [
        {"name": "code", "valueCode": code},
        {"name": "property", "valueCode": name},
        {"name": "value", "valueString": value},
    ]


def test_mappings_are_imported(home: Caller) -> None:
    url = f"http://example.com/{uuid.uuid4()}"
    made = home.create({"resourceType": "ConceptMap", "url": url, "status": "active"})
    parts = [
        {"name": "source", "valueCoding": {"system": "x:a", "code": "1"}},
        {"name": "target", "valueCoding": {"system": "x:b", "code": "2", "display": "Two"}},
        {"name": "relationship", "valueCode": "source-is-narrower-than-target"},
    ]
    body = {"resourceType": "Parameters", "parameter": [{"name": "mapping", "part": parts}]}
    assert home.send("POST", f"ConceptMap/{made['id']}/$import", body).status_code == 200
    translated = home.send("GET", f"ConceptMap/$translate?url={url}&system=x:a&code=1").json()
    match = {part["name"]: part for part in translated["parameter"][1]["part"]}
    assert match["equivalence"]["valueCode"] == "wider"
    assert match["concept"]["valueCoding"] == {"system": "x:b", "code": "2", "display": "Two"}
    assert home.send("POST", "ConceptMap/$import", body).status_code == 400


def test_a_profile_comes_with_those_inside_it(home: Caller) -> None:
    url = "http://hl7.org/fhir/StructureDefinition/vitalsigns"
    own = f"http://example.com/{uuid.uuid4()}"
    home.create(
        {
            "resourceType": "StructureDefinition",
            "url": own,
            "name": "Own",
            "status": "active",
            "kind": "resource",
            "abstract": False,
            "type": "Patient",
            "baseDefinition": "http://hl7.org/fhir/StructureDefinition/Patient",
            "derivation": "constraint",
            "snapshot": {
                "element": [
                    {
                        "id": "Patient",
                        "path": "Patient",
                        "definition": "x",
                        "min": 0,
                        "max": "*",
                        "base": {"path": "Patient", "min": 0, "max": "*"},
                    },
                    {
                        "id": "Patient.extension",
                        "path": "Patient.extension",
                        "definition": "x",
                        "base": {"path": "DomainResource.extension", "min": 0, "max": "*"},
                        "min": 0,
                        "max": "*",
                        "type": [{"code": "Extension", "profile": [url, own]}],
                    },
                ]
            },
        }
    )
    bundle = home.send(
        "POST", f"StructureDefinition/$expand-profile?url={own}", {"resourceType": "Parameters"}
    ).json()
    urls = [entry["resource"]["url"] for entry in bundle["entry"]]
    assert urls[:2] == [own, url]
    assert len(urls) == len(set(urls))
    unknown = home.send("GET", "StructureDefinition/$expand-profile?url=http://example.com/none")
    assert unknown.status_code == 404


def test_a_protocol_becomes_a_plan(home: Caller) -> None:
    patient = home.create(smith(gender="female"))
    form = home.create({"resourceType": "Questionnaire", "status": "active", "title": "Intake"})
    url = f"http://example.com/{uuid.uuid4()}"
    home.create(
        {
            "resourceType": "ActivityDefinition",
            "url": url,
            "status": "active",
            "kind": "ServiceRequest",
            "code": {"text": "Blood count"},
        }
    )
    fhirpath = {"language": "text/fhirpath"}
    definition = home.create(
        {
            "resourceType": "PlanDefinition",
            "status": "active",
            "title": "Welcome",
            "action": [
                {"id": "a", "title": "Fill in", "definitionCanonical": f"Questionnaire/{form['id']}"},
                {
                    "title": "Tests",
                    "action": [
                        {
                            "title": "Blood",
                            "definitionCanonical": url,
                            "dynamicValue": [
                                {
                                    "path": "description",
                                    "expression": {**fhirpath, "expression": "name.family"},
                                }
                            ],
                        }
                    ],
                },
                {
                    "title": "Men only",
                    "condition": [
                        {"kind": "applicability", "expression": {**fhirpath, "expression": "gender = 'male'"}}
                    ],
                },
            ],
        }
    )
    body = {
        "resourceType": "Parameters",
        "parameter": [{"name": "subject", "valueString": f"Patient/{patient['id']}"}],
    }
    answer = home.send("POST", f"PlanDefinition/{definition['id']}/$apply", body)
    assert answer.status_code == 200, answer.content
    care_plan = answer.json()
    assert (care_plan["resourceType"], care_plan["title"]) == ("CarePlan", "Welcome")
    group = home.send("GET", care_plan["activity"][0]["reference"]["reference"]).json()
    assert [each["title"] for each in group["action"]] == ["Fill in", "Tests"]
    fill_in = home.send("GET", group["action"][0]["resource"]["reference"]).json()
    assert fill_in["input"][0]["valueReference"] == {
        "reference": f"Questionnaire/{form['id']}",
        "display": "Intake",
    }
    assert fill_in["for"] == {"reference": f"Patient/{patient['id']}", "display": "Jane Smith"}
    blood = home.send("GET", group["action"][1]["action"][0]["resource"]["reference"]).json()
    assert (blood["code"]["text"], blood["description"]) == ("Blood count", "Smith")
    request = home.send("GET", blood["focus"]["reference"]).json()
    assert (request["resourceType"], request["code"]["text"]) == ("ServiceRequest", "Blood count")


def test_a_protocol_that_cannot_be_followed_leaves_nothing(home: Caller) -> None:
    patient = home.create(smith())
    definition = home.create(
        {
            "resourceType": "PlanDefinition",
            "status": "active",
            "action": [
                {"title": "First"},
                {"title": "Lost", "definitionCanonical": "http://example.com/none"},
            ],
        }
    )
    path = f"PlanDefinition/{definition['id']}/$apply"
    subject = {"name": "subject", "valueString": f"Patient/{patient['id']}"}
    refused = home.send("POST", path, {"resourceType": "Parameters", "parameter": [subject]})
    assert (refused.status_code, text_of(refused)) == (400, "Definition not found: http://example.com/none")
    assert "entry" not in home.send("GET", f"Task?subject=Patient/{patient['id']}").json()
    assert text_of(home.send("POST", path)) == "Missing parameter subject"
    wrong = {"name": "subject", "valueString": "Basic/x"}
    assert home.send("POST", path, {"resourceType": "Parameters", "parameter": [wrong]}).status_code == 400


def test_a_graph_in_circles_is_walked_once(home: Caller) -> None:
    """Each level has four times the ways round the circle: followed all, they would be 4^9 reads."""
    link: dict[str, Any] = {"path": "Patient.link.other", "target": [{"type": "Patient"}]}
    for _ in range(8):
        link = {"path": "Patient.link.other", "target": [{"type": "Patient", "link": [link]}]}
    home.create(
        {
            "resourceType": "GraphDefinition",
            "name": "circle",
            "status": "active",
            "start": "Patient",
            "link": [link],
        }
    )
    made = home.create({"resourceType": "Patient"})
    other = {"other": {"reference": f"Patient/{made['id']}"}, "type": "seealso"}
    assert home.send("PUT", f"Patient/{made['id']}", {**made, "link": [other] * 4}).status_code == 200
    answer = home.send("GET", f"Patient/{made['id']}/$graph?graph=circle")
    assert answer.status_code == 200
    assert len(answer.json()["entry"]) == 1


def test_imports_refuse_what_is_no_text(home: Caller) -> None:
    home.create({"resourceType": "ConceptMap", "url": "http://example.com/m", "status": "draft"})
    home.create(
        {
            "resourceType": "CodeSystem",
            "url": "http://example.com/c",
            "status": "draft",
            "content": "complete",
        }
    )
    coding = {"code": "a", "system": {}}
    mapping = {"name": "mapping", "part": [{"name": n, "valueCoding": coding} for n in ("source", "target")]}
    listed = {"name": "property", "part": [{"name": "code", "valueCoding": {}}]}
    for path, key, url, parameter in (
        ("ConceptMap", "url", "http://example.com/m", mapping),
        ("CodeSystem", "system", "http://example.com/c", listed),
    ):
        given = {"resourceType": "Parameters", "parameter": [{"name": key, "valueUri": url}, parameter]}
        assert home.send("POST", f"{path}/$import", given).status_code == 400
