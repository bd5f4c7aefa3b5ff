"""Searches over HTTP, every parameter type with its modifiers and prefixes: data, query, what comes in which order, totals, links."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from tests.rest.conftest import FORM, Caller, new_caller, text_of

KG = {"system": "http://unitsofmeasure.org", "code": "kg"}


def weight(value: float, when: dict[str, Any], **elements: Any) -> dict[str, Any]:
    """An Observation."""
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "w", "display": "Body weight"}]},
        "valueQuantity": {"value": value, "unit": "kg", **KG},
        **when,
        **elements,
    }


def at(text: str) -> dict[str, str]:
    return {"effectiveDateTime": text}


def during(**period: str) -> dict[str, Any]:
    return {"effectivePeriod": period}


def risk(**prediction: Any) -> dict[str, Any]:
    """A RiskAssessment with one prediction."""
    return {
        "resourceType": "RiskAssessment",
        "status": "final",
        "subject": {"display": "x"},
        "prediction": [prediction],
    }


RESOURCES: dict[str, dict[str, Any]] = {
    # dates: an instant, a day, a month, a year, periods closed and open
    "noon": weight(70, at("2024-05-10T12:00:00Z")),
    "day": weight(70.4, at("2024-05-10")),
    "month": weight(70.6, at("2024-05")),
    "year": weight(71, at("2024")),
    "spring": weight(7, during(start="2024-03-01", end="2024-05-09")),
    "since": weight(700, during(start="2024-06-01")),
    "until": weight(-70, during(end="2023-12-31")),
    # quantities without unit and in another one, and a bound
    "bare": {**weight(70, at("2020-01-01")), "valueQuantity": {"value": 70}},
    "pound": {**weight(70, at("2020-01-02")), "valueQuantity": {"value": 70, "unit": "lbs"}},
    "over": {
        **weight(70, at("2020-01-03")),
        "valueQuantity": {"value": 90, "comparator": ">", "unit": "kg", **KG},
    },
    # numbers
    "half": risk(probabilityDecimal=0.5),
    "more": risk(probabilityDecimal=0.55),
    "span": risk(probabilityRange={"low": {"value": 0.4}, "high": {"value": 0.6}}),
    "none": risk(outcome={"text": "nothing"}),
    # strings, tokens, URIs
    "ann": {
        "resourceType": "Patient",
        "name": [{"family": "O'Neil", "given": ["Ann", "Zoë"]}],
        "gender": "female",
        "active": True,
        "identifier": [{"system": "http://a", "value": "X-1"}],
        "meta": {
            "tag": [{"system": "http://t", "code": "a,b"}],
            "security": [{"code": "R"}],
            "source": "http://s/1",
        },
    },
    "bob": {
        "resourceType": "Patient",
        "name": [{"family": "Neilson", "given": ["Bob"]}],
        "gender": "male",
        "identifier": [{"value": "X-1"}, {"system": "http://b|c", "value": "$2"}],
        "managingOrganization": {"identifier": {"system": "http://o", "value": "7"}},
        "meta": {"profile": ["http://p/q"]},
    },
    "cat": {"resourceType": "Patient", "name": [{"text": "Catherine  of   Aragón"}], "active": False},
}
DATED = {"noon", "day", "month", "year", "spring", "since", "until"}
BEFORE = {"bare", "pound", "over"}
WEIGHTS = DATED | BEFORE
PEOPLE = {"ann", "bob", "cat"}

# fmt: off
TABLE: list[tuple[str, str, set[str]]] = [
    # date: every prefix, against a day
    ("Observation", "date=2024-05-10", {"noon", "day", "month", "year"}),
    ("Observation", "date=eq2024-05-10", {"noon", "day", "month", "year"}),
    ("Observation", "date=ne2024-05-10", {"spring", "since", "until"} | BEFORE),
    ("Observation", "date=lt2024-05-10", {"month", "year", "spring", "until"} | BEFORE),
    ("Observation", "date=gt2024-05-10", {"month", "year", "since"}),
    ("Observation", "date=le2024-05-10", WEIGHTS - {"since"}),
    ("Observation", "date=ge2024-05-10", {"noon", "day", "month", "year", "since"}),
    ("Observation", "date=sa2024-05-10", {"since"}),
    ("Observation", "date=eb2024-05-10", {"spring", "until"} | BEFORE),
    ("Observation", "date=sw2024-05-10", {"noon", "day"}),
    ("Observation", "date=ap2024-05-10&date=ge2023", DATED - {"until"}),
    # partial dates are ranges, of every precision
    ("Observation", "date=2024", {"noon", "day", "month", "year", "spring", "since"}),
    ("Observation", "date=sa2023", {"noon", "day", "month", "year", "spring", "since"}),
    ("Observation", "date=2024-05", {"noon", "day", "month", "year", "spring"}),
    ("Observation", "date=sw2024-05", {"noon", "day", "month"}),
    ("Observation", "date=2024-05-10T12:00", {"noon", "day", "month", "year"}),
    ("Observation", "date=2024-05-10T14:00:00%2B02:00", {"noon", "day", "month", "year"}),
    ("Observation", "date=2024-05-10T12:00:00.000Z", {"noon", "day", "month", "year"}),
    ("Observation", "date=gt2024-05-10T12:00:00Z", {"day", "month", "year", "since"}),
    ("Observation", "date=sa2024-05-10T11:59:59Z", {"noon", "since"}),
    ("Observation", "date=2020-01-01,2020-01-03", {"bare", "over", "until"}),
    ("Observation", "date=ge2024-03-01&date=lt2024-05-01", {"spring", "year"}),
    ("Observation", "date:missing=true", set()),
    # quantity: every prefix; the written precision counts for eq and ne
    ("Observation", "value-quantity=70||kg", {"noon", "day"}),
    ("Observation", "value-quantity=70.0||kg", {"noon"}),
    ("Observation", "value-quantity=7e1||kg", {"noon", "day", "month", "year"}),
    ("Observation", "value-quantity=70", {"noon", "day", "bare", "pound"}),
    ("Observation", "value-quantity=70|http://unitsofmeasure.org|kg", {"noon", "day"}),
    ("Observation", "value-quantity=70||lbs", {"pound"}),
    ("Observation", "value-quantity=ne70||kg", {"month", "year", "spring", "since", "until", "over"}),
    ("Observation", "value-quantity=lt70||kg", {"spring", "until"}),
    ("Observation", "value-quantity=le70||kg", {"spring", "until", "noon"}),
    ("Observation", "value-quantity=gt70.6||kg", {"year", "since", "over"}),
    ("Observation", "value-quantity=ge70.6||kg", {"month", "year", "since", "over"}),
    ("Observation", "value-quantity=sa70.6||kg", {"year", "since", "over"}),
    ("Observation", "value-quantity=eb7||kg", {"until"}),
    ("Observation", "value-quantity=ap75||kg", {"noon", "day", "month", "year"}),
    ("Observation", "value-quantity=sw70||kg", {"noon", "day", "month"}),
    ("Observation", "value-quantity=500||kg", {"over"}),
    ("Observation", "value-quantity=-70||kg", {"until"}),
    ("Observation", "value-quantity=7||kg,71||kg", {"spring", "year", "month"}),
    # number: every prefix, also against a range
    ("RiskAssessment", "probability=0.5", {"half", "span"}),
    ("RiskAssessment", "probability=0.50", {"half", "span"}),
    ("RiskAssessment", "probability=ne0.5", {"more"}),
    ("RiskAssessment", "probability=lt0.5", {"span"}),
    ("RiskAssessment", "probability=le0.5", {"half", "span"}),
    ("RiskAssessment", "probability=gt0.5", {"more", "span"}),
    ("RiskAssessment", "probability=ge0.55", {"more", "span"}),
    ("RiskAssessment", "probability=sa0.45", {"half", "more"}),
    ("RiskAssessment", "probability=eb0.6", {"half", "more"}),
    ("RiskAssessment", "probability=ap0.5", {"half", "more", "span"}),
    ("RiskAssessment", "probability=sw0.5", {"half", "more"}),
    ("RiskAssessment", "probability:missing=true", {"none"}),
    ("RiskAssessment", "probability:missing=false", {"half", "more", "span"}),
    # string: default, exact, contains, missing; escapes
    ("Patient", "family=o'n", {"ann"}),
    ("Patient", "family=neil", {"bob"}),
    ("Patient", "family:contains=NEIL", {"ann", "bob"}),
    ("Patient", "family:exact=Neilson", {"bob"}),
    ("Patient", "family:exact=neilson", set()),
    ("Patient", "given=zoe", {"ann"}),
    ("Patient", "given=zo%C3%AB,bob", {"ann", "bob"}),
    ("Patient", "name=ann zo", {"ann"}),
    ("Patient", "name=catherine of aragon", {"cat"}),
    ("Patient", "name=aragon", {"cat"}),
    ("Patient", "family:missing=true", {"cat"}),
    ("Patient", "name=a&name:contains=ze", set()),
    # token: code, system, none, not, text, missing
    ("Patient", "identifier=x-1", {"ann", "bob"}),
    ("Patient", "identifier=http://a|X-1", {"ann"}),
    ("Patient", "identifier=|X-1", {"bob"}),
    ("Patient", "identifier=http://a|", {"ann"}),
    ("Patient", r"identifier=http://b\|c|\$2", {"bob"}),
    ("Patient", "gender=male,female", {"ann", "bob"}),
    ("Patient", "gender:not=male", {"ann", "cat"}),
    ("Patient", "gender:not=male,female", {"cat"}),
    ("Patient", "active=true", {"ann"}),
    ("Patient", "active:missing=true", {"bob"}),
    ("Patient", "active:not=true", {"bob", "cat"}),
    ("Observation", "code:text=weight", WEIGHTS),
    ("Observation", "code:text=eight", set()),
    ("Observation", "code=http://loinc.org|w&date=2024-05-10T12:00:00Z&value-quantity=71||kg", {"month", "year"}),
    # the common ones
    ("Patient", r"_tag=http://t|a\,b", {"ann"}),
    ("Patient", "_tag=a,b", set()),
    ("Patient", "_security=R", {"ann"}),
    ("Patient", "_source=http://s/1", {"ann"}),
    ("Patient", "_profile=http://p/q", {"bob"}),
    ("Patient", "_profile:missing=true", {"ann", "cat"}),
    ("Patient", "_id={ann},{bob}", {"ann", "bob"}),
    ("Patient", "_id:not={ann}", {"bob", "cat"}),
    ("Patient", "_project={project}", PEOPLE),
    ("Patient", "_compartment=Patient/{ann}", {"ann"}),
    ("Patient", "_lastUpdated=gt2020&_lastUpdated=lt2100", PEOPLE),
    ("Patient", "_lastUpdated=sw2019", set()),
    # reference: by identifier, missing (chains have tables of their own)
    ("Patient", "organization:identifier=http://o|7", {"bob"}),
    ("Patient", "organization:identifier=8", set()),
    ("Patient", "organization:missing=true", {"ann", "cat"}),
    # _filter, with every operator
    ("Patient", "_filter=family co neil and gender ne male", {"ann"}),
    ("Patient", '_filter=name eq "ann" or given eq Bob', {"ann", "bob"}),
    ("Patient", "_filter=family sw neil", {"bob"}),
    ("Patient", "_filter=family ew son", {"bob"}),
    ("Patient", "_filter=active pr true and not(gender pr true)", {"cat"}),
    ("Patient", r"_filter=_tag eq http://t|a\,b", {"ann"}),
    ("Observation", "_filter=date sa 2024-05-10 or date eb 2020-01-02 and value-quantity le 70", {"since", "bare"}),
    ("Observation", "_filter=value-quantity gt 100 or value-quantity lt 0", {"since", "until", "over"}),
    ("Observation", "_filter=value-quantity ap 75||kg and date ge 2024-05-10T13:00:00Z", {"day", "month", "year"}),
    ("RiskAssessment", "_filter=probability ne 0.5 or probability eq 0.50", {"half", "more", "span"}),
]
# fmt: on


@pytest.fixture(scope="module")
def shelf(database: None) -> tuple[Caller, dict[str, str]]:
    """A project with the resources; names by id."""
    caller = new_caller()
    return caller, {caller.create(resource)["id"]: name for name, resource in RESOURCES.items()}


def search(shelf: tuple[Caller, dict[str, str]], path: str) -> tuple[list[str], dict[str, Any]]:
    caller, known = shelf
    answer = caller.send("GET", path)
    assert answer.status_code == 200, (path, answer.content)
    bundle = answer.json()
    return [known[entry["resource"]["id"]] for entry in bundle.get("entry", ())], bundle


def test_each_search_finds_what_it_says_by_get_and_by_post(shelf: tuple[Caller, dict[str, str]]) -> None:
    caller, known = shelf
    words = {"project": caller.project, **{name: id_ for id_, name in known.items()}}
    wrong = []
    for type_, query, expected in TABLE:
        pairs = [*parse_qsl(query.format(**words)), ("_total", "accurate"), ("_count", "50")]
        found, bundle = search(shelf, f"{type_}?{urlencode(pairs)}")
        posted = caller.send("POST", f"{type_}/_search", urlencode(pairs), content_type=FORM).json()
        ids = [entry["resource"]["id"] for entry in posted.get("entry", ())]
        if set(found) != expected or bundle["total"] != len(expected) or [known[id_] for id_ in ids] != found:
            wrong.append((query, found))
    assert not wrong


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Observation?date=2024-05-10&_sort=date", ["year", "month", "day", "noon"]),
        ("Observation?date=2024-05-10&_sort=-value-quantity", ["year", "month", "day", "noon"]),
        ("Observation?date=lt2021&_sort=value-quantity,date", ["until", "bare", "pound", "over"]),
        ("Observation?date=lt2021&_sort=value-quantity,-date", ["until", "pound", "bare", "over"]),
        ("Patient?_sort=family", ["bob", "ann", "cat"]),
        ("Patient?_sort=-gender,family", ["bob", "ann", "cat"]),
        ("Patient?_sort=_lastUpdated", ["ann", "bob", "cat"]),
        ("Patient?_sort=-_lastUpdated", ["cat", "bob", "ann"]),
        ("Patient", ["cat", "bob", "ann"]),
    ],
)
def test_the_order_is_the_one_asked_for(
    shelf: tuple[Caller, dict[str, str]], query: str, expected: list[str]
) -> None:
    assert search(shelf, query)[0] == expected


@pytest.mark.parametrize(
    "query", ["Observation?date=lt2024-05-10&_sort=date", "Patient?family:missing=false&_sort=_lastUpdated"]
)
def test_pages_follow_each_other_by_their_links(shelf: tuple[Caller, dict[str, str]], query: str) -> None:
    whole, _ = search(shelf, query)
    url, collected = f"{query}&_count=2&_total=accurate", []
    while url:
        found, bundle = search(shelf, url)
        assert bundle["total"] == len(whole)
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        collected += found
        parts = urlsplit(links.get("next", ""))
        url = f"{parts.path}?{parts.query}" if parts.path else ""
    assert collected == whole


def test_a_search_that_takes_too_long_is_no_reason_to_try_again(
    home: Caller, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.DATABASE_STATEMENT_TIMEOUT = -1
    answer = home.send("GET", "Patient?name=x")
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (400, "too-costly")
    assert text_of(answer).startswith("The search took too long and was stopped.")
