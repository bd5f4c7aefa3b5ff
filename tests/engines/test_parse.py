"""Search query → SearchRequest, or a refusal that says why."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhirstore.errors import FhirError
from fhirstore.search.model import (
    NumberValue,
    QuantityValue,
    ReferenceValue,
    StringValue,
    TokenValue,
    UriValue,
)
from fhirstore.search.parse import parse

JAN_2024 = 1_704_067_200_000_000
DAY = 86_400_000_000


def values(type: str, query: str) -> tuple[Any, ...]:
    (clause,) = parse(type, query).clauses
    return clause.values


@pytest.mark.parametrize(
    ("type", "query", "expected"),
    [
        ("Patient", "gender=male", (TokenValue(None, "male"),)),
        ("Task", "status=requested,accepted", (TokenValue(None, "requested"), TokenValue(None, "accepted"))),
        ("Patient", "identifier=http://s|1", (TokenValue("http://s", "1"),)),
        ("Patient", "identifier=|1", (TokenValue("", "1"),)),
        ("Patient", "identifier=http://s|", (TokenValue("http://s", None),)),
        ("Patient", r"identifier=a\|b", (TokenValue(None, "a|b"),)),
        ("Patient", r"identifier=s|a\,b,c", (TokenValue("s", "a,b"), TokenValue(None, "c"))),
        ("Patient", "identifier=s|a|b", (TokenValue("s", "a|b"),)),
        ("Patient", "family=van%20Buren", (StringValue("van Buren"),)),
        ("Patient", "family=van+Buren", (StringValue("van Buren"),)),
        ("Patient", r"family=a\\,b\$", (StringValue("a\\"), StringValue("b$"))),
        ("Patient", "family=a,,b", (StringValue("a"), StringValue("b"))),
        ("Patient", "family:exact=%20x", (StringValue(" x"),)),
        ("Observation", "code:text=pulse", (StringValue("pulse"),)),
        ("Task", "focus=Communication/x", (ReferenceValue("Communication", "x"),)),
        ("Task", "focus=Communication/x/_history/2", (ReferenceValue("Communication", "x"),)),
        ("AuditEvent", "entity=Bot/x", (ReferenceValue("Bot", "x"),)),
        ("Observation", "patient=1", (ReferenceValue("Patient", "1"),)),
        ("Observation", "subject=1", (ReferenceValue(None, "1"),)),
        ("Observation", "subject:Patient=1", (ReferenceValue("Patient", "1"),)),
        ("Observation", "subject=http://x/Patient/1", (ReferenceValue(None, None, "http://x/Patient/1"),)),
        ("Observation", "subject=urn:uuid:1", (ReferenceValue(None, None, "urn:uuid:1"),)),
        ("Observation", "subject:identifier=s|1", (TokenValue("s", "1"),)),
        ("Patient", "_project=p1", (ReferenceValue("Project", "p1"),)),
        ("Patient", "_compartment=Patient/1", (ReferenceValue("Patient", "1"),)),
        ("ValueSet", "url=http://v|1", (UriValue("http://v|1"),)),
        (
            "RiskAssessment",
            "probability=100",
            (NumberValue("eq", Decimal(100), Decimal("99.5"), Decimal("100.5")),),
        ),
        (
            "RiskAssessment",
            "probability=gt-1.50",
            (NumberValue("gt", Decimal("-1.50"), Decimal("-1.505"), Decimal("-1.495")),),
        ),
        (
            "RiskAssessment",
            "probability=ap-10",
            (NumberValue("ap", Decimal(-10), Decimal(-11), Decimal(-9)),),
        ),
        (
            "Observation",
            "value-quantity=lt5|http://u|mg",
            (QuantityValue(NumberValue("lt", Decimal(5), Decimal("4.5"), Decimal("5.5")), "http://u", "mg"),),
        ),
        (
            "Observation",
            "value-quantity=5||mg",
            (QuantityValue(NumberValue("eq", Decimal(5), Decimal("4.5"), Decimal("5.5")), None, "mg"),),
        ),
    ],
)
def test_values_are_read_by_the_kind_of_their_parameter(
    type: str, query: str, expected: tuple[Any, ...]
) -> None:
    assert values(type, query) == expected


@pytest.mark.parametrize(
    ("text", "prefix", "low", "high"),
    [
        ("2024", "eq", JAN_2024, JAN_2024 + 366 * DAY),
        ("ge2024-01", "ge", JAN_2024, JAN_2024 + 31 * DAY),
        ("lt2024-01-01", "lt", JAN_2024, JAN_2024 + DAY),
        ("2024-01-01T00:00", "eq", JAN_2024, JAN_2024 + 60_000_000),
        ("2024-01-01T02:00:00+02:00", "eq", JAN_2024, JAN_2024 + 1_000_000),
        ("lt2024-01-01T00:00:00.000Z", "lt", JAN_2024, JAN_2024 + 1000),
    ],
)
def test_a_date_becomes_the_range_it_stands_for(text: str, prefix: str, low: int, high: int) -> None:
    for encoded in (quote(text), text):  # a plus sign is often sent as it is
        (value,) = values("Patient", f"_lastUpdated={encoded}")
        assert (value.prefix, value.low, value.high) == (prefix, low, high)


def test_approximate_dates_widen_by_a_tenth_of_the_distance_to_now() -> None:
    (exact,) = values("Patient", "birthdate=1970-01-01")
    (near,) = values("Patient", "birthdate=ap1970-01-01")
    fifty_years = 50 * 365 * DAY
    assert exact.low - near.low > fifty_years // 10
    assert near.high - exact.high == exact.low - near.low
    (far,) = values("Patient", "birthdate=ap9999")
    assert far.high == 2**63 - 1


def test_result_parameters_and_modifiers_are_read() -> None:
    request = parse(
        "Communication",
        "part-of:missing=true&status:not=completed&_count=5&_offset=10&_sort=-_lastUpdated,status"
        "&_total=estimate&_fields=id,status&_elements=subject&_format=json&_pretty=true&_=1",
    )
    assert [(clause.parameter.code, clause.modifier, clause.missing) for clause in request.clauses] == [
        ("part-of", "missing", True),
        ("status", "not", None),
    ]
    assert [(key.parameter.code, key.descending) for key in request.sort] == [
        ("_lastUpdated", True),
        ("status", False),
    ]
    assert (request.count, request.offset, request.total) == (5, 10, "estimate")
    assert request.fields == ("id", "status", "subject")


def test_defaults_are_medplums() -> None:
    request = parse("Patient", "")
    assert (request.count, request.offset, request.total, request.fields, request.summary) == (
        20,
        0,
        "none",
        None,
        None,
    )


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("_count=5000", {"count": 1000}),
        ("_count=0", {"count": 0, "total": "accurate"}),
        ("_count=0&_total=estimate", {"count": 0, "total": "estimate"}),
        ("_summary=count", {"count": 0, "total": "accurate"}),
        ("_summary=text", {"summary": "text"}),
        ("_summary=false", {"summary": None}),
        ("_offset=10000", {"offset": 10_000}),
    ],
)
def test_limits_and_short_forms(query: str, expected: dict[str, Any]) -> None:
    request = parse("Patient", query)
    assert {name: getattr(request, name) for name in expected} == expected


def test_the_query_is_kept_for_the_links_of_the_bundle() -> None:
    assert parse("Patient", "name=a%20b").query == "name=a%20b"
    assert parse("Patient", [("name", "a b"), ("_count", "1")]).query == "name=a+b&_count=1"


def test_absolute_references_to_this_server_are_local() -> None:
    base = "https://here/fhir/R4/"
    (clause,) = parse("Observation", f"subject={base}Patient/1", base_url=base).clauses
    assert clause.values == (ReferenceValue("Patient", "1"),)


CURSOR = "1-1700000000000-Patient/12345678-1234-1234-1234-123456789012"


@pytest.mark.parametrize(
    ("type", "query", "text"),
    [
        ("Nonsense", "", "Unknown resource type: Nonsense"),
        ("Binary", "_id=1", "Cannot search on Binary resource type"),
        ("Patient", "nonsense=1", "Unknown search parameter: nonsense"),
        ("Patient", "_sort=nonsense", "Unknown search parameter: nonsense"),
        ("Patient", "=1", "Unknown search parameter: "),
        ("Patient", "birthdate=2020-13", "Invalid format for date search parameter: 2020-13"),
        ("Patient", "birthdate=2021-02-29", "Invalid format for date search parameter: 2021-02-29"),
        ("Patient", "birthdate=yesterday", "Invalid format for date search parameter: yesterday"),
        ("Patient", "birthdate=xx2020", "Invalid format for date search parameter: xx2020"),
        ("Patient", "birthdate=2020-01-01T10", "Invalid format for date search parameter: 2020-01-01T10"),
        ("Patient", "birthdate=0000", "Invalid format for date search parameter: 0000"),
        ("RiskAssessment", "probability=high", "Invalid format for number search parameter: high"),
        ("RiskAssessment", "probability=1e999", "Invalid format for number search parameter: 1e999"),
        ("Observation", "value-quantity=5|mg", "Invalid format for quantity search parameter: 5|mg"),
        ("Observation", "value-quantity=|u|mg", "Invalid format for quantity search parameter: "),
        ("Patient", "identifier=|", "Invalid format for token search parameter: |"),
        ("Patient", "name=%20", "Invalid format for string search parameter:  "),
        ("Patient", "gender=", "Missing value of search parameter: gender"),
        ("Patient", "gender=,", "Missing value of search parameter: gender"),
        ("Patient", "gender:missing=maybe", "Invalid format for gender:missing: maybe"),
        ("Patient", "gender:exact=male", "Invalid modifier :exact for token search parameter: gender"),
        ("Patient", "name:nonsense=x", "Invalid modifier :nonsense for string search parameter: name"),
        ("Patient", "birthdate:not=2020", "Invalid modifier :not for date search parameter: birthdate"),
        (
            "Observation",
            "value-quantity:in=http://v",
            "Invalid modifier :in for quantity search parameter: value-quantity",
        ),
        ("Observation", "code:below=x", "code:above and :below take system|code, found x"),
        ("Observation", "code:above=http://s|", "code:above and :below take system|code, found http://s|"),
        ("Patient", "identifier:of-type=a|b", "identifier:of-type takes system|code|value, found a|b"),
        ("Patient", "identifier:of-type=a||c", "identifier:of-type takes system|code|value, found a||c"),
        ("Observation", "subject:below=x", "subject:above and :below take Type/id, found x"),
        ("Patient", "_profile:below=/", "Invalid format for uri search parameter: /"),
        (
            "Observation",
            "subject:Device=Patient/1",
            "Invalid format for reference search parameter: Patient/1",
        ),
        (
            "Observation",
            "status.name=x",
            "Invalid search chain: status is no reference but a token: status.name",
        ),
        ("Patient", "_include=*", "Invalid _include: *. Expected Type:parameter or Type:parameter:Target"),
        (
            "Patient",
            "_revinclude=Observation:subject:X",
            "Invalid _revinclude: Observation:subject:X. Expected Type:parameter or Type:parameter:Target",
        ),
        (
            "Patient",
            "_include=Patient:name",
            "Invalid _include: Patient:name. name is no reference parameter of Patient",
        ),
        ("Patient", "_include:exact=Patient:link", "Invalid modifier :exact for _include. Allowed: iterate"),
        ("Patient", "_cursor=1-1-Nonsense/x", "Invalid _cursor: follow the next link of the page before"),
        ("Patient", f"_cursor={CURSOR}&_offset=1", "Cannot use both offset and cursor"),
        ("Patient", f"_cursor={CURSOR}&_sort=name", "A _cursor goes with _sort=_lastUpdated only"),
        ("Patient", "_type=Observation", "_type=Observation contradicts the type that is searched: Patient"),
        ("Observation", "subject.colour=x", "Unknown search parameter: subject.colour"),
        ("Patient", "organization.colour=x", "Unknown search parameter: colour"),
        ("Observation", "subject:Bot.name=x", "Invalid search chain: subject does not refer to Bot"),
        ("Observation", "subject:Nobody.name=x", "Invalid search chain: unknown resource type Nobody"),
        ("Task", "focus._id=x", "Name the type that focus refers to, as in focus:Account._id"),
        (
            "Observation",
            "encounter.part-of.part-of.part-of.status=x",
            "Search chains and _has may pass 3 references at most",
        ),
        (
            "Observation",
            "&".join(["subject:Patient.name=x"] * 21),
            "Search chains and _has of one search may pass 20 references at most",
        ),
        (
            "Patient",
            "_has:Observation:code=1",
            "Invalid _has, which is _has:Type:reference:parameter: _has:Observation:code",
        ),
        (
            "Patient",
            "_has:Binary:x:y=1",
            "Invalid _has, which is _has:Type:reference:parameter: _has:Binary:x:y",
        ),
        (
            "Patient",
            "_has:Observation:device:code=1",
            "Invalid _has: Observation.device does not refer to Patient: _has:Observation:device:code",
        ),
        ("Patient", "_has:Observation:patient:colour=1", "Unknown search parameter: colour"),
        (
            "Patient",
            "_list=$current-allergies",
            "Invalid format for _list, which is the id of a List: $current-allergies",
        ),
        ("Patient", "_deleted=yes", "Invalid _deleted: yes. Allowed: true, false"),
        (
            "Patient",
            "_filter=",
            "Invalid _filter: expected a search parameter but found the end (character 1)",
        ),
        (
            "Patient",
            "_filter=name is x",
            "Invalid _filter: expected an operator (eq, ne, co, sw, ew, gt, lt, ge, le, ap, sa, eb, pr, re)"
            " but found 'is' (character 6)",
        ),
        ("Patient", "_filter=(name eq x", "Invalid _filter: expected ) but found the end (character 11)"),
        (
            "Patient",
            "_filter=name eq x)",
            "Invalid _filter: expected and, or, or the end but found ')' (character 10)",
        ),
        ("Patient", '_filter=name eq "x', "Invalid _filter: a string has no end (character 8)"),
        (
            "Patient",
            "_filter=not name eq x",
            "Invalid _filter: expected ( after not but found 'name' (character 5)",
        ),
        ("Patient", "_filter=name gt x", "Invalid _filter: operator gt is not for string: name"),
        ("Patient", "_filter=birthdate co 2020", "Invalid _filter: operator co is not for date: birthdate"),
        ("Patient", "_filter=birthdate eq soon", "Invalid format for date search parameter: eqsoon"),
        ("Patient", "_filter=name pr perhaps", "Invalid _filter: pr takes true or false: name pr perhaps"),
        ("Patient", "_filter=colour eq x", "Unknown search parameter: colour"),
        ("Patient", "_filter=" + "(" * 22, "Invalid _filter: brackets are nested more than 20 deep"),
        (
            "Patient",
            "_filter=" + " or ".join(["name eq x"] * 101),
            "Invalid _filter: more than 100 comparisons",
        ),
        ("Patient", "_filter=" + "x" * 8001, "Invalid _filter: it is longer than 8000 characters"),
        ("Observation", "code-value-quantity=x", "code-value-quantity takes token$quantity, found x"),
        ("Observation", "code-value-quantity=a$b", "Invalid format for quantity search parameter: b"),
        (
            "Observation",
            "component-code-value-quantity=a$1$2",
            "component-code-value-quantity takes token$quantity, found a$1$2",
        ),
        (
            "Observation",
            "code-value-quantity:not=a$1",
            "Invalid modifier :not for composite search parameter: code-value-quantity",
        ),
        ("Observation", "code-value-quantity=", "Missing value of search parameter: code-value-quantity"),
        ("Observation", "_sort=code-value-quantity", "A search cannot be sorted by code-value-quantity"),
        ("Location", "near=1", "near takes latitude|longitude|distance|units (km, m or [mi_us]), found 1"),
        (
            "Location",
            "near=1|2|3|feet",
            "near takes latitude|longitude|distance|units (km, m or [mi_us]), found 1|2|3|feet",
        ),
        ("Location", "near=91|2", "There is no such place or distance: 91|2"),
        ("Patient", "_text=x", "Search parameter _text (string) is not supported yet"),
        ("Patient", "_count=-1", "Invalid _count: -1"),
        ("Patient", "_count=ten", "Invalid _count: ten"),
        ("Patient", "_count=%D9%A3", "Invalid _count: ٣"),
        ("Patient", "_offset=10001", "Search offset exceeds maximum (got 10001, max 10000)"),
        ("Patient", "_total=some", "Invalid _total: some. Allowed: none, estimate, accurate"),
        ("Patient", "_summary=x", "Invalid _summary: x. Allowed: true, text, data, count, false"),
        ("Patient", "&".join(["gender=male"] * 501), "Too many search parameters (max 500)"),
        ("Patient", "gender=" + ",".join(["male"] * 10_001), "Too many values in one search (max 10000)"),
        (
            "Patient",
            "name=" + ",".join(["a"] * 501),
            "Too many strings, dates, numbers or composites in one search (max 500)",
        ),
        (
            "Patient",
            "&".join(["organization.name=" + ",".join(["a"] * 251)] * 2),
            "Too many strings, dates, numbers or composites in one search (max 500)",
        ),
        (
            "Observation",
            "code:text=" + ",".join(["a"] * 501),
            "Too many strings, dates, numbers or composites in one search (max 500)",
        ),
        ("Patient", "_sort=" + ",".join(["name"] * 11), "Too many parameters in _sort (max 10)"),
        (
            "Patient",
            "&".join(["_revinclude=Observation:subject"] * 51),
            "Too many _include and _revinclude (max 50)",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_with_400_and_the_reason(type: str, query: str, text: str) -> None:
    with pytest.raises(FhirError) as refused:
        parse(type, query)
    assert refused.value.status == 400
    (issue,) = refused.value.outcome["issue"]
    assert (issue["details"]["text"], issue["code"], issue["severity"]) == (text, "invalid", "error")


def test_a_misspelt_parameter_gets_a_suggestion() -> None:
    with pytest.raises(FhirError) as refused:
        parse("Patient", "familly=x")
    assert refused.value.outcome["issue"][0]["diagnostics"] == "Did you mean family?"


@given(st.text(min_size=1))
def test_an_escaped_value_is_read_back_whole(text: str) -> None:
    escaped = "".join(f"\\{char}" if char in "\\,|$" else char for char in text)
    (clause,) = parse("Patient", [("family:exact", escaped)]).clauses
    assert clause.values == (StringValue(text),)
    (clause,) = parse("Patient", [("identifier", f"s|{escaped}")]).clauses
    assert clause.values == (TokenValue("s", text),)


@given(
    st.sampled_from(
        ["gender", "family", "subject", "birthdate", "_lastUpdated", "_count", "_sort", "_id", "_tag:not"]
    )
    | st.text(),
    st.text() | st.from_regex(r"[a-z]{0,2}[0-9.:TZ|+\\,-]*", fullmatch=True),
)
def test_no_query_breaks_the_parser(name: str, value: str) -> None:
    for type in ("Patient", "Observation", "RiskAssessment"):
        with suppress(FhirError):
            parse(type, [(name, value)])
