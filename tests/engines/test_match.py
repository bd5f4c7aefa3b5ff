"""Query and resource → fits or not: the table the SQL search is held against, too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhirstore.search.index import index
from fhirstore.search.match import match
from fhirstore.search.parse import parse
from fhirstore.validation import validate
from tests.engines.samples import OBSERVATION, PATIENT


def fits(resource: dict[str, Any], query: str) -> bool:
    return match(parse(resource["resourceType"], query), index(resource))


def encounter(**period: str) -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "id": "e",
        "status": "finished",
        "class": {"code": "AMB"},
        "period": period,
    }


def risk(**probability: Any) -> dict[str, Any]:
    return {
        "resourceType": "RiskAssessment",
        "id": "r",
        "status": "final",
        "subject": {"reference": "Patient/1"},
        "prediction": [probability],
    }


JANUARY = encounter(start="2024-01-01", end="2024-01-31")
OPEN = encounter(start="2024-01-01")
BARE = {"resourceType": "Patient", "id": "b"}

# every resource is valid, so that the store can be held against the same table
TABLE: list[tuple[dict[str, Any], str, bool]] = [
    (PATIENT, "", True),
    # token
    (PATIENT, "gender=male", True),
    (PATIENT, "gender=MALE", True),
    (PATIENT, "gender=female,male", True),
    (PATIENT, "gender=female", False),
    (PATIENT, "gender=mal", False),
    (PATIENT, "gender=male&active=true", True),
    (PATIENT, "gender=male&active=false", False),
    (PATIENT, "gender:not=female", True),
    (PATIENT, "gender:not=female,male", False),
    (BARE, "gender:not=male", True),
    (PATIENT, "identifier=123-45-6789", True),
    (PATIENT, "identifier=http://hl7.org/fhir/sid/us-ssn|123-45-6789", True),
    (PATIENT, "identifier=http://hl7.org/fhir/sid/us-ssn|", True),
    (PATIENT, "identifier=HTTP://hl7.org/fhir/sid/us-ssn|", False),
    (PATIENT, "identifier=|123-45-6789", False),
    (PATIENT, "identifier=|mrn7", True),
    (PATIENT, "identifier=http://other|MRN7", False),
    (PATIENT, "email=jose@example.com", True),
    (PATIENT, f"_id={PATIENT['id']}", True),
    (PATIENT, f"_id={PATIENT['id'].upper()}", False),
    (PATIENT, "_tag=http://example.com/tags|vip", True),
    (PATIENT, "deceased=false", True),
    (OBSERVATION, "code:text=heart", True),
    (OBSERVATION, "code:text=rate", True),
    (OBSERVATION, "code:text=art", False),
    (OBSERVATION, "code:text=pulse", True),
    # string
    (PATIENT, "family=van", True),
    (PATIENT, "family=VAN%20b", True),
    (PATIENT, "family=buren", True),
    (PATIENT, "family=uren", False),
    (PATIENT, "given=jose", True),
    (PATIENT, "given=josé", True),
    (PATIENT, "name=jose%20q", True),
    (PATIENT, "name=mr", True),
    (PATIENT, "address=sao", True),
    (PATIENT, "address-city=paulo", True),
    (PATIENT, "family:contains=URE", True),
    (PATIENT, "family:contains=xyz", False),
    (PATIENT, "family:exact=van%20Buren", True),
    (PATIENT, "family:exact=van%20buren", False),
    (PATIENT, "family:exact=Buren", False),
    (PATIENT, "given:exact=Jose", False),
    ({"resourceType": "Bot", "id": "b", "name": "Say Hello"}, "name=say", True),
    ({"resourceType": "Bot", "id": "b", "name": "Say Hello"}, "name=hello", False),
    # reference
    (OBSERVATION, "subject=Patient/1", True),
    (OBSERVATION, "subject=1", True),
    (OBSERVATION, "subject=Group/1", False),
    (OBSERVATION, "subject:Patient=1", True),
    (OBSERVATION, "subject:Group=1", False),
    (OBSERVATION, "subject:not=Patient/2", True),
    (OBSERVATION, "subject:not=Patient/1", False),
    (OBSERVATION, "subject=http://x/Patient/1", False),
    (PATIENT, "organization=Organization/1", True),
    (PATIENT, "general-practitioner:identifier=http://npi|42", True),
    (PATIENT, "general-practitioner:identifier=42", True),
    (PATIENT, "general-practitioner:identifier=43", False),
    (PATIENT, "_compartment=Project/p1", True),
    (PATIENT, "_project=p1", True),
    (PATIENT, "_project=p2", False),
    # uri
    (PATIENT, "_profile=http://example.com/profile", True),
    (PATIENT, "_profile=http://example.com/profile|1.0", True),
    (PATIENT, "_profile=http://example.com/profile|2.0", False),
    (PATIENT, "_profile=http://example.com/PROFILE", False),
    (PATIENT, "_profile:not=http://example.com/profile", False),
    # missing
    (PATIENT, "gender:missing=false", True),
    (BARE, "gender:missing=true", True),
    (BARE, "gender:missing=false", False),
    (BARE, "organization:missing=true", True),
    (PATIENT, "general-practitioner:missing=false", True),
    (PATIENT, "birthdate:missing=true", False),
    # date
    (PATIENT, "birthdate=1980-02-29", True),
    (PATIENT, "birthdate=1980", True),
    (PATIENT, "birthdate=ne1980", False),
    (PATIENT, "birthdate=1981", False),
    (PATIENT, "birthdate=ge1980-02-29&birthdate=lt1980-03-01", True),
    (PATIENT, "birthdate=gt1980", False),
    (PATIENT, "birthdate=le1980", True),
    (PATIENT, "birthdate=sa1979", True),
    (PATIENT, "birthdate=eb1980", False),
    (PATIENT, "birthdate=ap1981", True),
    (BARE, "birthdate=ne1980", False),
    (PATIENT, "_lastUpdated=2024-01-02T03:04:05.678Z", True),
    (PATIENT, "_lastUpdated=gt2024-01-02T03:04:05.678Z", False),
    (PATIENT, "_lastUpdated=lt2024-01-02T03:04:05.679Z", True),
    (JANUARY, "date=2024-01-15", True),
    (JANUARY, "date=2024", True),
    (JANUARY, "date=2024-02-01", False),
    (JANUARY, "date=2024-01-31T12:00:00Z", True),
    (JANUARY, "date=lt2024-01-15", True),
    (JANUARY, "date=gt2024-01-15", True),
    (JANUARY, "date=gt2024-01-31", False),
    (JANUARY, "date=sa2023", True),
    (JANUARY, "date=sa2024-01-15", False),
    (JANUARY, "date=eb2024-02", True),
    (JANUARY, "date=eb2024-01-15", False),
    (OPEN, "date=2030", True),
    (OPEN, "date=gt2030", True),
    (OPEN, "date=eb2030", False),
    # number
    (risk(probabilityDecimal=0.8), "probability=0.8", True),
    (risk(probabilityDecimal=0.84), "probability=0.8", True),
    (risk(probabilityDecimal=0.85), "probability=0.8", False),
    (risk(probabilityDecimal=0.8), "probability=ne0.8", False),
    (risk(probabilityDecimal=0.8), "probability=gt0.8", False),
    (risk(probabilityDecimal=0.8), "probability=ge0.8", True),
    (risk(probabilityDecimal=0.8), "probability=lt0.81", True),
    (risk(probabilityDecimal=0.75), "probability=ap0.8", True),
    (risk(probabilityDecimal=0.7), "probability=ap0.8", False),
    (risk(probabilityRange={"low": {"value": 0.1}, "high": {"value": 0.3}}), "probability=0.2", True),
    (risk(probabilityRange={"low": {"value": 0.1}}), "probability=gt5", True),
    (risk(probabilityRange={"low": {"value": 0.1}}), "probability=sa0.05", True),
    (risk(probabilityRange={"high": {"value": 0.3}}), "probability=eb0.3", False),
    # quantity
    (OBSERVATION, "value-quantity=72.5", True),
    (OBSERVATION, "value-quantity=72.5|http://unitsofmeasure.org|/min", True),
    (OBSERVATION, "value-quantity=72.5||/min", True),
    (OBSERVATION, "value-quantity=72.5||beats/min", True),
    (OBSERVATION, "value-quantity=72.5|http://unitsofmeasure.org|beats/min", False),
    (OBSERVATION, "value-quantity=72.5||kg", False),
    (OBSERVATION, "value-quantity=gt70", True),
    (OBSERVATION, "value-quantity=gt70||kg", False),
    (OBSERVATION, "value-quantity=ne72.5", False),
    (OBSERVATION, "value-quantity=ne72.5||kg", False),
]


def test_the_resources_of_the_table_are_valid() -> None:
    for resource, _, _ in TABLE:
        assert validate(resource) == []


@pytest.mark.parametrize(("resource", "query", "expected"), TABLE)
def test_a_resource_fits_a_search_or_not(resource: dict[str, Any], query: str, expected: bool) -> None:
    assert fits(resource, query) is expected


dates = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).flatmap(  # noqa: DTZ001
    lambda moment: st.sampled_from(
        [f"{moment:%Y}", f"{moment:%Y-%m}", f"{moment:%Y-%m-%d}", f"{moment:%Y-%m-%dT%H:%M:%SZ}"]
    )
)


@given(dates, dates)
def test_date_prefixes_fit_together(held: str, asked: str) -> None:
    resource = encounter(start=held, end=held)
    fit = {
        prefix: fits(resource, f"date={prefix}{asked}")
        for prefix in ("eq", "ne", "lt", "gt", "le", "ge", "sa", "eb")
    }
    assert fit["ne"] is not fit["eq"]
    assert fit["le"] is (fit["lt"] or fit["eq"])
    assert fit["ge"] is (fit["gt"] or fit["eq"])
    assert [fit["eq"], fit["sa"], fit["eb"]].count(True) == 1


@given(st.text(min_size=1).filter(lambda text: text.strip() and "\x00" not in text), st.data())
def test_every_beginning_of_a_string_finds_it(text: str, data: st.DataObject) -> None:
    from fhirstore.search.index import normalize
    from fhirstore.search.model import Clause, SearchRequest, StringValue

    values = index({"resourceType": "Bot", "id": "b", "name": text})
    parameter = parse("Bot", "name=x").clauses[0].parameter
    folded = normalize(text)
    beginning = folded[: data.draw(st.integers(0, len(folded)))]
    # capitals that stand for another letter too (of the dotless i it is I) are no other case of this one
    capitals = text.upper() if text.upper().casefold() == text.casefold() else text
    for query in (text, capitals, folded, beginning):
        assert match(SearchRequest("Bot", (Clause(parameter, (StringValue(query),)),)), values)
