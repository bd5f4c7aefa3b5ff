"""Modifiers that stand for many values, and those of URIs and identifiers; in SQL, in memory, in a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fhirstore.errors import FhirError
from fhirstore.repository import Repository
from fhirstore.search import sql

ANIMALS = "http://example.com/animals"
PETS = "http://example.com/ValueSet/pets"
V2 = "http://terminology.hl7.org/CodeSystem/v2-0203"


@pytest.fixture
def zoo(repository: Repository) -> dict[str, str]:
    """Resources of several types; names by id."""
    known: dict[str, str] = {}

    def make(name: str, type: str, /, **elements: Any) -> str:
        id_ = repository.create({"resourceType": type, **elements}).id
        known[id_] = name
        return id_

    def animal(name: str, code: str, **elements: Any) -> str:
        coding = {"system": ANIMALS, "code": code}
        return make(name, "Observation", status="final", code={"coding": [coding]}, **elements)

    concepts = [
        {"code": "animal", "concept": [{"code": "dog", "concept": [{"code": "Poodle"}]}, {"code": "cat"}]},
        {"code": "plant"},
    ]
    make("system", "CodeSystem", url=ANIMALS, status="active", content="complete", concept=concepts)
    filter_ = [{"property": "concept", "op": "is-a", "value": "dog"}]
    include = [{"system": ANIMALS, "filter": filter_}, {"system": ANIMALS, "concept": [{"code": "cat"}]}]
    make("pets", "ValueSet", url=PETS, status="active", compose={"include": include})
    make(
        "nothing",
        "ValueSet",
        url=f"{PETS}/none",
        status="active",
        compose={"include": [{"system": ANIMALS, "concept": [{"code": "x"}]}]},
    )
    animal("rex", "dog")
    animal("fifi", "poodle")
    animal("tom", "cat")
    animal("rose", "plant")
    make("bare", "Observation", status="preliminary", code={"text": "no code"})
    hospital = make("hospital", "Location", name="Hospital")
    floor = make("floor", "Location", name="Floor", partOf={"reference": f"Location/{hospital}"})
    room = make("room", "Location", name="Room", partOf={"reference": f"Location/{floor}"})
    for name, place in (("lobby", hospital), ("tour", floor), ("stay", room)):
        make(
            name, "Encounter", status="finished", location=[{"location": {"reference": f"Location/{place}"}}],
            **{"class": {"code": "AMB"}},
        )  # fmt: skip
    record = {"type": {"coding": [{"system": V2, "code": "MR"}]}, "value": "A-1"}
    passport = {"type": {"coding": [{"system": V2, "code": "PPN"}, {"code": "own"}]}, "value": "A-1"}
    make("ada", "Patient", identifier=[record], gender="female", meta={"source": "http://feed.example/a/1"})
    make("bob", "Patient", identifier=[passport], gender="male", meta={"source": "http://feed.example/ab"})
    make("cy", "Patient", meta={"source": "http://feed.example/a", "profile": ["http://p.example/x/y|1"]})
    return known


TABLE: list[tuple[str, str, set[str]]] = [
    ("Observation", f"code:in={PETS}", {"rex", "fifi", "tom"}),
    ("Observation", f"code:not-in={PETS}", {"rose", "bare"}),
    ("Observation", "code:in=ValueSet/{pets}", {"rex", "fifi", "tom"}),
    ("Observation", f"code:in={PETS}/none", set()),
    ("Observation", f"code:not-in={PETS}/none&status=final", {"rex", "fifi", "tom", "rose"}),
    ("Observation", f"code:in={PETS}/none,{PETS}", {"rex", "fifi", "tom"}),
    ("Observation", "status:in=http://hl7.org/fhir/ValueSet/observation-status", {"rex", "fifi", "tom", "rose", "bare"}),
    ("Observation", f"code:below={ANIMALS}|dog", {"rex", "fifi"}),
    ("Observation", f"code:below={ANIMALS}|animal", {"rex", "fifi", "tom"}),
    ("Observation", f"code:below={ANIMALS}|plant,{ANIMALS}|cat", {"rose", "tom"}),
    ("Observation", f"code:above={ANIMALS}|Poodle", {"rex", "fifi"}),
    ("Observation", f"_filter=code in {PETS} and not(code sb {ANIMALS}|dog)", {"tom"}),
    ("Observation", f"_filter=code ni {PETS}", {"rose", "bare"}),
    ("Observation", f"_filter=code ss {ANIMALS}|Poodle", {"rex", "fifi"}),
    ("Encounter", "location:below=Location/{floor}", {"tour", "stay"}),
    ("Encounter", "location:below={hospital}", {"lobby", "tour", "stay"}),
    ("Encounter", "location:above=Location/{floor}", {"lobby", "tour"}),
    ("Encounter", "location:above=Location/{room}", {"lobby", "tour", "stay"}),
    ("Encounter", "location.partof:below=Location/{hospital}", {"tour", "stay"}),
    ("Location", "partof:below=Location/{floor}", {"room"}),
    ("Patient", f"identifier:of-type={V2}|MR|A-1", {"ada"}),
    ("Patient", f"identifier:of-type={V2}|mr|a-1,|own|A-1", {"ada", "bob"}),
    ("Patient", f"identifier:of-type={V2}|MR|A-2", set()),
    ("Patient", "identifier:of-type=|MR|A-1", set()),
    ("Patient", "_source:below=http://feed.example/a", {"ada", "cy"}),
    ("Patient", "_source:below=http://feed.example/a/", {"ada", "cy"}),
    ("Patient", "_source:below=http://feed.example", {"ada", "bob", "cy"}),
    ("Patient", "_source:below=http://feed", set()),
    ("Patient", "_source:above=http://feed.example/a/1/2", {"ada", "cy"}),
    ("Patient", "_source:above=http://feed.example/a", {"cy"}),
    ("Patient", "_profile:below=http://p.example/x", {"cy"}),
    ("Patient", "_profile:below=http://p.example/x/y", {"cy"}),
    ("Patient", "_filter=_source sb http://feed.example/a", {"ada", "cy"}),
]  # fmt: skip


def found(repository: Repository, known: dict[str, str], type: str, query: str) -> set[str]:
    result = repository.search(repository.parse(type, f"{query}&_total=accurate"))
    assert result.total == len(result.entries)
    return {known[stored.id] for stored in result.entries}


@pytest.mark.parametrize("rare", [sql.RARE, -1], ids=["collected", "walked"])
def test_modifiers_find_what_they_stand_for(
    zoo: dict[str, str], repository: Repository, monkeypatch: pytest.MonkeyPatch, rare: int
) -> None:
    monkeypatch.setattr(sql, "RARE", rare)
    ids = {name: id_ for id_, name in zoo.items()}
    wrong = [
        (query, seen)
        for type_, query, expected in TABLE
        if (seen := found(repository, zoo, type_, query.format(**ids))) != expected
    ]
    assert not wrong


def test_a_matcher_means_the_same(zoo: dict[str, str], repository: Repository) -> None:
    ids = {name: id_ for id_, name in zoo.items()}
    for type_, query, expected in TABLE:
        request = repository.parse(type_, query.format(**ids))
        stored = repository.search_all(type_, "")
        assert {zoo[each.id] for each in stored if repository.matcher(each.resource)(request)} == expected, (
            query
        )


def test_a_policy_may_use_them(zoo: dict[str, str], restricted: Callable[..., Repository]) -> None:
    limited = restricted(
        {"resourceType": "Observation", "criteria": f"Observation?code:in={PETS}"},
        {"resourceType": "Encounter", "criteria": f"Encounter?location:below=Location/{_id(zoo, 'floor')}"},
        {"resourceType": "Patient", "criteria": "Patient?gender:in=http://example.com/unknown"},
    )
    assert found(limited, zoo, "Observation", "") == {"rex", "fifi", "tom"}
    assert found(limited, zoo, "Encounter", "") == {"tour", "stay"}
    assert found(limited, zoo, "Patient", "") == set()
    assert limited.may_read("Observation", _id(zoo, "tom"))
    assert not limited.may_read("Observation", _id(zoo, "rose"))


def _id(known: dict[str, str], name: str) -> str:
    return next(id_ for id_, each in known.items() if each == name)


def test_circles_of_parts_end(repository: Repository) -> None:
    first = repository.create({"resourceType": "Location", "name": "a"})
    second = repository.create(
        {"resourceType": "Location", "name": "b", "partOf": {"reference": f"Location/{first.id}"}}
    )
    repository.update({**first.resource, "partOf": {"reference": f"Location/{second.id}"}})
    for modifier in ("above", "below"):
        request = repository.parse("Location", f"partof:{modifier}=Location/{first.id}")
        assert {stored.id for stored in repository.search(request).entries} == {first.id, second.id}


@pytest.mark.parametrize(
    ("type", "query", "text"),
    [
        (
            "Observation",
            "code:in=http://example.com/unknown",
            "ValueSet not found: http://example.com/unknown",
        ),
        (
            "Observation",
            "code:below=http://example.com/unknown|x",
            "CodeSystem not found: http://example.com/unknown",
        ),
        ("Observation", f"code:below={ANIMALS}|stone", f"Code not found in CodeSystem {ANIMALS}: stone"),
        ("Observation", "subject:below=Patient/x", "Patient has no hierarchy that :below could follow"),
    ],
)
@pytest.mark.usefixtures("zoo")
def test_what_cannot_be_looked_up_is_refused(
    repository: Repository, type: str, query: str, text: str
) -> None:
    with pytest.raises(FhirError) as refused:
        repository.search(repository.parse(type, query))
    assert (refused.value.status, str(refused.value)) == (400, text)
