"""The compiled definitions: what the other parts build on."""

from __future__ import annotations

from pathlib import Path

import pytest

from fhirstore.definitions import registry
from fhirstore.search import index


def test_resource_types_are_those_of_r4_and_of_medplum_without_abstract_ones() -> None:
    types = registry.resource_types()
    assert {
        "Patient",
        "Binary",
        "Bundle",
        "Bot",
        "Project",
        "AccessPolicy",
        "Cron",
        "ViewDefinition",
    } <= types
    assert (
        not {"Resource", "DomainResource", "HumanName", "IdentityProvider", "string", "MetadataResource"}
        & types
    )
    assert len(types) == 172


def test_every_search_parameter_of_the_definitions_either_compiles_or_is_listed_with_its_reason() -> None:
    unsupported = {(type, code): reason for type, code, reason in registry.uncompiled_parameters()}
    reasons = set(unsupported.values())
    assert reasons == {"it has no expression"}
    assert {code for _, code in unsupported} == {"_text", "_content", "_query"}
    for type in registry.resource_types():
        for code, parameter in registry.search_parameters(type).items():
            listed = any((base, code) in unsupported for base in (type, "Resource", "DomainResource"))
            assert bool(parameter.expression) is not listed, (type, code)


def test_the_indexer_of_every_resource_type_can_be_generated() -> None:
    for type in registry.resource_types():
        values = index.index({"resourceType": type, "id": "1"})
        assert values.tokens["_id"] == [(None, "1")]


def test_every_type_has_the_common_parameters() -> None:
    common = {"_id", "_lastUpdated", "_profile", "_tag", "_security", "_source", "_project", "_compartment"}
    for type in registry.resource_types():
        assert common <= registry.search_parameters(type).keys()


def test_a_parameter_tells_its_kind_and_targets() -> None:
    subject = registry.search_parameter("Observation", "subject")
    assert subject is not None
    assert (subject.kind, set(subject.targets)) == ("reference", {"Group", "Device", "Patient", "Location"})
    assert registry.search_parameter("Patient", "nonsense") is None
    assert registry.search_parameter("Nonsense", "_id") is None


def test_medplums_own_parameters_are_there() -> None:
    for type, code in (
        ("ProjectMembership", "profile-type"),
        ("Bot", "cds-hook"),
        ("Subscription", "author"),
        ("Task", "priority-order"),
        ("Patient", "race"),
    ):
        assert registry.search_parameter(type, code), (type, code)


def test_a_structure_lists_elements_with_types_targets_bindings_and_groups() -> None:
    patient = registry.structure("Patient")
    assert patient is not None
    gender = patient.element("Patient.gender")
    assert gender is not None
    assert (gender.name, gender.min, gender.max, gender.array) == ("gender", 0, 1, False)
    assert (gender.binding, gender.value_set) == (
        "required",
        "http://hl7.org/fhir/ValueSet/administrative-gender",
    )
    practitioner = patient.element("Patient.generalPractitioner")
    assert practitioner is not None
    assert practitioner.types[0].targets == ("Organization", "Practitioner", "PractitionerRole")
    assert [element.name for element in patient.children("Patient.communication")] == [
        "id",
        "extension",
        "modifierExtension",
        "language",
        "preferred",
    ]
    deceased = patient.element("Patient.deceased[x]")
    assert deceased is not None
    assert deceased.choice
    assert [deceased.property_name(type.code) for type in deceased.types] == [
        "deceasedBoolean",
        "deceasedDateTime",
    ]
    assert registry.structure("Nonsense") is None


def test_content_references_point_to_the_group_they_share() -> None:
    questionnaire = registry.structure("Questionnaire")
    assert questionnaire is not None
    item = questionnaire.element("Questionnaire.item.item")
    assert item is not None
    assert item.content == "Questionnaire.item"


def test_value_sets_of_required_bindings_can_be_listed() -> None:
    gender = registry.value_set_codes("http://hl7.org/fhir/ValueSet/administrative-gender|4.0.1")
    assert gender is not None
    assert [coding.code for coding in gender] == ["male", "female", "other", "unknown"]
    assert gender[0].system == "http://hl7.org/fhir/administrative-gender"
    assert gender[0].display == "Male"
    types = registry.value_set_codes("http://hl7.org/fhir/ValueSet/resource-types")
    assert types is not None
    assert {"Patient", "Bot"} <= {coding.code for coding in types}
    assert registry.value_set_codes("http://hl7.org/fhir/ValueSet/ucum-units") is None


def test_missing_definitions_say_which_command_makes_them(tmp_path: Path) -> None:
    with pytest.raises(registry.DefinitionsMissingError, match=r"Run: python manage\.py assets"):
        registry.load(tmp_path)
    assert registry.is_resource_type("Patient")


def test_the_patient_compartment_names_existing_parameters() -> None:
    assert registry.patient_compartment("Observation") == ("subject", "performer")
    assert registry.patient_compartment("Bot") == ()
