"""FHIRPath: what expressions mean, what they may cost, and what is said about wrong ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhirstore.errors import FhirError
from fhirstore.fhirpath import evaluate, is_true, locate
from tests.engines.samples import OBSERVATION, PATIENT

EXPRESSIONS: list[tuple[str, list[Any]]] = [
    # paths
    ("Patient.name.family", ["van Buren"]),
    ("name.given[1]", ["Q."]),
    ("name.where(use = 'official').given.first()", ["José"]),
    ("Observation.status", []),
    ("nonsense", []),
    ("deceased", [False]),
    ("deceased is Boolean", [True]),
    ("deceased.is(FHIR.dateTime)", [False]),
    ("$this is Patient and $this is DomainResource", [True]),
    ("resourceType", ["Patient"]),
    ("telecom.where(system = 'email').value | identifier.value", ["Jose@Example.com", "123-45-6789", "MRN7"]),
    (
        "extension('http://hl7.org/fhir/us/core/StructureDefinition/us-core-race').extension.value.code",
        ["2106-3"],
    ),
    ("descendants().ofType(HumanName).family", ["van Buren"]),
    ("children().ofType(ContactPoint).count()", [2]),
    ("generalPractitioner.first().resolve() is Practitioner", [True]),
    ("generalPractitioner[1].resolve()", []),
    # logic
    ("{} and false", [False]),
    ("{} and true", []),
    ("{} or true", [True]),
    ("true xor {}", []),
    ("false implies {}", [True]),
    ("active.not()", [False]),
    ("photo.exists() implies active", [True]),
    ("name.all(family.exists())", [True]),
    ("1 > 2 is Boolean", [True]),
    # comparison
    ("1 = 1.0", [True]),
    ("(1 | 2) = (2 | 1)", [False]),
    ("(1 | 2) ~ (2 | 1)", [True]),
    ("'Ab  c' ~ 'aB C'", [True]),
    ("gender in ('male' | 'female')", [True]),
    ("birthDate < today()", [True]),
    ("birthDate = @1980", []),
    ("birthDate >= @1980-02-29", [True]),
    ("birthDate + 1 year", ["1981-02-28"]),
    ("@2020-01-31 + 1 month", ["2020-02-29"]),
    ("@2020-01-01T10:00:00+02:00 = @2020-01-01T08:00:00Z", [True]),
    ("@T10:30 + 45 minutes", ["11:15"]),
    ("1 'g' = 1000 'mg'", [True]),
    ("1 'kg' > 900 'g'", [True]),
    ("1 'kg' > 1 's'", []),
    # arithmetic
    ("1 + 2 * 3", [7]),
    ("-(7 div 2)", [-3]),
    ("7 mod 0", []),
    ("1 / 4", [0.25]),
    ("(1 | 2 | 3).aggregate($total + $this, 0)", [6]),
    ("(3 | 1 | 2).max() - (3 | 1 | 2).min()", [2]),
    ("2.power(200)", []),
    # texts
    ("name.family.upper() & '!'", ["VAN BUREN!"]),
    ("'a,b'.split(',').join('-')", ["a-b"]),
    ("'12'.toInteger() + 1", [13]),
    ("'2'.convertsToInteger() and 'x'.convertsToInteger().not()", [True]),
    ("'abc'.replaceMatches('(b)', '<$1>')", ["a<b>c"]),
    ("'abc'.matches('^a.c$')", [True]),
    ("'aGk='.decode('base64')", ["hi"]),
    # collections
    ("(1 | 1 | 2).count()", [2]),
    ("name.given.isDistinct()", [True]),
    ("(1 | 2).intersect(2 | 3)", [2]),
    ("iif(active, 'yes', 'no')", ["yes"]),
    ("name.select(given.count() + $index)", [2]),
    ("%resource.id = id and %ucum = 'http://unitsofmeasure.org'", [True]),
    # comments and quoting
    ("name /* all */ . `given` // names\n .first()", ["José"]),
]


@pytest.mark.parametrize(("expression", "expected"), EXPRESSIONS, ids=[each[0] for each in EXPRESSIONS])
def test_expressions_mean_what_fhirpath_says(expression: str, expected: list[Any]) -> None:
    assert evaluate(expression, PATIENT) == expected


def test_choices_quantities_and_extensions_of_primitives() -> None:
    assert is_true("value is Quantity and value > 70 '/min' and value.unit = 'beats/min'", OBSERVATION)
    assert evaluate("Observation.value.ofType(Quantity).value", OBSERVATION) == [72.5]
    assert is_true("effective.start <= effective.end", OBSERVATION)
    patient = {
        "resourceType": "Patient",
        "_birthDate": {"extension": [{"url": "x", "valueString": "unknown"}]},
    }
    assert is_true("birthDate.exists() and birthDate.hasValue().not()", patient)
    assert evaluate("birthDate", patient) == []
    assert evaluate("birthDate.extension('x').value", patient) == ["unknown"]


def test_variables_are_json_with_or_without_a_resource_type() -> None:
    old, new = {"resourceType": "Task", "status": "draft"}, {"resourceType": "Task", "status": "ready"}
    changed = "%previous.empty() or (%previous.status != %current.status and %current.status = 'ready')"
    assert is_true(changed, new, {"previous": old, "current": new})
    assert is_true(changed, new, {"previous": None, "current": new})
    assert not is_true(changed, new, {"previous": new, "current": new})
    assert evaluate("%list.a + %n", None, {"list": [{"a": 1}], "n": 2}) == [3]


def test_references_resolve_inside_the_resource_or_by_the_resolver() -> None:
    organization = {"resourceType": "Organization", "id": "o", "name": "Here"}
    patient = {
        "resourceType": "Patient",
        "contained": [organization],
        "managingOrganization": {"reference": "#o"},
        "generalPractitioner": [{"reference": "Practitioner/1"}],
    }
    assert evaluate("managingOrganization.resolve().name", patient) == ["Here"]
    bundle = {"resourceType": "Bundle", "entry": [{"fullUrl": "urn:uuid:1", "resource": organization}]}
    bundle["entry"].append({"resource": {**patient, "managingOrganization": {"reference": "urn:uuid:1"}}})
    assert evaluate("entry.resource.managingOrganization.resolve().name", bundle) == ["Here"]
    found = {"Practitioner/1": {"resourceType": "Practitioner", "gender": "other"}}
    assert evaluate("generalPractitioner.resolve().gender", patient, resolver=found.get) == ["other"]
    assert evaluate("generalPractitioner.resolve()", patient, resolver=lambda _: None) == []


def test_elements_are_located_for_patches() -> None:
    assert locate("Patient", PATIENT) == [()]
    assert locate("Patient.name[0].given", PATIENT) == [("name", 0, "given", 0), ("name", 0, "given", 1)]
    assert locate("telecom.where(system = 'email').value", PATIENT) == [("telecom", 1, "value")]
    assert locate("Patient.deceased", PATIENT) == [("deceasedBoolean",)]
    assert locate("Patient.photo", PATIENT) == []
    for expression in ("1", "%other", "name.count()"):
        with pytest.raises(FhirError, match="leads to no element"):
            locate(expression, PATIENT, {"other": {"resourceType": "Patient"}})


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("", "unexpected end"),
        ("name.", "unexpected end"),
        ("name given", "unexpected 'given' at character 6"),
        ("name = 'x", 'unexpected "\'" at character 8'),
        ("name.nonsense()", r"unknown function nonsense\(\)"),
        ("name.where()", r"where\(\) takes 1 arguments, not 0"),
        ("name is Nonsense", "unknown type Nonsense"),
        ("%nonsense", "%nonsense has no value"),
        ("@2020-13-01 = 1", "is no date"),
        ("name.given.single()", "has 2 values instead of one"),
        ("name.given and true", "has 2 values instead of one"),
        ("'a' > 1", "have no order"),
        ("name > 1", "have no order"),
        ("'a' + 1", "takes numbers"),
        ("'a'.matches('(')", "not a regular expression"),
        ("'a'.matches('(?=a)')", "not a regular expression"),
        ("(" * 100 + "1" + ")" * 100, "nested more than"),
        ("1" + " + 1" * 20_000, "longer than"),
        ("1" * 5000, "more than 60 digits"),
        ("a" + ".a" * 1500, "more than 2000 parts"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(expression: str, text: str) -> None:
    for call in (evaluate, is_true, locate):
        with pytest.raises(FhirError, match=text) as refused:
            call(expression, PATIENT)
        assert refused.value.status == 400


LONG = "'aaaaaaaaaa'" + ".select($this & $this)" * 18
"""Makes a text of two million characters."""


@pytest.mark.parametrize(
    "expression",
    [
        "(1 | 2).repeat($this + 1)",
        "'a'.repeat($this & $this)",
        "descendants().select(%resource.descendants()).select(%resource.descendants()).select(%resource.descendants())",
        "descendants().where(%resource.descendants().where(%resource.descendants().where(false).exists()).exists())",
        "'a'.replace('', '" + "b" * 3000 + "').replace('', '" + "c" * 3000 + "')",
        LONG + ".repeat($this & 'a').count()",
        LONG + ".repeat($this + 'a').count()",
        LONG + ".repeat($this.encode('hex')).count()",
        f"('{'y' * 2000}').toChars().aggregate($total & '', {LONG})",
        f"('{'y' * 2000}').toChars().where(%text < %other)",
        f"('{'y' * 2000}').toChars().where(%text = %other)",
        f"('{'y' * 2000}').toChars().where(%texts = %others)",
        LONG + ".matches('(a|b)*a(a|b){900}c')",
        LONG + ".replaceMatches('(a|b)*a(a|b){900}c', '')",
    ],
)
def test_what_would_not_end_is_stopped(expression: str) -> None:
    text, other = "a" * 999_999 + "b", "a" * 999_999 + "c"
    variables = {"text": text, "other": other, "texts": {"a": [text]}, "others": {"a": [other]}}
    with pytest.raises(FhirError, match=r"takes too long|becomes too long"):
        evaluate(expression, PATIENT, variables)


@pytest.mark.parametrize(
    "expression",
    [
        "10.power(999999.0)",
        "10.power(999999.0) div 1",
        "10.power(999999)",
        "10.power(999999.0).floor()",
        "10.power(-999999.0).toString()",
        "(1 | 2 | 3 | 4).aggregate($total * $total, 10.power(300))",
        "(1 | 2 | 3 | 4).aggregate($total * 10.power(300.0), 1 'g')",
    ],
)
def test_numbers_do_not_grow_without_end(expression: str) -> None:
    assert evaluate(expression, PATIENT) == []


def test_regular_expressions_take_linear_time() -> None:
    hopeless = {"resourceType": "Basic", "id": "a" * 200_000 + "!"}
    assert not is_true("id.matches('^(a+)+$')", hopeless)


@given(st.text(alphabet="ab.()[]'|&=<>+-*/,%$@{}`\"\\ 019T:", max_size=40) | st.text(max_size=20))
def test_any_text_is_evaluated_or_refused(expression: str) -> None:
    status = 200
    try:
        evaluate(expression, PATIENT)
    except FhirError as refused:
        status = refused.status
    assert status in (200, 400)
