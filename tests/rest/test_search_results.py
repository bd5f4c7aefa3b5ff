"""What a search answers besides its matches: pages, links, totals, parts, included resources, several types."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.rest.conftest import FORM, Caller, smith, text_of


def search(caller: Caller, path: str, **headers: str) -> dict[str, Any]:
    """GET a search by path or absolute link; returns the Bundle."""
    if path.startswith("http"):
        parts = urlsplit(path)
        path = f"{parts.path}?{parts.query}"
    answer = caller.send("GET", path, **headers)
    assert answer.status_code == 200, answer.content
    bundle: dict[str, Any] = answer.json()
    return bundle


def ids(bundle: dict[str, Any], mode: str = "match") -> list[str]:
    """References of the entries with a mode, in order."""
    return [
        f"{each['resource']['resourceType']}/{each['resource']['id']}"
        for each in bundle.get("entry", ())
        if each["search"]["mode"] == mode
    ]


def link(bundle: dict[str, Any], relation: str) -> str | None:
    """The URL of a link."""
    return next((each["url"] for each in bundle["link"] if each["relation"] == relation), None)


def walk(caller: Caller, path: str) -> list[list[str]]:
    """The matches of each page, following next links."""
    pages, address = [], path
    while address:
        bundle = search(caller, address)
        pages.append(ids(bundle))
        address = link(bundle, "next") or ""
    return pages


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(home: Caller) -> tuple[str, list[str]]:
    """A family of 45, and their references in the order they were created."""
    family = uuid.uuid4().hex
    made = [
        home.create(smith(name=[{"family": family}], gender=("male", "female")[n % 2])) for n in range(45)
    ]
    return family, [f"Patient/{each['id']}" for each in made]


@pytest.mark.parametrize("count", [7, 20])
@pytest.mark.parametrize(
    "sort", ["", "_lastUpdated", "-_lastUpdated", "gender", "-gender,_lastUpdated", "name,-_id"]
)
def test_pages_show_every_match_once(
    home: Caller, crowd: tuple[str, list[str]], sort: str, count: int
) -> None:
    family, everybody = crowd
    query = f"Patient?family={family}&_count={count}" + (f"&_sort={sort}" if sort else "")
    pages = walk(home, query)
    assert [len(page) for page in pages] == [count] * (45 // count) + [45 % count]
    found = [each for page in pages for each in page]
    assert sorted(found) == sorted(everybody)
    if sort in ("_lastUpdated", "-_lastUpdated", ""):
        assert found == (everybody if sort == "_lastUpdated" else everybody[::-1])


def test_a_cursor_is_used_where_it_can_be_and_pages_stay_stable(home: Caller) -> None:
    family = uuid.uuid4().hex
    people = [home.create(smith(name=[{"family": family}])) for _ in range(30)]
    first = search(home, f"Patient?family={family}&_sort=_lastUpdated&_count=20&_total=accurate")
    following = link(first, "next")
    assert following is not None
    assert "_cursor=1-" in following
    assert "_offset" not in following
    # Who is touched between the pages moves to the end and pushes nobody out.
    home.send("PUT", f"Patient/{people[3]['id']}", {**people[3], "gender": "male"})
    second = search(home, following)
    assert (first["total"], second["total"]) == (30, 30)
    assert ids(second) == [f"Patient/{each['id']}" for each in [*people[20:], people[3]]]
    assert link(second, "next") is None
    assert link(second, "first") == link(first, "first")
    small = search(home, f"Patient?family={family}&_sort=_lastUpdated&_count=19")
    assert "_offset=19" in (link(small, "next") or "")


def test_links_are_absolute_and_keep_the_prefix(home: Caller, crowd: tuple[str, list[str]]) -> None:
    family, _ = crowd
    for prefix in (
        "fhir/R4",
        "api/fhir/R4",
        f"projects/{home.project}/fhir/R4",
        f"api/projects/{home.project}/fhir/R4",
    ):
        bundle = search(home, f"/{prefix}/Patient?family={family}&_count=20&_offset=20")
        assert {each["relation"] for each in bundle["link"]} == {"self", "first", "next", "previous"}
        for each in bundle["link"]:
            assert each["url"].startswith(f"http://127.0.0.1:8000/{prefix}/Patient?family={family}&_count=20")
            search(home, each["url"])
        assert link(bundle, "previous") == link(bundle, "first")


def test_the_next_link_of_a_posted_search_is_fetched_by_get(
    home: Caller, crowd: tuple[str, list[str]]
) -> None:
    family, everybody = crowd
    answer = home.send("POST", "Patient/_search?_count=20", f"family={family}", content_type=FORM)
    found, following = ids(answer.json()), link(answer.json(), "next")
    assert following is not None
    while following:
        bundle = search(home, following)
        found += ids(bundle)
        following = link(bundle, "next")
    assert sorted(found) == sorted(everybody)


def test_totals_are_counted_when_asked_for(home: Caller, crowd: tuple[str, list[str]]) -> None:
    family, _ = crowd
    assert "total" not in search(home, f"Patient?family={family}")
    for query in ("_total=accurate", "_total=accurate&_offset=40", "_count=0", "_summary=count"):
        assert search(home, f"Patient?family={family}&{query}")["total"] == 45, query
    assert search(home, f"Patient?family={family}&_total=estimate")["total"] >= 20
    empty = search(home, f"Patient?family={family}&_count=0")
    assert "entry" not in empty
    assert [each["relation"] for each in empty["link"]] == ["self"]


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(home: Caller) -> dict[str, Any]:
    """A Patient with a bit of everything."""
    return home.create(
        smith(
            text={"status": "generated", "div": "<div xmlns='http://www.w3.org/1999/xhtml'>x</div>"},
            birthDate="1990-01-02",
            contact=[{"name": {"text": "Joe"}}],
            deceasedBoolean=False,
        )
    )


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("_summary=true", {"name", "birthDate", "deceasedBoolean"}),
        ("_summary=text", {"text"}),
        ("_summary=data", {"name", "birthDate", "contact", "deceasedBoolean"}),
        ("_elements=name,deceased", {"name", "deceasedBoolean"}),
        ("_elements=Patient.birthDate", {"birthDate"}),
        ("_fields=name.family,deceased[x]", {"name", "deceasedBoolean"}),
    ],
)
def test_parts_are_tagged_as_parts(home: Caller, whole: dict[str, Any], query: str, kept: set[str]) -> None:
    (entry,) = search(home, f"Patient?_id={whole['id']}&{query}")["entry"]
    assert entry["resource"].keys() - {"resourceType", "id", "meta"} == kept
    assert [each["code"] for each in entry["resource"]["meta"]["tag"]] == ["SUBSETTED"]


def test_what_declares_no_summary_is_sent_whole(home: Caller) -> None:
    (entry,) = search(home, f"ClientApplication?_id={home.client_id}&_summary=true")["entry"]
    assert "name" in entry["resource"]
    assert "tag" not in entry["resource"]["meta"]


def test_pretty_is_indented_and_format_is_understood(home: Caller, whole: dict[str, Any]) -> None:
    answer = home.send("GET", f"Patient?_id={whole['id']}&_pretty=true&_format=json")
    assert answer.content.startswith(b'{\n  "resourceType"')


# --- included resources ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ward(home: Caller) -> dict[str, dict[str, Any]]:
    """An organisation tree, a patient in it, encounters and observations."""
    made: dict[str, dict[str, Any]] = {}

    def add(name: str, type: str, /, **elements: Any) -> None:
        made[name] = home.create({"resourceType": type, **elements})

    def reference(name: str) -> dict[str, str]:
        return {"reference": f"{made[name]['resourceType']}/{made[name]['id']}"}

    add("root", "Organization", name="Root")
    add("clinic", "Organization", name="Clinic", partOf=reference("root"))
    add("ward", "Organization", name="Ward", partOf=reference("clinic"))
    add("doctor", "Practitioner", name=[{"family": "Who"}])
    add(
        "patient",
        "Patient",
        managingOrganization=reference("ward"),
        generalPractitioner=[reference("doctor")],
    )
    coding = {"code": "AMB"}
    add("visit", "Encounter", status="planned", subject=reference("patient"), **{"class": coding})
    for name in ("one", "two"):
        add(
            name,
            "Observation",
            status="final",
            code={"text": name},
            subject=reference("patient"),
            encounter=reference("visit"),
        )
    url = f"https://example.com/{uuid.uuid4()}"
    add("form", "Questionnaire", status="active", url=url, version="2")
    add(
        "answers",
        "QuestionnaireResponse",
        status="completed",
        questionnaire=f"{url}|2",
        subject=reference("patient"),
    )
    return made


@pytest.mark.parametrize(
    ("type", "of", "query", "expected"),
    [
        ("Patient", "patient", "_include=Patient:organization", ["ward"]),
        ("Patient", "patient", "_include=Patient:general-practitioner:Practitioner", ["doctor"]),
        ("Patient", "patient", "_include=Patient:general-practitioner:Organization", []),
        ("Patient", "patient", "_include=Patient:organization&_include=Patient:general-practitioner", ["doctor", "ward"]),
        ("Patient", "patient", "_include=Patient:organization&_include=Organization:partof", ["ward"]),
        ("Patient", "patient", "_include=Patient:organization&_include:iterate=Organization:partof", ["clinic", "root", "ward"]),
        ("Organization", "root", "_revinclude=Organization:partof", ["clinic"]),
        ("Organization", "root", "_revinclude:iterate=Organization:partof", ["clinic", "ward"]),
        ("Patient", "patient", "_revinclude=Observation:subject", ["one", "two"]),
        ("Patient", "patient", "_revinclude=Observation:subject:Patient", ["one", "two"]),
        ("Patient", "patient", "_revinclude=Observation:subject:Group", []),
        ("Patient", "patient", "_revinclude=Encounter:patient&_revinclude:iterate=Observation:encounter", ["one", "two", "visit"]),
        ("Observation", "one,two", "_include=Observation:patient&_include=Observation:encounter", ["patient", "visit"]),
        ("Observation", "one", "_include=Observation:subject&_revinclude:iterate=Encounter:patient", ["patient", "visit"]),
        ("QuestionnaireResponse", "answers", "_include=QuestionnaireResponse:questionnaire", ["form"]),
        ("Questionnaire", "form", "_revinclude=QuestionnaireResponse:questionnaire", ["answers"]),
    ],
)  # fmt: skip
def test_includes(
    home: Caller, ward: dict[str, dict[str, Any]], type: str, of: str, query: str, expected: list[str]
) -> None:
    wanted = [ward[name]["id"] for name in of.split(",")]
    bundle = search(home, f"{type}?_id={','.join(wanted)}&{query}&_total=accurate")
    assert len(ids(bundle)) == bundle["total"] == len(wanted)
    names = {f"{each['resourceType']}/{each['id']}": name for name, each in ward.items()}
    assert sorted(names[each] for each in ids(bundle, "include")) == expected


def test_a_match_is_not_included_again_and_a_deleted_resource_never(home: Caller) -> None:
    root = home.create({"resourceType": "Organization", "name": "a"})
    child = home.create(
        {"resourceType": "Organization", "name": "b", "partOf": {"reference": f"Organization/{root['id']}"}}
    )
    query = f"Organization?_id={root['id']},{child['id']}&_include=Organization:partof"
    assert ids(search(home, query), "include") == []
    home.send("DELETE", f"Organization/{root['id']}")
    assert ids(search(home, query)) == [f"Organization/{child['id']}"]
    assert ids(search(home, query), "include") == []


def test_includes_stay_in_the_project(home: Caller, foreign: Caller) -> None:
    theirs = foreign.create({"resourceType": "Organization", "name": "Foreign"})
    mine = home.create(smith(managingOrganization={"reference": f"Organization/{theirs['id']}"}))
    assert ids(search(home, f"Patient?_id={mine['id']}&_include=Patient:organization"), "include") == []
    query = f"Organization?_id={theirs['id']}&_revinclude=Patient:organization"
    assert ids(search(foreign, query), "include") == []


def test_more_than_a_thousand_are_cut_off_with_a_word(home: Caller) -> None:
    target = home.create({"resourceType": "Organization", "name": "Crowded"})
    repository = home.repository
    with repository.transaction():
        for _ in range(1001):
            repository.create(
                {
                    "resourceType": "Location",
                    "managingOrganization": {"reference": f"Organization/{target['id']}"},
                }
            )
    bundle = search(home, f"Organization?_id={target['id']}&_revinclude=Location:organization")
    assert len(ids(bundle, "include")) == 1000
    assert bundle["entry"][-1]["search"]["mode"] == "outcome"
    assert "limit is 1000" in bundle["entry"][-1]["resource"]["issue"][0]["details"]["text"]


# --- several types ---------------------------------------------------------------------------------------------------


def test_a_search_across_types_merges_by_time(home: Caller) -> None:
    tag = uuid.uuid4().hex
    types = ("Patient", "Organization", "Practitioner")
    made = [home.create({"resourceType": types[n % 3], "meta": {"tag": [{"code": tag}]}}) for n in range(10)]
    # Those of one millisecond stand in the order of the types.
    made.sort(key=lambda each: (each["meta"]["lastUpdated"], types.index(each["resourceType"])))
    references = [f"{each['resourceType']}/{each['id']}" for each in made]
    query = f"?_type={','.join(types)}&_tag={tag}&_count=4"
    pages = walk(home, f"{query}&_sort=_lastUpdated")
    assert [len(page) for page in pages] == [4, 4, 2]
    assert [each for page in pages for each in page] == references
    times = {f"{each['resourceType']}/{each['id']}": each["meta"]["lastUpdated"] for each in made}
    for sort in ("", "&_sort=-_lastUpdated"):
        found = [each for page in walk(home, query + sort) for each in page]
        assert sorted(found) == sorted(references)
        assert [times[each] for each in found] == sorted(times.values(), reverse=True)
    assert search(home, f"{query}&_summary=count")["total"] == 10
    assert ids(search(home, f"{query}&_offset=4&_sort=_lastUpdated")) == references[4:8]
    posted = home.send("POST", "_search", f"_type=Patient&_tag={tag}", content_type=FORM)
    assert len(ids(posted.json())) == 4


def test_resources_of_one_moment_are_on_one_page_each(home: Caller) -> None:
    tag = uuid.uuid4().hex
    entries = [
        {
            "request": {"method": "POST", "url": type},
            "resource": {"resourceType": type, "meta": {"tag": [{"code": tag}]}},
        }
        for type in ("Patient", "Organization") * 40
    ]
    made = home.send("POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries})
    assert made.status_code == 200
    for query in (
        f"?_type=Patient,Organization&_tag={tag}&_count=7",
        f"Patient?_tag={tag}&_sort=_lastUpdated&_count=20",
    ):
        found = [each for page in walk(home, query) for each in page]
        assert len(found) == len(set(found)) == (80 if query.startswith("?") else 40)


def test_includes_across_types(home: Caller, ward: dict[str, dict[str, Any]]) -> None:
    wanted = ",".join(ward[name]["id"] for name in ("one", "visit"))
    bundle = search(home, f"?_type=Observation,Encounter&_id={wanted}&_include=Observation:subject")
    assert len(ids(bundle)) == 2
    assert ids(bundle, "include") == [f"Patient/{ward['patient']['id']}"]


def test_a_cursor_needs_its_order(home: Caller) -> None:
    answer = home.send("GET", f"Patient?_sort=gender&_cursor=1-1-Patient/{uuid.uuid4()}")
    assert (answer.status_code, text_of(answer)) == (400, "A _cursor goes with _sort=_lastUpdated only")
