"""Broken and whole resources, and what is said about them."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhirstore.definitions import registry
from fhirstore.errors import FhirError
from fhirstore.invariants import compile_invariant
from fhirstore.search.index import index
from fhirstore.validation import strip_nulls, validate
from tests.engines.samples import OBSERVATION, PATIENT


def patient(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", **elements}


def observation(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, **elements}


def nested(levels: int) -> dict[str, Any]:
    extension: dict[str, Any] = {"url": "http://x", "valueString": "x"}
    for _ in range(levels):
        extension = {"url": "http://x", "extension": [extension]}
    return patient(extension=[extension])


WHOLE: list[dict[str, Any]] = [
    PATIENT,
    OBSERVATION,
    patient(),
    patient(
        name=[
            {"given": ["A", None], "_given": [None, {"extension": [{"url": "http://x", "valueCode": "y"}]}]}
        ]
    ),
    patient(_birthDate={"extension": [{"url": "http://x", "valueDateTime": "1980-01-01T10:00:00+01:00"}]}),
    patient(birthDate="1980", _birthDate={"id": "b"}),
    patient(
        contained=[{"resourceType": "Organization", "id": "o"}], managingOrganization={"reference": "#o"}
    ),
    patient(generalPractitioner=[{"reference": "urn:uuid:1"}, {"reference": "Practitioner?identifier=x"}]),
    patient(
        photo=[
            {"data": "aGVsbG8=", "contentType": "text/plain"},
            {"data": "aGVs\nbG8=", "contentType": "text/plain"},
        ]
    ),
    patient(multipleBirthInteger=2),
    observation(_status={"extension": [{"url": "http://x", "valueCode": "y"}]}),
    {
        "resourceType": "Observation",
        "_status": {"extension": [{"url": "http://x", "valueCode": "unknown"}]},
        "code": {"text": "x"},
    },
    observation(valueQuantity={"value": 1e-7, "comparator": "<"}),
    observation(subject={"reference": "Patient/1"}, performer=[{"reference": "Bot/1"}]),
    {
        "resourceType": "Bot",
        "name": "Hello",
        "runtimeVersion": "vmcontext",
        "auditEventDestination": ["resource"],
        "cronString": "0 0 * * *",
        "sourceCode": {"contentType": "text/typescript", "url": "Binary/1"},
    },
    {
        "resourceType": "Subscription",
        "status": "active",
        "reason": "test",
        "criteria": "Patient",
        "channel": {"type": "rest-hook", "endpoint": "Bot/1"},
    },
    {
        "resourceType": "Questionnaire",
        "status": "draft",
        "item": [
            {"linkId": "1", "type": "group", "item": [{"linkId": "2", "type": "string", "maxLength": 5}]}
        ],
    },
    {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [{"request": {"method": "POST", "url": "Patient"}, "resource": patient(gender="male")}],
    },
    {
        "resourceType": "Project",
        "name": "P",
        "features": ["bots", "cron"],
        "secret": [{"name": "KEY", "valueString": "x"}],
    },
    {
        "resourceType": "AccessPolicy",
        "name": "A",
        "resource": [{"resourceType": "*", "interaction": ["read", "search"]}],
    },
    {
        "resourceType": "AllergyIntolerance",
        "patient": {"reference": "Patient/1"},
        "clinicalStatus": {
            "coding": [
                {
                    "system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical",
                    "code": "active",
                }
            ]
        },
    },
    nested(80),
]


@pytest.mark.parametrize("resource", WHOLE, ids=lambda resource: resource["resourceType"])
def test_a_whole_resource_passes(resource: dict[str, Any]) -> None:
    assert validate(resource) == []


NOT_BOUND = 'Value "{}" did not satisfy terminology binding http://hl7.org/fhir/ValueSet/{}'

BROKEN: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    # the resource
    ({}, [("Resource.resourceType", "Missing required property")]),
    ({"resourceType": "Nonsense"}, [("Resource.resourceType", "Invalid resource type")]),
    ({"resourceType": "DomainResource"}, [("Resource.resourceType", "Invalid resource type")]),
    ({"resourceType": "HumanName"}, [("Resource.resourceType", "Invalid resource type")]),
    ({"resourceType": 1}, [("Resource.resourceType", "Invalid resource type")]),
    # properties
    (patient(nonsense=1), [("Patient.nonsense", 'Invalid additional property "nonsense"')]),
    (patient(name=[{"famly": "x"}]), [("Patient.name[0].famly", 'Invalid additional property "famly"')]),
    (patient(meta={"nonsense": 1}), [("Patient.meta.nonsense", 'Invalid additional property "nonsense"')]),
    (patient(_name=[{"id": "x"}]), [("Patient._name", 'Invalid additional property "_name"')]),
    (
        patient(name=[{"resourceType": "HumanName", "family": "x"}]),
        [("Patient.name[0].resourceType", 'Invalid additional property "resourceType"')],
    ),
    # cardinality
    (
        {"resourceType": "Observation", "code": {"text": "x"}},
        [("Observation.status", "Missing required property")],
    ),
    (
        {"resourceType": "Observation"},
        [
            ("Observation.status", "Missing required property"),
            ("Observation.code", "Missing required property"),
        ],
    ),
    (patient(name={"family": "x"}), [("Patient.name", "Expected array of values for property")]),
    (patient(gender=["male"]), [("Patient.gender", "Expected single value for property")]),
    (
        patient(communication=[{"preferred": True}]),
        [("Patient.communication[0].language", "Missing required property")],
    ),
    (
        {"resourceType": "Medication", "ingredient": [{"isActive": True}]},
        [("Medication.ingredient[0].item[x]", "Missing required property")],
    ),
    (
        patient(link=[{"other": {"reference": "Patient/1"}}]),
        [("Patient.link[0].type", "Missing required property")],
    ),
    # emptiness
    (patient(name=[]), [("Patient.name", "Invalid empty value")]),
    (patient(name=[{}]), [("Patient.name[0]", "Invalid empty value")]),
    (patient(text={}), [("Patient.text", "Invalid empty value")]),
    (patient(name=[{"family": ""}]), [("Patient.name[0].family", "Invalid empty value")]),
    (
        patient(name=[{"family": " "}]),
        [("Patient.name[0].family", "String must contain non-whitespace content")],
    ),
    (
        patient(name=[{"given": ["A", None]}]),
        [("Patient.name[0].given", "Invalid null value")],
    ),
    (
        patient(name=[{"given": [None, "A"], "_given": [None, {"id": "x"}]}]),
        [("Patient.name[0].given", "Invalid null value")],
    ),
    (patient(name=[None]), [("Patient.name[0]", "Invalid JSON type: expected object, but got null")]),
    # JSON types
    (patient(active="true"), [("Patient.active", "Invalid JSON type: expected boolean, but got string")]),
    (patient(active=1), [("Patient.active", "Invalid JSON type: expected boolean, but got number")]),
    (patient(birthDate=1980), [("Patient.birthDate", "Invalid JSON type: expected string, but got number")]),
    (patient(name=["x"]), [("Patient.name[0]", "Invalid JSON type: expected object, but got string")]),
    (patient(text="x"), [("Patient.text", "Invalid JSON type: expected object, but got string")]),
    (
        observation(valueQuantity={"value": "1"}),
        [("Observation.value[x].value", "Invalid JSON type: expected number, but got string")],
    ),
    (
        observation(valueQuantity={"value": True}),
        [("Observation.value[x].value", "Invalid JSON type: expected number, but got boolean")],
    ),
    (
        patient(multipleBirthInteger=1.5),
        [("Patient.multipleBirth[x]", "Invalid integer value")],
    ),
    (patient(telecom=[{"rank": 0}]), [("Patient.telecom[0].rank", "Invalid positiveInt value")]),
    (patient(multipleBirthInteger=2**31), [("Patient.multipleBirth[x]", "Invalid integer value")]),
    # formats
    (patient(id="a b"), [("Patient.id", "Invalid id format")]),
    (patient(id="x" * 65), [("Patient.id", "Invalid id format")]),
    (patient(birthDate="1980-13-01"), [("Patient.birthDate", "Invalid date format")]),
    (patient(birthDate="1981-02-29"), [("Patient.birthDate", "Invalid date format")]),
    (patient(birthDate="01.02.1980"), [("Patient.birthDate", "Invalid date format")]),
    (patient(birthDate="1980-01-01T00:00:00Z"), [("Patient.birthDate", "Invalid date format")]),
    (patient(birthDate="1980-01-01\n"), [("Patient.birthDate", "Invalid date format")]),
    (
        patient(deceasedDateTime="2020-01-01T10:00:00"),
        [("Patient.deceased[x]", "Invalid dateTime format")],
    ),
    (patient(deceasedDateTime="2020-02-30T10:00:00Z"), [("Patient.deceased[x]", "Invalid dateTime format")]),
    (
        observation(issued="2020-01-01"),
        [("Observation.issued", "Invalid instant format")],
    ),
    (observation(valueTime="25:00:00"), [("Observation.value[x]", "Invalid time format")]),
    (patient(photo=[{"data": "not base64!"}]), [("Patient.photo[0].data", "Invalid base64Binary format")]),
    (patient(photo=[{"data": "abc"}]), [("Patient.photo[0].data", "Invalid base64Binary format")]),
    (patient(implicitRules="a b"), [("Patient.implicitRules", "Invalid uri format")]),
    (patient(language=" de"), [("Patient.language", "Invalid code format")]),
    (patient(name=[{"family": "a\x00b"}]), [("Patient.name[0].family", "Invalid string format")]),
    (
        patient(name=[{"family": "x" * (1024 * 1024 + 1)}]),
        [("Patient.name[0].family", "String cannot be larger than 1 MB")],
    ),
    # choices
    (
        patient(deceasedBoolean=True, deceasedDateTime="2020"),
        [("Patient.deceased[x]", "Conflicting choice of types: only one may be present")],
    ),
    (
        patient(deceasedString="x"),
        [("Patient.deceasedString", 'Invalid additional property "deceasedString"')],
    ),
    (patient(deceased=True), [("Patient.deceased", 'Invalid additional property "deceased"')]),
    # bindings
    (patient(gender="M"), [("Patient.gender", NOT_BOUND.format("M", "administrative-gender"))]),
    (
        patient(name=[{"use": "x", "family": "y"}]),
        [("Patient.name[0].use", NOT_BOUND.format("x", "name-use"))],
    ),
    (
        {
            "resourceType": "AllergyIntolerance",
            "patient": {"reference": "Patient/1"},
            "clinicalStatus": {"coding": [{"system": "http://other", "code": "active"}]},
        },
        [("AllergyIntolerance.clinicalStatus", NOT_BOUND.format("active", "allergyintolerance-clinical"))],
    ),
    # references
    (
        patient(managingOrganization={"reference": "Patient/1"}),
        [("Patient.managingOrganization", 'Invalid reference: got "Patient", expected "Organization"')],
    ),
    (
        observation(subject={"reference": "Encounter/1"}),
        [
            (
                "Observation.subject",
                'Invalid reference: got "Encounter", expected "Device", "Group", "Location", "Patient"',
            )
        ],
    ),
    # extensions, companions, contained and nested resources
    (patient(extension=[{"valueString": "x"}]), [("Patient.extension[0].url", "Missing required property")]),
    (
        patient(extension=[{"url": "http://x", "valueBoolean": True, "valueCode": "x"}]),
        [("Patient.extension[0].value[x]", "Conflicting choice of types: only one may be present")],
    ),
    (
        patient(extension=[{"url": "http://x", "extension": [{"url": "y", "valueDate": "x"}]}]),
        [("Patient.extension[0].extension[0].value[x]", "Invalid date format")],
    ),
    (
        patient(_birthDate={"nonsense": 1}),
        [("Patient.birthDate.nonsense", 'Invalid additional property "nonsense"')],
    ),
    (
        patient(contained=[{"resourceType": "Organization", "nme": "x"}]),
        [("Patient.contained[0].nme", 'Invalid additional property "nme"')],
    ),
    (
        patient(contained=[{"resourceType": "Nonsense"}]),
        [("Patient.contained[0].resourceType", "Invalid resource type")],
    ),
    (
        {"resourceType": "Bundle", "type": "batch", "entry": [{"resource": patient(gender="M")}]},
        [("Bundle.entry[0].resource.gender", NOT_BOUND.format("M", "administrative-gender"))],
    ),
    (
        {
            "resourceType": "Questionnaire",
            "status": "draft",
            "item": [{"linkId": "1", "type": "group", "item": [{"linkId": "2"}]}],
        },
        [("Questionnaire.item[0].item[0].type", "Missing required property")],
    ),
    # several at once
    (
        patient(nonsense=1, gender="M", name=[{"family": 1}, {"family": ""}]),
        [
            ("Patient.nonsense", 'Invalid additional property "nonsense"'),
            ("Patient.gender", NOT_BOUND.format("M", "administrative-gender")),
            ("Patient.name[0].family", "Invalid JSON type: expected string, but got number"),
            ("Patient.name[1].family", "Invalid empty value"),
        ],
    ),
    (nested(2000), [("Patient", "Resource is nested too deeply")]),
]


INVARIANTS: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    (patient(contact=[{"gender": "male"}]), [("Patient.contact[0]", "pat-1")]),
    (
        observation(valueString="x", dataAbsentReason={"text": "unknown"}),
        [("Observation", "obs-6")],
    ),
    (
        observation(valueString="x", component=[{"code": OBSERVATION["code"]}], code=OBSERVATION["code"]),
        [("Observation", "obs-7")],
    ),
    (
        observation(referenceRange=[{"age": {"low": {"value": 1}}}]),
        [("Observation.referenceRange[0]", "obs-3")],
    ),
    (patient(telecom=[{"value": "1"}]), [("Patient.telecom[0]", "cpt-2")]),
    (
        patient(name=[{"family": "x", "period": {"start": "2020-02-01", "end": "2020-01-31"}}]),
        [("Patient.name[0].period", "per-1")],
    ),
    (
        patient(
            name=[{"family": "x", "period": {"start": "2020-01-01T01:00:00+02:00", "end": "2019-12-31"}}]
        ),
        [],
    ),
    (
        observation(valueRange={"low": {"value": 2, "unit": "mm"}, "high": {"value": 1, "unit": "mm"}}),
        [("Observation.value[x]", "rng-2")],
    ),
    (
        observation(
            valueRange={
                "low": {"value": 2, "system": "http://unitsofmeasure.org", "code": "g"},
                "high": {"value": 900, "system": "http://unitsofmeasure.org", "code": "mg"},
            }
        ),
        [("Observation.value[x]", "rng-2")],
    ),
    (observation(valueQuantity={"value": 1, "code": "mm"}), [("Observation.value[x]", "qty-3")]),
    (patient(photo=[{"data": "aGk="}]), [("Patient.photo[0]", "att-1")]),
    (patient(extension=[{"url": "http://x"}]), [("Patient.extension[0]", "ext-1")]),
    (
        patient(
            extension=[{"url": "http://x", "valueCode": "x", "extension": [{"url": "y", "valueCode": "y"}]}]
        ),
        [("Patient.extension[0]", "ext-1")],
    ),
    (patient(name=[{"id": "x"}]), [("Patient.name[0]", "ele-1")]),
    (
        patient(text={"status": "generated", "div": "<div><script>alert(1)</script></div>"}),
        [("Patient.text.div", "txt-1"), ("Patient.text.div", "txt-2")],
    ),
    (
        patient(text={"status": "generated", "div": "<div><b onclick='x()'>hello</b></div>"}),
        [("Patient.text.div", "txt-1"), ("Patient.text.div", "txt-2")],
    ),
    (patient(managingOrganization={"reference": "#o"}), [("Patient.managingOrganization", "ref-1")]),
    (
        patient(
            contained=[{"resourceType": "Organization", "id": "o", "partOf": {"reference": "#p"}}],
            managingOrganization={"reference": "#o"},
        ),
        [("Patient.contained[0].partOf", "ref-1")],
    ),
    (
        patient(
            contained=[{"resourceType": "Organization", "id": "o", "partOf": {"reference": "#"}}],
            managingOrganization={"reference": "#o"},
        ),
        [],
    ),
    (
        patient(contained=[{"resourceType": "Basic", "contained": [], "meta": {"versionId": "1"}}]),
        [
            ("Patient.contained[0].contained", ""),
            ("Patient.contained[0].code", ""),
            ("Patient", "dom-2"),
            ("Patient", "dom-4"),
        ],
    ),
    (
        {
            "resourceType": "Bundle",
            "type": "collection",
            "entry": [
                {"resource": patient(managingOrganization={"reference": "#o"})},
                {"fullUrl": "urn:uuid:1", "request": {"method": "GET", "url": "x"}},
            ],
        },
        [("Bundle.entry[0].resource.managingOrganization", "ref-1")],
    ),
    (
        {
            "resourceType": "Bundle",
            "type": "document",
            "entry": [{"resource": patient(), "fullUrl": "urn:uuid:1"}, {"fullUrl": "urn:uuid:1"}],
        },
        [("Bundle.entry[1]", "bdl-5")],
    ),
    (
        {"resourceType": "Bundle", "type": "document", "total": 1, "entry": [{"resource": patient()}]},
        [("Bundle", "bdl-1"), ("Bundle", "bdl-9"), ("Bundle", "bdl-10"), ("Bundle", "bdl-11")],
    ),
    (
        {
            "resourceType": "Questionnaire",
            "status": "draft",
            "item": [
                {"linkId": "1", "type": "group"},
                {"linkId": "2", "type": "display", "required": True},
                {
                    "linkId": "3",
                    "type": "string",
                    "answerOption": [{"valueString": "x"}],
                    "answerValueSet": "x",
                },
            ],
        },
        [
            ("Questionnaire.item[0]", "que-1"),
            ("Questionnaire.item[1]", "que-6"),
            ("Questionnaire.item[2]", "que-4"),
        ],
    ),
    (
        {
            "resourceType": "Questionnaire",
            "status": "draft",
            "item": [{"linkId": "1", "type": "string"}, {"linkId": "1", "type": "string"}],
        },
        [("Questionnaire", "que-2")],
    ),
    (
        {
            "resourceType": "Organization",
            "name": "x",
            "telecom": [{"system": "phone", "value": "1", "use": "home"}],
        },
        [("Organization.telecom[0]", "org-3")],
    ),
    ({"resourceType": "Organization"}, []),
]


@pytest.mark.parametrize(("resource", "expected"), INVARIANTS, ids=range(len(INVARIANTS)))
def test_a_broken_invariant_is_named_at_the_element_it_is_about(
    resource: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    found = [
        (issue["expression"][0], issue["details"]["text"].split()[1] if issue["code"] == "invariant" else "")
        for issue in validate(resource)
    ]
    assert found == expected


def test_every_invariant_of_severity_error_can_be_compiled() -> None:
    for path in registry.get().invariant_paths:
        for rule in registry.invariants(path):
            if rule.severity == "error":
                compile_invariant(rule.expression, path)


@pytest.mark.parametrize(("resource", "expected"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_resource_gets_an_issue_per_problem_with_its_expression(
    resource: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    issues = validate(resource)
    assert [(issue["expression"][0], issue["details"]["text"]) for issue in issues] == expected
    assert {(issue["severity"], issue["code"]) for issue in issues} == {("error", "structure")}


def test_every_type_can_be_validated() -> None:
    for type in registry.resource_types():
        for issue in validate({"resourceType": type}):
            assert issue["details"]["text"] == "Missing required property" or issue["code"] == "invariant", (
                type,
                issue,
            )


@pytest.mark.parametrize(
    ("given", "stripped"),
    [
        ({"a": None, "b": 1}, {"b": 1}),
        ({"a": {"b": None, "c": 2}}, {"a": {"c": 2}}),
        ({"a": [None, {"b": None, "c": 1}, None]}, {"a": [{"c": 1}]}),
        ({"given": ["A", None]}, {"given": ["A"]}),
        (
            {"given": ["A", None], "_given": [None, {"id": "x"}]},
            {"given": ["A", None], "_given": [None, {"id": "x"}]},
        ),
        ({"given": ["A", None], "_given": None}, {"given": ["A"]}),
    ],
)
def test_nulls_are_stripped_except_where_they_keep_two_lists_in_step(
    given: dict[str, Any], stripped: dict[str, Any]
) -> None:
    before = copy.deepcopy(given)
    assert strip_nulls(given) == stripped
    assert given == before


def test_a_resource_without_nulls_is_returned_as_it_is() -> None:
    assert strip_nulls(PATIENT) is PATIENT


def test_stripping_refuses_what_is_nested_too_deeply() -> None:
    for levels in (150, 5000):
        with pytest.raises(FhirError, match="Resource is nested too deeply"):
            strip_nulls(nested(levels))


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["value", "system", "code", "start", "reference", "coding", "url"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.sampled_from([PATIENT, OBSERVATION]), st.data())
def test_whatever_passes_validation_can_be_indexed_and_stored(
    resource: dict[str, Any], data: st.DataObject
) -> None:
    changed = copy.deepcopy(resource)
    holder: Any = changed
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(holder[key], dict | list) and holder[key] and data.draw(st.booleans()):
            holder = holder[key]
            continue
        holder[key] = data.draw(json)
        break
    changed = strip_nulls(changed)
    if not validate(changed):
        index(changed)
        orjson.dumps(changed)
