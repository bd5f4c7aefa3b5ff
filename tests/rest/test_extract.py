"""QuestionnaireResponse/$extract: templates with contexts and values, allocated ids, and observations."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from fhirstore.rest.extract import ALLOCATE, BUNDLE, CONTEXT, OBSERVATION, TEMPLATE, VALUE
from tests.rest.conftest import Caller, smith, text_of

pytestmark = pytest.mark.usefixtures("database")


def value(expression: str, context: str | None = None) -> dict[str, Any]:
    """An element of a template that is given a value."""
    extensions = [{"url": VALUE, "valueString": expression}]
    if context:
        extensions.insert(0, {"url": CONTEXT, "valueString": context})
    return {"extension": extensions}


def answer(link: str, *answers: dict[str, Any]) -> dict[str, Any]:
    return {"linkId": link, "answer": list(answers)}


PATIENT: dict[str, Any] = {
    "resourceType": "Patient",
    "id": "patient",
    "active": True,
    "name": [
        {
            "extension": [{"url": CONTEXT, "valueString": "item.where(linkId = 'name')"}],
            "use": "official",
            "family": "placeholder",
            "_family": value("item.where(linkId = 'family').answer.value.first()"),
            "_given": [value("item.where(linkId = 'given').answer.value")],
        }
    ],
    "_birthDate": value("item.where(linkId = 'birth').answer.value"),
    "_gender": value("item.where(linkId = 'gender').answer.value.code"),
    "telecom": [
        {
            "extension": [{"url": CONTEXT, "valueString": "item.where(linkId = 'phone').answer"}],
            "system": "phone",
            "_value": value("value"),
        }
    ],
}
CONTACT: dict[str, Any] = {
    "resourceType": "RelatedPerson",
    "id": "contact",
    "patient": {"_reference": value("%NewPatient")},
    "name": [{"_text": value("item.where(linkId = 'contact-name').answer.value")}],
}


def template(reference: str, **parts: str) -> dict[str, Any]:
    inner = [
        {"url": "template", "valueReference": {"reference": reference}},
        *({"url": name, "valueString": expression} for name, expression in parts.items()),
    ]
    return {"url": TEMPLATE, "extension": inner}


def questionnaire(**elements: Any) -> dict[str, Any]:
    return {
        "resourceType": "Questionnaire",
        "url": f"http://example.com/{uuid.uuid4()}",
        "status": "active",
        **elements,
    }


FORM: dict[str, Any] = {
    "contained": [PATIENT, CONTACT],
    "extension": [
        {"url": ALLOCATE, "valueString": "NewPatient"},
        template("#patient", fullUrl="%NewPatient"),
    ],
    "item": [
        {"linkId": "name", "type": "group", "item": [{"linkId": "family", "type": "string"}]},
        {
            "linkId": "contact",
            "type": "group",
            "repeats": True,
            "extension": [template("#contact")],
            "item": [{"linkId": "contact-name", "type": "string"}],
        },
    ],
}


def response(form: dict[str, Any], *items: dict[str, Any], **elements: Any) -> dict[str, Any]:
    return {
        "resourceType": "QuestionnaireResponse",
        "questionnaire": form["url"],
        "status": "completed",
        "item": list(items),
        **elements,
    }


def test_templates_are_filled_with_answers(home: Caller) -> None:
    form = home.create(questionnaire(**FORM))
    name = answer("given", {"valueString": "Jane"}, {"valueString": "Joan"})
    contacts = [
        {"linkId": "contact", "item": [answer("contact-name", {"valueString": text})]}
        for text in ("Homer", "Marge", "Marge")
    ]
    given = home.create(
        response(
            form,
            {"linkId": "name", "item": [answer("family", {"valueString": "Smith"}), name]},
            answer("birth", {"valueDate": "1980-05-01"}),
            answer("phone", {"valueString": "1"}, {"valueString": "2"}),
            *contacts,
        )
    )
    bundle = home.send("GET", f"QuestionnaireResponse/{given['id']}/$extract").json()
    assert bundle["type"] == "transaction"
    patient, *people = bundle["entry"]
    assert patient["request"] == {"method": "POST", "url": "Patient"}
    assert patient["resource"] == {
        "resourceType": "Patient",
        "active": True,
        "name": [{"use": "official", "family": "Smith", "given": ["Jane", "Joan"]}],
        "birthDate": "1980-05-01",
        "telecom": [{"system": "phone", "value": "1"}, {"system": "phone", "value": "2"}],
    }
    assert [each["resource"]["name"][0]["text"] for each in people] == ["Homer", "Marge", "Marge"]
    assert {each["resource"]["patient"]["reference"] for each in people} == {patient["fullUrl"]}
    stored = home.send("POST", "", bundle).json()
    assert [each["response"]["status"] for each in stored["entry"]] == ["201"] * 4


def test_resources_are_updated_where_the_form_says_which(home: Caller) -> None:
    person = home.create(smith())
    form = questionnaire(
        contained=[PATIENT],
        extension=[template("#patient", resourceId="%resource.subject.reference.replace('Patient/', '')")],
    )
    given = response(
        form,
        answer("gender", {"valueCoding": {"code": "female"}}),
        subject={"reference": f"Patient/{person['id']}"},
    )
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "questionnaire-response", "resource": given},
            {"name": "questionnaire", "resource": form},
        ],
    }
    (entry,) = home.send("POST", "QuestionnaireResponse/$extract", body).json()["entry"]
    assert entry["request"] == {"method": "PUT", "url": f"Patient/{person['id']}"}
    assert entry["resource"] == {
        "resourceType": "Patient",
        "id": person["id"],
        "active": True,
        "gender": "female",
    }


def test_a_bundle_can_be_the_template(home: Caller) -> None:
    entry = {
        "fullUrl": "urn:uuid:e5b3cbd6-1b5b-4a45-8b4b-3f0a8a1a2c3d",
        "resource": {"resourceType": "Basic", "code": {"_text": value("item.answer.value")}},
        "request": {"method": "POST", "url": "Basic"},
    }
    contained = {"resourceType": "Bundle", "id": "all", "type": "transaction", "entry": [entry]}
    form = home.create(
        questionnaire(
            contained=[contained], extension=[{"url": BUNDLE, "valueReference": {"reference": "#all"}}]
        )
    )
    given = response(form, answer("a", {"valueString": "said"}))
    (made,) = home.send("POST", "QuestionnaireResponse/$extract", given).json()["entry"]
    assert made["resource"] == {"resourceType": "Basic", "code": {"text": "said"}}


def test_answers_become_observations(home: Caller) -> None:
    patient = home.create(smith())
    code = [{"system": "http://loinc.org", "code": "29463-7"}]
    form = home.create(
        questionnaire(
            extension=[{"url": OBSERVATION, "valueBoolean": True}],
            item=[
                {"linkId": "weight", "type": "quantity", "code": code, "text": "Weight"},
                {"linkId": "mood", "type": "choice", "code": code},
                {"linkId": "remark", "type": "string"},
            ],
        )
    )
    given = home.create(
        response(
            form,
            answer("weight", {"valueQuantity": {"value": 70, "unit": "kg"}}),
            answer("mood", {"valueCoding": {"code": "good"}}),
            answer("remark", {"valueString": "x"}),
            subject={"reference": f"Patient/{patient['id']}"},
            authored="2026-01-01T10:00:00Z",
        )
    )
    bundle = home.send("GET", f"QuestionnaireResponse/{given['id']}/$extract").json()
    weight, mood = (entry["resource"] for entry in bundle["entry"])
    assert weight["valueQuantity"] == {"value": 70, "unit": "kg"}
    assert weight["subject"]["reference"] == f"Patient/{patient['id']}"
    assert weight["derivedFrom"] == [{"reference": f"QuestionnaireResponse/{given['id']}"}]
    assert mood["valueCodeableConcept"] == {"coding": [{"code": "good"}]}
    statuses = [each["response"]["status"] for each in home.send("POST", "", bundle).json()["entry"]]
    assert statuses == ["201", "201"]


def test_what_cannot_be_extracted_is_refused(home: Caller, foreign: Caller) -> None:
    nothing = questionnaire(item=[{"linkId": "a", "type": "string"}])
    empty = response(home.create(nothing), answer("a", {"valueString": "x"}))
    bundle = home.send("POST", "QuestionnaireResponse/$extract", empty)
    assert (bundle.status_code, bundle.json()) == (200, {"resourceType": "Bundle", "type": "transaction"})
    broken = dict(PATIENT, _gender=value("item.where("))
    wrong = response(home.create(questionnaire(contained=[broken], extension=[template("#patient")])))
    del wrong["item"]
    unknown = {**empty, "questionnaire": "http://example.com/none"}
    for given, text in (
        (wrong, "Invalid FHIRPath expression"),
        (unknown, "Questionnaire not found"),
        (None, "Missing parameter questionnaire-response"),
    ):
        refused = home.send("POST", "QuestionnaireResponse/$extract", given)
        assert refused.status_code == 400, refused.content
        assert text in text_of(refused)
    stored = home.create(empty)
    assert foreign.send("GET", f"QuestionnaireResponse/{stored['id']}/$extract").status_code == 404
