"""Searches in SQL: tables of queries and what they find, order, pages and totals."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from fhirstore import database, tables
from fhirstore.errors import FhirError
from fhirstore.repository import Repository
from fhirstore.search import sql
from fhirstore.search.index import index
from fhirstore.search.match import match
from fhirstore.search.parse import parse

HOMER, MARGE, LISA = "Homer", "Marge", "Lisa"
PATIENTS: dict[str, dict[str, Any]] = {
    HOMER: {
        "identifier": [{"system": "https://example.com/mrn", "value": "A-1"}],
        "active": True,
        "name": [{"family": "van Simpson", "given": ["Homer", "Jay"]}],
        "gender": "male",
        "birthDate": "1956-05-12",
        "telecom": [{"system": "phone", "value": "555-1"}],
        "generalPractitioner": [
            {"reference": "Practitioner/5bd5a4c0-6b4b-4b7c-9b0c-0d9bd9a3b4c1"},
            {"identifier": {"system": "https://example.com/npi", "value": "77"}},
        ],
        "maritalStatus": {
            "coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-MaritalStatus", "code": "M"}],
            "text": "Happily married",
        },
    },
    MARGE: {
        "identifier": [{"system": "https://example.com/mrn", "value": "a-2"}, {"value": "A-1"}],
        "active": True,
        "name": [{"family": "Simpson", "given": ["Märge"]}, {"use": "maiden", "family": "Bouvier"}],
        "gender": "female",
        "birthDate": "1956-10-01",
        "meta": {
            "tag": [{"system": "https://example.com/tags", "code": "vip"}],
            "source": "https://example.com/feed",
        },
    },
    LISA: {
        "active": False,
        "name": [{"text": "Lisa 100% _S_"}],
        "gender": "female",
        "birthDate": "1981",
        "managingOrganization": {"reference": "https://elsewhere.example.com/Organization/1"},
    },
}
OBSERVATIONS: dict[str, dict[str, Any]] = {
    "light": {"valueQuantity": {"value": 5.4, "unit": "mg", "system": "http://unitsofmeasure.org", "code": "mg"},
              "effectiveDateTime": "2024-03-01T10:00:00+02:00"},
    "heavy": {"valueQuantity": {"value": 120, "unit": "lbs"}, "effectiveDateTime": "2024-03-05"},
    "span": {"valueString": "x", "effectivePeriod": {"start": "2024-02-20", "end": "2024-03-02"}},
    "open": {"valueBoolean": True, "effectivePeriod": {"start": "2024-04-01"}},
}  # fmt: skip


@pytest.fixture
def family(repository: Repository) -> dict[str, str]:
    """The patients; names by id."""
    return {
        repository.create({"resourceType": "Patient", **each}).id: name for name, each in PATIENTS.items()
    }


def names(repository: Repository, type_: str, query: str, known: dict[str, str]) -> list[str]:
    return [known[stored.id] for stored in repository.search(parse(type_, query)).entries]


@pytest.mark.parametrize("rare", [sql.RARE, -1], ids=["collected", "walked"])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {HOMER, MARGE, LISA}),
        # string
        ("name=simp", {HOMER, MARGE}),
        ("family=simpson", {HOMER, MARGE}),
        ("name=MARGE", {MARGE}),
        ("name=homer jay", {HOMER}),
        ("name=arge", set()),
        ("name:contains=arge", {MARGE}),
        ("name:contains=100% _s", {LISA}),
        ("name:contains=100_", set()),
        ("family:exact=Simpson", {MARGE}),
        ("family:exact=simpson", set()),
        ("name=simp,lisa", {HOMER, MARGE, LISA}),
        ("name=simp&name=bouv", {MARGE}),
        ("name=simp&birthdate=1956-05", {HOMER}),
        # token
        ("gender=female", {MARGE, LISA}),
        ("gender=FEMALE", {MARGE, LISA}),
        ("gender:not=female", {HOMER}),
        ("gender=female,male", {HOMER, MARGE, LISA}),
        ("identifier=a-1", {HOMER, MARGE}),
        ("identifier=https://example.com/mrn|A-1", {HOMER}),
        ("identifier=|A-1", {MARGE}),
        ("identifier=https://example.com/mrn|", {HOMER, MARGE}),
        ("identifier:missing=true", {LISA}),
        ("identifier:not=a-2", {HOMER, LISA}),
        ("active=true", {HOMER, MARGE}),
        ("phone=555-1", {HOMER}),
        ("_tag=https://example.com/tags|vip", {MARGE}),
        ("_tag:missing=true&gender=female", {LISA}),
        # reference
        ("general-practitioner=Practitioner/5bd5a4c0-6b4b-4b7c-9b0c-0d9bd9a3b4c1", {HOMER}),
        ("general-practitioner=5bd5a4c0-6b4b-4b7c-9b0c-0d9bd9a3b4c1", {HOMER}),
        ("general-practitioner=Organization/5bd5a4c0-6b4b-4b7c-9b0c-0d9bd9a3b4c1", set()),
        ("general-practitioner:identifier=https://example.com/npi|77", {HOMER}),
        ("general-practitioner:missing=false", {HOMER}),
        ("organization=https://elsewhere.example.com/Organization/1", {LISA}),
        # date
        ("birthdate=1956", {HOMER, MARGE}),
        ("birthdate=1956-05-12", {HOMER}),
        ("birthdate=gt1956-05-12", {MARGE, LISA}),
        ("birthdate=lt1956-06", {HOMER}),
        ("birthdate=ge1956-10-01&birthdate=le1980", {MARGE}),
        ("birthdate=ne1956-05-12", {MARGE, LISA}),
        ("birthdate=sa1956-12", {LISA}),
        ("birthdate=eb1956-06", {HOMER}),
        ("birthdate=1956-05-12,1981", {HOMER, LISA}),
        ("birthdate:missing=true", set()),
        # uri
        ("_source=https://example.com/feed", {MARGE}),
        ("_source=https://example.com/FEED", set()),
        # columns
        ("_lastUpdated=ge2020-01-01", {HOMER, MARGE, LISA}),
        ("_lastUpdated=lt2020-01-01", set()),
        ("_lastUpdated=eb2020,sa2020", {HOMER, MARGE, LISA}),
        ("_lastUpdated:missing=true", set()),
        ("_id=not-a-uuid", set()),
    ],
)
def test_patients(
    query: str,
    expected: set[str],
    rare: int,
    repository: Repository,
    family: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sql, "RARE", rare)  # both plans find the same
    found = repository.search(parse("Patient", f"{query}&_total=accurate"))
    assert {family[stored.id] for stored in found.entries} == expected
    fitting = (
        id for id in family if match(parse("Patient", query), index(repository.read("Patient", id).resource))
    )
    assert {family[id] for id in fitting} == expected, "in memory too"
    assert found.total == len(expected)
    assert repository.search(parse("Patient", f"{query}&_count=0")).total == len(expected)


def test_by_id_and_by_its_time(repository: Repository, family: dict[str, str]) -> None:
    homer, marge, lisa = family
    assert names(repository, "Patient", f"_id={homer}", family) == [HOMER]
    assert set(names(repository, "Patient", f"_id={homer},{lisa}", family)) == {HOMER, LISA}
    assert names(repository, "Patient", f"_id:not={homer},{lisa}", family) == [MARGE]
    assert names(repository, "Patient", f"_id={homer.upper()}", family) == []
    assert names(repository, "Patient", f"_id={homer}&gender=female", family) == []
    instant = repository.read("Patient", marge).resource["meta"]["lastUpdated"]
    for query, hit in (("", True), ("ne", False), ("ge", True), ("le", True), ("gt", False), ("lt", False)):
        found = names(repository, "Patient", f"_id={marge}&_lastUpdated={query}{instant}", family)
        assert bool(found) is hit, query


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("value-quantity=5.4", {"light"}),
        ("value-quantity=5.4|http://unitsofmeasure.org|mg", {"light"}),
        ("value-quantity=5.4|http://unitsofmeasure.org|g", set()),
        ("value-quantity=120||lbs", {"heavy"}),
        ("value-quantity=gt5.4", {"heavy"}),
        ("value-quantity=ge5.4", {"light", "heavy"}),
        ("value-quantity=lt6||mg", {"light"}),
        ("value-quantity=ne5.4", {"heavy"}),
        ("value-quantity=ap110", {"heavy"}),
        ("value-quantity:missing=true", {"span", "open"}),
        ("value-quantity=5.4,120", {"light", "heavy"}),
        ("date=2024-03-01", {"light", "span"}),
        ("date=2024-03-01T08:00:00Z", {"light", "span"}),
        ("date=gt2024-03-04", {"heavy", "open"}),
        ("date=sa2024-03-31", {"open"}),
        ("date=lt2024-02-25", {"span"}),
        ("date=eb2024-03-01T09:00:00Z", {"light"}),
        ("date=ge2999", {"open"}),
        ("date=ge2024-03-01&date=lt2024-03-02&value-quantity=gt1", {"light"}),
        ("code:text=body", {"light", "heavy", "span", "open"}),
        ("code:text=wei", {"light", "heavy", "span", "open"}),
        ("code:text=eight", set()),
    ],
)
def test_observations(query: str, expected: set[str], repository: Repository) -> None:
    common = {"resourceType": "Observation", "status": "final", "code": {"text": "Body  Weight"}}
    known = {repository.create({**common, **each}).id: name for name, each in OBSERVATIONS.items()}
    found = names(repository, "Observation", query, known)
    assert sorted(found) == sorted(expected), "each once"


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("", [LISA, MARGE, HOMER]),
        ("_lastUpdated", [HOMER, MARGE, LISA]),
        ("-_lastUpdated", [LISA, MARGE, HOMER]),
        ("birthdate", [HOMER, MARGE, LISA]),
        ("-birthdate", [LISA, MARGE, HOMER]),
        ("given", [HOMER, MARGE, LISA]),
        ("-family", [HOMER, MARGE, LISA]),
        ("gender,-birthdate", [LISA, MARGE, HOMER]),
        ("-gender,birthdate", [HOMER, MARGE, LISA]),
        ("identifier,_lastUpdated", [HOMER, MARGE, LISA]),
        ("general-practitioner,_lastUpdated", [HOMER, MARGE, LISA]),
    ],
)
@pytest.mark.parametrize("rare", [sql.RARE, -1], ids=["collected", "walked"])
def test_order(
    sort: str,
    expected: list[str],
    rare: int,
    repository: Repository,
    family: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sql, "RARE", rare)
    query = "name:missing=false" + (f"&_sort={sort}" if sort else "")
    assert names(repository, "Patient", query, family) == expected


@pytest.mark.parametrize("rare", [sql.RARE, -1], ids=["collected", "walked"])
@pytest.mark.parametrize(
    "sort", ["family", "-family", "birthdate", "-birthdate", "-birthdate,family", "name"]
)
def test_pages_in_the_order_of_values(
    sort: str, rare: int, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several values, equal values and none: each patient once, those without a value last.
    families = [["Zoe", "Adams"], ["von Berg"], ["Berg"], [], ["Clark"], ["clark"]]
    for number, names_ in enumerate(families):
        repository.create(
            {
                "resourceType": "Patient",
                "name": [{"family": name} for name in names_]
                or [{"use": "old", "period": {"start": "2000"}}],
                **({"birthDate": f"200{number // 2}-01-01"} if number != 1 else {}),
            }
        )
    monkeypatch.setattr(sql, "RARE", rare)
    everything = repository.search(parse("Patient", f"_sort={sort}")).entries
    pages = [
        repository.search(parse("Patient", f"_sort={sort}&_count=2&_offset={offset}")).entries
        for offset in (0, 2, 4, 6)
    ]
    assert [stored for page in pages for stored in page] == everything
    found = [[name.get("family", "") for name in stored.resource["name"]] for stored in everything]
    births = [stored.resource.get("birthDate", "") for stored in everything]
    assert len(found) == len(families)
    if sort == "family":
        assert found == [["Zoe", "Adams"], ["Berg"], ["clark"], ["Clark"], ["von Berg"], [""]]
    if sort == "-family":
        assert found == [["Zoe", "Adams"], ["von Berg"], ["clark"], ["Clark"], ["Berg"], [""]]
    if sort.startswith("-birthdate"):
        assert births == ["2002-01-01", "2002-01-01", "2001-01-01", "2001-01-01", "2000-01-01", ""]


def test_order_by_id_and_by_amount(repository: Repository) -> None:
    common = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
    ids = [repository.create({**common, "valueQuantity": {"value": value}}).id for value in (10, 9, 100)]
    ordered = [
        stored.id for stored in repository.search(parse("Observation", "_sort=value-quantity")).entries
    ]
    assert ordered == [ids[1], ids[0], ids[2]]
    ordered = [stored.id for stored in repository.search(parse("Observation", "_sort=-_id")).entries]
    assert ordered == sorted(ids, reverse=True)


def test_pages_follow_each_other(repository: Repository) -> None:
    ids = [
        repository.create({"resourceType": "Basic", "code": {"text": str(number)}}).id for number in range(7)
    ]
    seen: list[str] = []
    for offset in (0, 3, 6):
        page = repository.search(parse("Basic", f"_count=3&_offset={offset}&_sort=_lastUpdated"))
        assert page.has_next is (offset < 6)
        assert page.total is None
        seen += [stored.id for stored in page.entries]
    assert seen == ids
    beyond = repository.search(parse("Basic", "_count=3&_offset=9&_total=accurate"))
    assert (beyond.entries, beyond.total, beyond.has_next) == ([], 7, False)
    nothing = repository.search(parse("Basic", "_count=0"))
    assert (nothing.entries, nothing.total) == ([], 7)
    estimated = repository.search(parse("Basic", "_count=3&_total=estimate"))
    assert estimated.total is not None
    assert estimated.total >= 4
    assert repository.search(parse("Basic", "_total=estimate")).total == 7


def test_search_one_and_all(repository: Repository) -> None:
    assert repository.search_one("Patient", "") is None
    stored = repository.create({"resourceType": "Patient", "gender": "male"})
    assert repository.search_one("Patient", [("gender", "male")]) == stored
    assert repository.search_all("Patient", "_count=1&_offset=5") == [stored], "whatever page the query names"


def test_updates_are_found_by_their_new_values_only(repository: Repository) -> None:
    stored = repository.create(
        {"resourceType": "Patient", "name": [{"family": "Old"}], "gender": "male", "birthDate": "1990-01-01"}
    )
    repository.update(
        {"resourceType": "Patient", "id": stored.id, "name": [{"family": "New"}], "gender": "female"}
    )
    for query, hits in {
        "family=old": 0,
        "family=new": 1,
        "gender=male": 0,
        "gender=female": 1,
        "birthdate=1990": 0,
        "birthdate:missing=true": 1,
        "name:contains=ol": 0,
    }.items():
        assert len(repository.search_all("Patient", query)) == hits, query
    repository.delete("Patient", stored.id)
    with database.connection() as connection:
        left = connection.execute(
            "SELECT count(*) FROM resource r LEFT JOIN value_string s USING (rid) LEFT JOIN value_date d USING (rid)"
            " WHERE r.id = %s AND (s.rid IS NOT NULL OR d.rid IS NOT NULL OR r.idx <> '{}')",
            [stored.id],
        ).fetchone()
    assert left == (0,)


def test_long_strings_are_found_by_all_their_parts(repository: Repository) -> None:
    text = "abc " * 80
    repository.create({"resourceType": "Patient", "name": [{"family": text}]})
    assert len(repository.search_all("Patient", [("family", text)])) == 1
    assert len(repository.search_all("Patient", [("family", text[:250])])) == 1
    assert len(repository.search_all("Patient", [("family", text[:250] + "x")])) == 0
    assert len(repository.search_all("Patient", [("family:contains", "c abc abc abc")])) == 1
    assert len(repository.search_all("Patient", [("family:exact", text)])) == 1


def test_binary_is_not_searchable(repository: Repository) -> None:
    with pytest.raises(FhirError) as refused:
        repository.search(parse("Binary", ""))
    assert refused.value.status == 400


def test_a_search_that_takes_too_long_says_so(repository: Repository) -> None:
    def sleep() -> None:
        with database.transaction() as connection:
            connection.execute("SET LOCAL statement_timeout = 20")
            connection.execute("SELECT pg_sleep(5)")

    with pytest.raises(FhirError) as refused:
        sleep()
    assert refused.value.status == 504
    assert refused.value.outcome["issue"][0]["code"] == "timeout"


def test_statistics_tell_common_terms_from_rare_ones(repository: Repository) -> None:
    for number in range(50):
        repository.create({"resourceType": "Slot", "status": "free" if number else "busy", **_slot()})
    with database.connection() as connection:
        connection.execute("ANALYZE resource_default")
    tables._statistics.clear()
    statistics = tables.statistics("Slot")
    key = tables.hasher().key(repository.identity.project, "Slot", "status")
    common, rare = (statistics.frequency(tables.hasher().term(key, code)) for code in ("cfree", "cbusy"))
    assert common == pytest.approx(49, abs=1)
    assert rare < common / 5
    assert statistics.frequency(12345) < common / 5
    assert tables.statistics("Slot") is statistics, "kept for a while"


def _slot() -> dict[str, Any]:
    return {
        "schedule": {"reference": f"Schedule/{uuid.uuid4()}"},
        "start": "2026-01-01T10:00:00Z",
        "end": "2026-01-01T11:00:00Z",
    }


def test_a_page_has_so_many_bytes(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [repository.create({"resourceType": "Basic", "code": {"text": "x" * 1000}}).id for _ in range(5)]
    monkeypatch.setattr(sql, "MAX_PAGE_BYTES", 5000)
    query = "_id=" + ",".join(made)
    with pytest.raises(FhirError, match="ask for fewer resources with _count") as refused:
        repository.search(parse("Basic", query))
    assert refused.value.status == 400
    assert len(repository.search(parse("Basic", f"{query}&_count=2")).entries) == 2
    assert {each.id for each in repository.search_all("Basic", query)} == set(made)
    monkeypatch.setattr(sql, "MAX_PAGE_BYTES", 1)
    assert len(repository.search_all("Basic", query)) == 5  # one by one
