"""Resource → index values."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhirstore.search.index import (
    MAX_MICROSECONDS,
    MIN_MICROSECONDS,
    date_range,
    index,
    normalize,
    patient_references,
)
from tests.engines.samples import OBSERVATION, PATIENT


def of(type: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": type, "id": "1", **elements}


def quantity(value: Any, **rest: Any) -> dict[str, Any]:
    return {"value": value, **rest}


INFINITY = Decimal("Infinity")
DAY = 86_400_000_000
JAN_2024 = 1_704_067_200_000_000

TABLE: list[tuple[dict[str, Any], str, str, Any]] = [
    # tokens
    (PATIENT, "tokens", "_id", [(None, PATIENT["id"])]),
    (PATIENT, "tokens", "_tag", [("http://example.com/tags", "vip")]),
    (PATIENT, "tokens", "_security", [(None, "R")]),
    (PATIENT, "tokens", "identifier", [("http://hl7.org/fhir/sid/us-ssn", "123-45-6789"), (None, "MRN7")]),
    (PATIENT, "texts", "identifier", ["Social Security"]),
    (PATIENT, "tokens", "active", [(None, "true")]),
    (PATIENT, "tokens", "gender", [(None, "male")]),
    (PATIENT, "tokens", "deceased", [(None, "false")]),
    (of("Patient", deceasedDateTime="2020"), "tokens", "deceased", [(None, "true")]),
    (of("Patient", deceasedBoolean=True), "tokens", "deceased", [(None, "true")]),
    (of("Patient"), "tokens", "deceased", [(None, "false")]),
    (PATIENT, "tokens", "phone", [("phone", "555-1234")]),
    (PATIENT, "tokens", "email", [("email", "Jose@Example.com")]),
    (PATIENT, "tokens", "telecom", [("phone", "555-1234"), ("email", "Jose@Example.com")]),
    (PATIENT, "tokens", "race", [(None, "2106-3")]),
    (OBSERVATION, "tokens", "code", [("http://loinc.org", "8867-4")]),
    (OBSERVATION, "texts", "code", ["Heart rate", "Pulse"]),
    (OBSERVATION, "tokens", "combo-code", [("http://loinc.org", "8867-4"), (None, "x")]),
    (
        of("ProjectMembership", profile={"reference": "Practitioner/1"}),
        "tokens",
        "profile-type",
        [(None, "Practitioner")],
    ),
    (of("Bot", identifier=[{"system": "s", "value": "v"}]), "tokens", "identifier", [("s", "v")]),
    # strings
    (PATIENT, "strings", "family", ["van Buren"]),
    (PATIENT, "words", "family", ["Buren"]),
    (PATIENT, "strings", "given", ["José", "Q."]),
    (PATIENT, "strings", "name", ["van Buren", "José", "Q.", "Mr."]),
    (
        PATIENT,
        "words",
        "name",
        ["Buren", "José Q. van Buren", "Q. van Buren", "van Buren", "Buren"],
    ),
    (PATIENT, "strings", "address", ["São Paulo", "SP", "62701", "BR", "1 Main St"]),
    (PATIENT, "words", "address-city", ["Paulo"]),
    (of("Bot", name="Say Hello"), "strings", "name", ["Say Hello"]),
    (
        of("Patient", name=[{"given": [None, "Ann"], "_given": [{"id": "a"}, None]}]),
        "strings",
        "given",
        ["Ann"],
    ),
    (of("Patient", name=[{"family": "O'Brien-Smith"}]), "words", "family", ["Smith"]),
    # references
    (PATIENT, "references", "organization", [("Organization", "1", None)]),
    (PATIENT, "references", "general-practitioner", [("Practitioner", "1", None)]),
    (PATIENT, "identifiers", "general-practitioner", [("http://npi", "42")]),
    (PATIENT, "references", "_project", [("Project", "p1", None)]),
    (PATIENT, "references", "_compartment", [("Project", "p1", None)]),
    (OBSERVATION, "references", "patient", [("Patient", "1", None)]),
    (
        of("Observation", subject={"reference": "urn:uuid:1"}),
        "references",
        "subject",
        [(None, None, "urn:uuid:1")],
    ),
    (
        of("Observation", subject={"reference": "http://other/fhir/Patient/1"}),
        "references",
        "patient",
        [(None, None, "http://other/fhir/Patient/1")],
    ),
    (of("Observation", subject={"reference": "#p"}), "references", "subject", [(None, None, "#p")]),
    (
        of("QuestionnaireResponse", questionnaire="http://q|2"),
        "references",
        "questionnaire",
        [(None, None, "http://q|2"), (None, None, "http://q")],
    ),
    (
        of(
            "Bundle",
            entry=[{"resource": {"resourceType": "Composition", "id": "c"}}, {"resource": of("Patient")}],
        ),
        "references",
        "composition",
        [("Composition", "c", None)],
    ),
    (
        of("Subscription", meta={"author": {"reference": "Bot/1"}}),
        "references",
        "author",
        [("Bot", "1", None)],
    ),
    # uris
    (PATIENT, "uris", "_profile", ["http://example.com/profile|1.0", "http://example.com/profile"]),
    (PATIENT, "uris", "_source", ["urn:uuid:53fefa32-fcbb-4ff8-8a92-55ee120877b7"]),
    (of("ValueSet", url="http://v"), "uris", "url", ["http://v"]),
    # dates
    (PATIENT, "dates", "_lastUpdated", [(1704164645678000, 1704164645679000)]),
    (PATIENT, "dates", "birthdate", [(320630400000000, 320630400000000 + DAY)]),
    (OBSERVATION, "dates", "date", [(JAN_2024, JAN_2024 + 30 * DAY + DAY // 2 + 1_000_000)]),
    (
        of("Encounter", period={"start": "2024-01-01"}),
        "dates",
        "date",
        [(JAN_2024, MAX_MICROSECONDS)],
    ),
    (
        of("Encounter", period={"end": "2023-12-31"}),
        "dates",
        "date",
        [(MIN_MICROSECONDS, JAN_2024)],
    ),
    (
        of("Observation", effectiveTiming={"event": ["2024-01-03", "2024-01-01"]}),
        "dates",
        "date",
        [(JAN_2024, JAN_2024 + 3 * DAY)],
    ),
    (
        of(
            "Observation",
            effectiveTiming={"repeat": {"boundsPeriod": {"start": "2024-01-01", "end": "2024-01-01"}}},
        ),
        "dates",
        "date",
        [(JAN_2024, JAN_2024 + DAY)],
    ),
    # numbers and quantities
    (
        of(
            "RiskAssessment",
            prediction=[{"probabilityDecimal": 0.8}, {"probabilityRange": {"low": quantity(0.1)}}],
        ),
        "numbers",
        "probability",
        [(Decimal("0.8"), Decimal("0.8")), (Decimal("0.1"), INFINITY)],
    ),
    (of("Task", priority="stat"), "numbers", "priority-order", [(Decimal(50), Decimal(50))]),
    (of("Task"), "numbers", "priority-order", [(Decimal(10), Decimal(10))]),
    (
        OBSERVATION,
        "quantities",
        "value-quantity",
        [(Decimal("72.5"), Decimal("72.5"), "http://unitsofmeasure.org", "/min", "beats/min")],
    ),
    (
        of("Observation", valueQuantity=quantity(5, comparator="<", unit="mg")),
        "quantities",
        "value-quantity",
        [(-INFINITY, Decimal(5), None, None, "mg")],
    ),
    (
        of(
            "Observation",
            valueSampledData={"origin": quantity(0, unit="mV"), "lowerLimit": -1, "upperLimit": 1},
        ),
        "quantities",
        "value-quantity",
        [(Decimal(-1), Decimal(1), None, None, "mV")],
    ),
    (
        of("Condition", onsetRange={"low": quantity(3, unit="a"), "high": quantity(5, unit="a")}),
        "quantities",
        "onset-age",
        [(Decimal(3), Decimal(5), None, None, "a")],
    ),
    (
        of("Invoice", totalNet={"value": 12.5, "currency": "EUR"}),
        "quantities",
        "totalnet",
        [(Decimal("12.5"), Decimal("12.5"), "urn:iso:std:iso:4217", "EUR", "EUR")],
    ),
]


@pytest.mark.parametrize(("resource", "kind", "code", "expected"), TABLE)
def test_a_resource_yields_index_values(
    resource: dict[str, Any], kind: str, code: str, expected: Any
) -> None:
    assert getattr(index(resource), kind)[code] == expected


def test_a_parameter_without_value_has_no_key() -> None:
    values = index(of("Patient"))
    assert values.strings == {}
    assert values.references == {}
    assert set(values.tokens) == {"_id", "deceased"}


def test_the_patients_of_a_resource_are_found_through_its_compartment_parameters() -> None:
    assert patient_references(PATIENT) == [f"Patient/{PATIENT['id']}"]
    assert patient_references(OBSERVATION) == ["Patient/1"]
    assert patient_references(of("Bot")) == []
    appointment = of(
        "Appointment",
        participant=[
            {"actor": {"reference": ref}} for ref in ("Patient/1", "Practitioner/2", "Patient/3", "Patient/1")
        ],
    )
    assert patient_references(appointment) == ["Patient/1", "Patient/3"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Smith", "smith"),
        ("  São \t Paulo ", "sao paulo"),
        ("STRAßE", "strasse"),
        ("ﬁne", "fine"),
        ("Ἀθήνα", "αθηνα"),
        ("İstanbul", "istanbul"),
    ],
)
def test_normalization_drops_case_accents_and_extra_blanks(text: str, expected: str) -> None:
    assert normalize(text) == expected


@given(st.text())
def test_normalization_is_stable_and_blind_to_case_and_composition(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert normalize(unicodedata.normalize("NFD", text)) == once


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("2020", "2020-01-01T00:00:00", "2021-01-01T00:00:00"),
        ("2020-02", "2020-02-01T00:00:00", "2020-03-01T00:00:00"),
        ("2020-12", "2020-12-01T00:00:00", "2021-01-01T00:00:00"),
        ("2020-02-29", "2020-02-29T00:00:00", "2020-03-01T00:00:00"),
        ("2020-01-01T10:00", "2020-01-01T10:00:00", "2020-01-01T10:01:00"),
        ("2020-01-01T10:00:00Z", "2020-01-01T10:00:00", "2020-01-01T10:00:01"),
        ("2020-01-01T10:00:00-02:30", "2020-01-01T12:30:00", "2020-01-01T12:30:01"),
        ("2020-01-01T10:00:00.5Z", "2020-01-01T10:00:00.5", "2020-01-01T10:00:00.6"),
        ("2020-01-01T10:00:00.123456789Z", "2020-01-01T10:00:00.123456", "2020-01-01T10:00:00.123457"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59", "2017-01-01T00:00:00"),
        ("0001-01-01", "0001-01-01T00:00:00", "0001-01-02T00:00:00"),
    ],
)
def test_a_date_is_the_range_its_precision_leaves_open(text: str, low: str, high: str) -> None:
    def microseconds(moment: str) -> int:
        passed = datetime.fromisoformat(moment).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
        return passed // timedelta(microseconds=1)

    assert date_range(text) == (microseconds(low), microseconds(high))


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_shorter_date_covers_the_longer_one(moment: datetime) -> None:
    text = f"{moment:%Y}".rjust(4, "0") + f"-{moment:%m-%dT%H:%M:%S}.{moment.microsecond:06}Z"
    low, high = date_range(text)
    assert high == low + 1
    for shorter in (text[:4], text[:7], text[:10], text[:16], text[:19] + "Z", text[:23] + "Z"):
        wide_low, wide_high = date_range(shorter)
        assert wide_low <= low < high <= wide_high


def test_a_name_of_very_many_words_does_not_flood_the_index() -> None:
    values = index(of("Patient", name=[{"text": "word " * 10_000}]))
    assert len(values.words["name"]) == 16
