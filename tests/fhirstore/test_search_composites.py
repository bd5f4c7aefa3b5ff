"""Composite parameters and ``near``; in SQL and in memory."""

from __future__ import annotations

from typing import Any

import pytest

from fhirstore.repository import Repository
from fhirstore.search import sql

LOINC = "http://loinc.org"


def concept(code: str) -> dict[str, Any]:
    return {"coding": [{"system": LOINC, "code": code}]}


def pressure(systolic: float, diastolic: float) -> list[dict[str, Any]]:
    return [
        {"code": concept("sys"), "valueQuantity": {"value": systolic, "unit": "mmHg"}},
        {"code": concept("dia"), "valueQuantity": {"value": diastolic, "unit": "mmHg"}},
    ]


def context(code: str, **value: Any) -> dict[str, Any]:
    return {"code": {"system": "http://u", "code": code}, **value}


def place(latitude: float, longitude: float) -> dict[str, Any]:
    return {"position": {"latitude": latitude, "longitude": longitude}}


RESOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "calm": ("Observation", {"code": concept("bp"), "component": pressure(110, 70)}),
    "high": ("Observation", {"code": concept("bp"), "component": pressure(160, 110)}),
    "odd": ("Observation", {"code": concept("bp"), "component": pressure(70, 160)}),
    "weight": (
        "Observation",
        {"code": concept("w"), "valueQuantity": {"value": 80, "unit": "kg"}},
    ),
    "smoker": (
        "Observation",
        {
            "code": concept("smoke"),
            "valueCodeableConcept": concept("yes"),
            "component": [
                {"code": concept("kind"), "valueCodeableConcept": concept("pipe")},
                {"code": concept("since"), "valueCodeableConcept": concept("youth")},
            ],
        },
    ),
    "word": ("Observation", {"code": concept("note"), "valueString": "Very Well"}),
    "then": ("Observation", {"code": concept("seen"), "valueDateTime": "2024-03-01"}),
    "kids": (
        "ValueSet",
        {
            "useContext": [
                context(
                    "age", valueRange={"low": {"value": 0, "unit": "a"}, "high": {"value": 17, "unit": "a"}}
                ),
                context("task", valueCodeableConcept=concept("school")),
            ]
        },
    ),
    "old": ("ValueSet", {"useContext": [context("age", valueQuantity={"value": 90, "unit": "a"})]}),
    "crew": (
        "Group",
        {
            "type": "person",
            "actual": False,
            "characteristic": [
                {"code": concept("sex"), "valueCodeableConcept": concept("male"), "exclude": False},
                {"code": concept("well"), "valueBoolean": True, "exclude": False},
            ],
        },
    ),
    "scan": (
        "DocumentReference",
        {
            "status": "current",
            "content": [{"attachment": {"url": "http://x"}}],
            "relatesTo": [
                {"code": "replaces", "target": {"reference": "DocumentReference/1"}},
                {"code": "signs", "target": {"reference": "DocumentReference/2"}},
            ],
        },
    ),
    "gene": (
        "MolecularSequence",
        {
            "coordinateSystem": 0,
            "referenceSeq": {
                "genomeBuild": "GRCh37",
                "chromosome": concept("7"),
                "windowStart": 10,
                "windowEnd": 90,
            },
            "variant": [{"start": 20, "end": 30}, {"start": 50, "end": 60}],
        },
    ),
    "zurich": ("Location", place(47.3769, 8.5417)),
    "bern": ("Location", place(46.948, 7.4474)),
    "fiji": ("Location", place(-17.7, 179.9)),
    "nowhere": ("Location", {"name": "nowhere"}),
}

TABLE: list[tuple[str, str, set[str]]] = [
    # of one component
    ("Observation", "component-code-value-quantity=sys$gt150", {"high"}),
    ("Observation", "component-code-value-quantity=dia$gt150", {"odd"}),
    ("Observation", f"component-code-value-quantity={LOINC}|sys$le110||mmHg", {"calm", "odd"}),
    ("Observation", f"component-code-value-quantity={LOINC}|sys$le110||kPa", set()),
    ("Observation", f"component-code-value-quantity={LOINC}|$70", {"calm", "odd"}),
    ("Observation", "component-code-value-quantity=|sys$70", set()),
    ("Observation", "component-code-value-quantity=sys$gt150,dia$gt150", {"high", "odd"}),
    ("Observation", "component-code-value-quantity=sys$gt100&component-code-value-quantity=dia$lt80", {"calm"}),
    ("Observation", "component-code-value-quantity:missing=false", {"calm", "high", "odd"}),
    ("Observation", "component-code-value-concept=kind$pipe", {"smoker"}),
    ("Observation", "component-code-value-concept=kind$youth", set()),
    # of the whole resource
    ("Observation", "code-value-quantity=w$80", {"weight"}),
    ("Observation", f"code-value-quantity={LOINC}|w$lt80", set()),
    ("Observation", "code-value-quantity=w$80||kg,bp$1", {"weight"}),
    ("Observation", "code-value-quantity:missing=false", {"weight"}),
    ("Observation", "code-value-quantity:missing=true&component-code-value-quantity:missing=true", {"smoker", "word", "then"}),
    ("Observation", "code-value-concept=smoke$yes", {"smoker"}),
    ("Observation", "code-value-string=note$very w", {"word"}),
    ("Observation", "code-value-date=seen$ge2024-02", {"then"}),
    # of either
    ("Observation", "combo-code-value-quantity=sys$gt150", {"high"}),
    ("Observation", "combo-code-value-quantity=w$80", {"weight"}),
    ("Observation", "combo-code-value-quantity=w$80,dia$70", {"weight", "calm"}),
    ("Observation", "combo-code-value-concept=smoke$yes", {"smoker"}),
    ("Observation", "combo-code-value-concept=since$youth", {"smoker"}),
    ("Observation", "combo-code-value-concept:missing=false", {"smoker"}),
    ("Observation", "_filter=component-code-value-quantity eq sys$gt150 or code eq w", {"high", "weight"}),
    ("Observation", "_filter=combo-code-value-quantity ne sys$ge0 and code eq bp", set()),
    # of other elements
    ("ValueSet", "context-type-quantity=age$10", {"kids"}),
    ("ValueSet", "context-type-quantity=http://u|age$gt80", {"old"}),
    ("ValueSet", "context-type-value=task$school", {"kids"}),
    ("ValueSet", "context-type-value=age$school", set()),
    ("Group", "characteristic-value=sex$male", {"crew"}),
    ("Group", "characteristic-value=well$true", {"crew"}),
    ("Group", "characteristic-value=sex$true", set()),
    ("DocumentReference", "relationship=replaces$DocumentReference/1", {"scan"}),
    ("DocumentReference", "relationship=signs$2", {"scan"}),
    ("DocumentReference", "relationship=replaces$DocumentReference/2", set()),
    ("MolecularSequence", "chromosome-variant-coordinate=7$ge20$le30", {"gene"}),
    ("MolecularSequence", "chromosome-variant-coordinate=7$50$60", {"gene"}),
    ("MolecularSequence", "chromosome-variant-coordinate=7$50$30", set()),
    ("MolecularSequence", "chromosome-variant-coordinate=8$ge20$le30", set()),
    ("MolecularSequence", f"chromosome-window-coordinate={LOINC}|7$10$90", {"gene"}),
    # near
    ("Location", "near=47.4|8.5|20|km", {"zurich"}),
    ("Location", "near=47.4|8.5", {"zurich"}),
    ("Location", "near=47.4|8.5|200|km", {"zurich", "bern"}),
    ("Location", "near=47.4|8.5|20000|m", {"zurich"}),
    ("Location", "near=47.4|8.5|100|[mi_us]", {"zurich", "bern"}),
    ("Location", "near=-17.7|-179.9|50|km", {"fiji"}),
    ("Location", "near=46.948|7.4474|1,47.3769|8.5417|1", {"zurich", "bern"}),
    ("Location", "near:missing=true", {"nowhere"}),
]  # fmt: skip


@pytest.fixture
def known(repository: Repository) -> dict[str, str]:
    """The resources; names by id."""
    required = {"Observation": {"status": "final"}, "ValueSet": {"status": "draft"}}
    return {
        repository.create({"resourceType": type_, **required.get(type_, {}), **elements}).id: name
        for name, (type_, elements) in RESOURCES.items()
    }


@pytest.mark.parametrize("rare", [sql.RARE, -1], ids=["collected", "walked"])
def test_composites_find_what_stands_together(
    known: dict[str, str], repository: Repository, monkeypatch: pytest.MonkeyPatch, rare: int
) -> None:
    monkeypatch.setattr(sql, "RARE", rare)
    wrong = []
    for type_, query, expected in TABLE:
        result = repository.search(repository.parse(type_, f"{query}&_total=accurate"))
        seen = {known[stored.id] for stored in result.entries}
        if seen != expected or result.total != len(expected):
            wrong.append((query, seen))
    assert not wrong


def test_a_matcher_says_the_same(known: dict[str, str], repository: Repository) -> None:
    for type_, query, expected in TABLE:
        request = repository.parse(type_, query)
        stored = repository.search_all(type_, "")
        assert {
            known[each.id] for each in stored if repository.matcher(each.resource)(request)
        } == expected, query
