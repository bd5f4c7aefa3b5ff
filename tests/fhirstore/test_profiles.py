"""Profiles of a project: named in ``meta.profile`` they are checked on every write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fhirstore.errors import FhirError
from fhirstore.repository import Repository
from tests.fhirstore.conftest import patient

BASE = "http://hl7.org/fhir/StructureDefinition/"
LOINC = "http://loinc.org"


def profile(name: str, type_: str, *elements: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "StructureDefinition",
        "url": f"https://example.com/{name}",
        "name": name,
        "status": "active",
        "kind": "resource",
        "abstract": False,
        "type": type_,
        "baseDefinition": BASE + type_,
        "derivation": "constraint",
        "differential": {"element": [{"id": type_, "path": type_}, *elements]},
        **more,
    }


def element(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "path": ".".join(part.partition(":")[0] for part in id.split(".")), **more}


def coded(code: str, system: str = LOINC) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def under(name: str, resource: dict[str, Any]) -> dict[str, Any]:
    return {**resource, "meta": {"profile": [f"https://example.com/{name}"]}}


def problems(repository: Repository, resource: dict[str, Any]) -> list[tuple[str, str]]:
    """What a create is refused for: (expression, text); nothing if it is stored."""
    try:
        repository.create(resource)
    except FhirError as refused:
        return [(each["expression"][0], each["details"]["text"]) for each in refused.outcome["issue"]]
    return []


def test_cardinality_types_and_fixed_values(repository: Repository) -> None:
    repository.create(
        profile(
            "strict",
            "Patient",
            element("Patient.name", min=1, max="1"),
            element("Patient.name.family", min=1, maxLength=5),
            element("Patient.photo", max="0"),
            element("Patient.deceased[x]", type=[{"code": "boolean"}]),
            element("Patient.gender", fixedCode="female"),
            element("Patient.maritalStatus", patternCodeableConcept=coded("M", "urn:m")),
            element(
                "Patient.managingOrganization",
                constraint=[
                    {"key": "x-1", "severity": "error", "human": "Say who", "expression": "display.exists()"}
                ],
            ),
            element(
                "Patient.generalPractitioner",
                type=[{"code": "Reference", "targetProfile": [f"{BASE}Practitioner"]}],
            ),
        )
    )
    good = patient("Smith", gender="female", maritalStatus={**coded("M", "urn:m"), "text": "married"})
    assert problems(repository, under("strict", good)) == []
    assert problems(repository, under("strict", {"resourceType": "Patient"})) == [
        ("Patient.name", "Missing required property")
    ]
    bad = patient(
        "Smithson",
        gender="male",
        photo=[{"title": "x"}],
        deceasedDateTime="2020-01-01",
        maritalStatus=coded("S", "urn:m"),
        managingOrganization={"reference": "Organization/1"},
        generalPractitioner=[{"reference": "Practitioner/1"}, {"reference": "Organization/1"}],
    )
    bad["name"] += [{"text": "again"}]
    assert problems(repository, under("strict", bad)) == [
        ("Patient.name", "Invalid number of values: expected 1..1, but found 2"),
        ("Patient.name[0].family", "Value is longer than 5 characters"),
        ("Patient.name[1].family", "Missing required property"),
        ("Patient.photo", "Invalid number of values: expected 0..0, but found 1"),
        ("Patient.deceased[x]", "Invalid type: expected boolean, but found dateTime"),
        ("Patient.gender", "Value did not match the fixed value: female"),
        ("Patient.maritalStatus", "Value did not match the pattern value: urn:m|M"),
        ("Patient.managingOrganization", "Constraint x-1 not met: Say who"),
        ("Patient.generalPractitioner[1]", 'Invalid reference: got "Organization", expected "Practitioner"'),
    ]
    assert problems(repository, bad) == [], "only where the profile is named"


def test_slices_by_pattern_and_value(repository: Repository) -> None:
    """Blood pressure, as HL7 profiles it."""
    repository.create(
        profile(
            "bp",
            "Observation",
            element(
                "Observation.component",
                min=2,
                slicing={"discriminator": [{"type": "pattern", "path": "code"}], "rules": "closed"},
            ),
            element("Observation.component:systolic", sliceName="systolic", min=1, max="1"),
            element("Observation.component:systolic.code", patternCodeableConcept=coded("8480-6")),
            element("Observation.component:systolic.value[x]", min=1, type=[{"code": "Quantity"}]),
            element("Observation.component:systolic.value[x].code", fixedCode="mm[Hg]"),
            element("Observation.component:diastolic", sliceName="diastolic", min=1, max="1"),
            element("Observation.component:diastolic.code.coding.code", fixedCode="8462-4"),
        )
    )

    def pressure(*components: dict[str, Any]) -> dict[str, Any]:
        return under(
            "bp",
            {
                "resourceType": "Observation",
                "status": "final",
                "code": {"text": "bp"},
                "component": list(components),
            },
        )

    ucum = "http://unitsofmeasure.org"
    systolic = {"code": coded("8480-6"), "valueQuantity": {"value": 120, "system": ucum, "code": "mm[Hg]"}}
    diastolic = {"code": coded("8462-4"), "valueQuantity": {"value": 80}}
    assert problems(repository, pressure(systolic, diastolic)) == []
    assert problems(repository, pressure(systolic, systolic)) == [
        (
            "Observation.component",
            "Incorrect number of values provided for slice 'systolic': expected 1..1, but found 2",
        ),
        (
            "Observation.component",
            "Incorrect number of values provided for slice 'diastolic': expected 1..1, but found 0",
        ),
    ]
    other = {"code": coded("1-1"), "valueString": "x"}
    kpa = {**systolic, "valueQuantity": {"value": 12, "system": ucum, "code": "kPa"}}
    assert problems(repository, pressure(kpa, diastolic, other)) == [
        ("Observation.component[0].value[x].code", "Value did not match the fixed value: mm[Hg]"),
        ("Observation.component[2]", "Value is in none of the slices, and no others are allowed"),
    ]
    assert ("Observation.component[0].value[x]", "Missing required property") in problems(
        repository, pressure({"code": coded("8480-6")}, diastolic)
    )


def test_slices_by_exists_and_type(repository: Repository) -> None:
    repository.create(
        profile(
            "ways",
            "Patient",
            element(
                "Patient.telecom",
                slicing={"discriminator": [{"type": "exists", "path": "period"}], "rules": "open"},
            ),
            element("Patient.telecom:former", sliceName="former", max="1"),
            element("Patient.telecom:former.period", min=1),
            element("Patient.telecom:current", sliceName="current", min=1),
            element("Patient.telecom:current.period", max="0"),
            element(
                "Patient.deceased[x]:deceasedBoolean",
                sliceName="deceasedBoolean",
                min=1,
                type=[{"code": "boolean"}],
            ),
        )
    )
    now, then = (
        {"system": "phone", "value": "1"},
        {"system": "phone", "value": "2", "period": {"end": "2020"}},
    )
    assert problems(repository, under("ways", patient(telecom=[now, then], deceasedBoolean=True))) == []
    assert problems(repository, under("ways", patient(telecom=[then, then], deceasedDateTime="2020"))) == [
        (
            "Patient.telecom",
            "Incorrect number of values provided for slice 'former': expected 0..1, but found 2",
        ),
        (
            "Patient.telecom",
            "Incorrect number of values provided for slice 'current': expected 1..*, but found 0",
        ),
        (
            "Patient.deceased[x]",
            "Incorrect number of values provided for slice 'deceasedBoolean': expected 1..*, but found 0",
        ),
    ]


def test_extensions_have_profiles_and_profiles_have_bases(repository: Repository) -> None:
    color = profile(
        "color",
        "Extension",
        element("Extension.extension", max="0"),
        element("Extension.url", fixedUri="https://example.com/color"),
        element("Extension.value[x]", min=1, type=[{"code": "code"}]),
        kind="complex-type",
        context=[{"type": "element", "expression": "Patient"}],
    )
    repository.create(color)
    repository.create(
        profile(
            "colored",
            "Patient",
            element(
                "Patient.extension:color",
                sliceName="color",
                min=1,
                max="1",
                type=[{"code": "Extension", "profile": ["https://example.com/color"]}],
            ),
        )
    )
    repository.create(
        profile(
            "named", "Patient", element("Patient.name", min=1), baseDefinition="https://example.com/colored"
        )
    )

    def colored(**value: Any) -> dict[str, Any]:
        extensions = [
            {"url": "https://example.com/color", **value},
            {"url": "https://other", "valueString": "x"},
        ]
        return under("named", patient(extension=extensions))

    assert problems(repository, colored(valueCode="red")) == []
    assert problems(repository, colored(valueString="red")) == [
        ("Patient.extension[0].value[x]", "Invalid type: expected code, but found string")
    ]
    assert problems(repository, under("named", {"resourceType": "Patient"})) == [
        (
            "Patient.extension",
            "Incorrect number of values provided for slice 'color': expected 1..1, but found 0",
        ),
        ("Patient.name", "Missing required property"),
    ]


def test_required_bindings_are_those_of_the_project(repository: Repository) -> None:
    value_set = repository.create(
        {
            "resourceType": "ValueSet",
            "status": "active",
            "url": "https://example.com/pets",
            "compose": {"include": [{"system": "urn:pets", "concept": [{"code": "cat"}]}]},
        }
    )
    binding = {"strength": "required", "valueSet": "https://example.com/pets|1.0"}
    repository.create(
        profile(
            "pet", "Basic", element("Basic.code", binding={**binding, "valueSet": "https://example.com/pets"})
        )
    )
    basic = {"resourceType": "Basic", "code": coded("dog", "urn:pets")}
    refused = [("Basic.code", 'Value "dog" did not satisfy terminology binding https://example.com/pets')]
    assert problems(repository, under("pet", {**basic, "code": coded("cat", "urn:pets")})) == []
    assert problems(repository, under("pet", basic)) == refused
    changed = value_set.resource
    changed["compose"]["include"][0]["concept"].append({"code": "dog"})
    repository.update(changed)
    assert problems(repository, under("pet", basic)) == [], "the change counts at once"


def test_a_profile_counts_from_its_write_on_in_its_own_project(
    repository: Repository, stranger: Repository
) -> None:
    resource = under("late", patient())
    assert problems(repository, resource) == [], "what is not known is not checked"
    made = repository.create(profile("late", "Patient", element("Patient.birthDate", min=1)))
    missing = [("Patient.birthDate", "Missing required property")]
    assert problems(repository, resource) == missing
    assert problems(stranger, resource) == []
    assert problems(repository, under("late", {"resourceType": "Basic", "code": {"text": "x"}})) == [
        ("Basic", "Invalid profile: https://example.com/late is one of Patient, not of Basic")
    ]
    repository.delete("StructureDefinition", made.id)
    assert problems(repository, resource) == []


def test_profiles_that_refer_to_each_other_end(repository: Repository) -> None:
    for name, base in (("a", "b"), ("b", "a")):
        repository.create(profile(name, "Patient", baseDefinition=f"https://example.com/{base}"))
    assert problems(repository, under("a", patient())) == []


@pytest.mark.parametrize("expression", ["name.", "nonsense()"])
def test_a_profile_with_an_invalid_invariant_is_refused(repository: Repository, expression: str) -> None:
    rule = {"key": "x", "severity": "error", "human": "x", "expression": expression}
    found = problems(repository, profile("wrong", "Patient", element("Patient.name", constraint=[rule])))
    assert found[0][0] == "StructureDefinition.differential.element[1].constraint"


def test_a_profile_with_elements_of_another_type_is_refused(repository: Repository) -> None:
    found = problems(repository, profile("mixed", "Patient", element("Observation.code", min=1)))
    assert found == [
        ("StructureDefinition.differential.element[1].path", "Observation.code is no element of Patient")
    ]
    assert problems(repository, profile("odd", "Patient", element("Patient.name", max="many"))) == []
    assert problems(repository, under("odd", patient())) == [], "a maximum that is no number is none"


def test_resources_without_a_profile_get_those_of_the_project(repository: Repository) -> None:
    repository.create(profile("usual", "Patient", element("Patient.birthDate", min=1)))
    defaults = (("Patient", ("https://example.com/usual",)),)
    usual = Repository(replace(repository.identity, default_profiles=defaults))
    missing = [("Patient.birthDate", "Missing required property")]
    assert problems(usual, patient()) == missing
    stored = usual.create(patient(birthDate="2000-01-01"))
    assert stored.resource["meta"]["profile"] == ["https://example.com/usual"]
    assert not usual.update(patient(birthDate="2000-01-01", id=stored.id))[1], "nothing has changed"
    with pytest.raises(FhirError, match="Missing required property"):
        usual.update(patient(id=stored.id))
    assert problems(usual, under("other", patient())) == []
    assert problems(usual, {"resourceType": "Basic", "code": {"text": "x"}}) == []
