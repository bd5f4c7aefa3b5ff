"""Value sets, code systems and concept maps: published ones and a project's own."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.rest.conftest import Caller, text_of

GENDER = "http://hl7.org/fhir/ValueSet/administrative-gender"
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"

ANIMALS: dict[str, Any] = {
    "resourceType": "CodeSystem",
    "status": "active",
    "content": "complete",
    "name": "Animals",
    "version": "7",
    "concept": [
        {
            "code": "animal",
            "display": "Animal",
            "property": [{"code": "notSelectable", "valueBoolean": True}],
            "concept": [
                {
                    "code": "dog",
                    "display": "Dog",
                    "definition": "Barks",
                    "designation": [{"language": "de", "value": "Hund"}],
                    "property": [{"code": "legs", "valueInteger": 4}],
                    "concept": [{"code": "beagle", "display": "Beagle dog"}],
                },
                {"code": "hen", "display": "Hen", "property": [{"code": "legs", "valueInteger": 2}]},
            ],
        },
        {
            "code": "griffin",
            "display": "Griffin",
            "property": [
                {"code": "parent", "valueCode": "animal"},
                {"code": "status", "valueCode": "retired"},
            ],
        },
    ],
}


class Zoo:
    """A project's own code system and value sets over it."""

    def __init__(self, home: Caller) -> None:
        self.home = home
        self.system = f"http://example.com/{uuid.uuid4()}"
        home.create({**ANIMALS, "url": self.system})

    def value_set(self, *include: dict[str, Any], exclude: list[dict[str, Any]] | None = None) -> str:
        """Make a value set; includes without source are of the zoo's code system."""
        url = f"http://example.com/{uuid.uuid4()}"
        compose: dict[str, Any] = {"include": [self._part(each) for each in include]}
        if exclude:
            compose["exclude"] = [self._part(each) for each in exclude]
        self.home.create({"resourceType": "ValueSet", "status": "active", "url": url, "compose": compose})
        return url

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        return part if "valueSet" in part or "system" in part else {"system": self.system, **part}


@pytest.fixture(scope="module")
def zoo(home: Caller) -> Zoo:
    return Zoo(home)


def get(home: Caller, path: str, **parameters: str) -> Any:
    answer = home.send("GET", f"{path}?{urlencode(parameters)}")
    assert answer.status_code == 200, answer.content
    return answer.json()


def refused(home: Caller, path: str, **parameters: str) -> tuple[int, str]:
    answer = home.send("GET", f"{path}?{urlencode(parameters)}")
    return answer.status_code, text_of(answer)


def codes(expanded: dict[str, Any]) -> list[str]:
    return [each["code"] for each in expanded["expansion"].get("contains", [])]


def values(parameters: dict[str, Any]) -> dict[str, Any]:
    """The simple output parameters by name."""
    return {
        each["name"]: next(value for key, value in each.items() if key != "name")
        for each in parameters["parameter"]
        if "part" not in each
    }


def test_a_published_value_set_is_expanded(home: Caller) -> None:
    expanded = get(home, "ValueSet/$expand", url=GENDER)
    assert codes(expanded) == ["male", "female", "other", "unknown"]
    assert expanded["url"] == GENDER
    assert expanded["expansion"]["total"] == 4
    first = {"system": "http://hl7.org/fhir/administrative-gender", "code": "male", "display": "Male"}
    assert expanded["expansion"]["contains"][0] == first
    assert codes(get(home, "ValueSet/$expand", url=f"{GENDER}|4.0.1")) == codes(expanded)


def test_a_filter_finds_words_and_beginnings_first(home: Caller) -> None:
    assert codes(get(home, "ValueSet/$expand", url=GENDER, filter="male")) == ["male", "female"]
    assert codes(get(home, "ValueSet/$expand", url=GENDER, filter="UNKN")) == ["unknown"]
    assert codes(get(home, "ValueSet/$expand", url=GENDER, filter="nothing")) == []
    types = "http://hl7.org/fhir/ValueSet/resource-types"
    assert len(codes(get(home, "ValueSet/$expand", url=types, filter="a"))) == 10
    assert "Bot" in codes(get(home, "ValueSet/$expand", url=types))


def test_pages_make_up_the_whole(home: Caller) -> None:
    whole = codes(get(home, "ValueSet/$expand", url=GENDER))
    pages = [codes(get(home, "ValueSet/$expand", url=GENDER, offset=str(at), count="3")) for at in (0, 3, 6)]
    assert pages == [whole[:3], whole[3:], []]
    assert codes(get(home, "ValueSet/$expand", url=GENDER, count="0")) == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], "animal dog beagle hen griffin"),
        ([("concept", "is-a", "dog")], "dog beagle"),
        ([("concept", "descendent-of", "animal")], "dog beagle hen griffin"),
        ([("concept", "is-not-a", "dog")], "animal hen griffin"),
        ([("concept", "generalizes", "beagle")], "animal dog beagle"),
        ([("legs", "=", "4")], "dog"),
        ([("display", "=", "Hen")], "hen"),
        ([("parent", "=", "animal")], "dog hen griffin"),
        ([("code", "regex", "[dh]\\w+")], "dog hen"),
        ([("display", "regex", ".*dog")], "beagle"),
        ([("code", "in", "dog, hen,cow")], "dog hen"),
        ([("legs", "not-in", "4")], "animal beagle hen griffin"),
        ([("legs", "exists", "true")], "dog hen"),
        ([("legs", "exists", "false")], "animal beagle griffin"),
        ([("concept", "is-a", "animal"), ("legs", "=", "2")], "hen"),
        ([("concept", "is-a", "unicorn")], ""),
    ],
)
def test_filters_choose_concepts(
    home: Caller, zoo: Zoo, filters: list[tuple[str, str, str]], expected: str
) -> None:
    rules = [{"property": name, "op": operator, "value": value} for name, operator, value in filters]
    url = zoo.value_set({"filter": rules} if rules else {})
    assert codes(get(home, "ValueSet/$expand", url=url)) == expected.split()
    for code in ("animal", "dog", "beagle", "hen", "griffin"):
        answer = get(home, "ValueSet/$validate-code", url=url, system=zoo.system, code=code)
        assert values(answer)["result"] == (code in expected.split())


def test_value_sets_are_composed(home: Caller, zoo: Zoo) -> None:
    dogs = zoo.value_set({"filter": [{"property": "concept", "op": "is-a", "value": "dog"}]})
    pets = zoo.value_set({"concept": [{"code": "hen", "display": "Chicken"}, {"code": "beagle"}]})
    both = zoo.value_set({"valueSet": [dogs]}, {"valueSet": [pets]})
    assert codes(get(home, "ValueSet/$expand", url=both)) == ["dog", "beagle", "hen"]
    common = zoo.value_set({"valueSet": [dogs, pets]})
    assert codes(get(home, "ValueSet/$expand", url=common)) == ["beagle"]
    without = zoo.value_set({}, exclude=[{"valueSet": [dogs]}])
    assert codes(get(home, "ValueSet/$expand", url=without)) == ["animal", "hen", "griffin"]
    listed = get(home, "ValueSet/$expand", url=pets)["expansion"]["contains"]
    assert listed[0] == {"system": zoo.system, "code": "hen", "display": "Chicken"}
    for url, code, result in ((common, "beagle", True), (common, "dog", False), (without, "dog", False)):
        assert values(get(home, "ValueSet/$validate-code", url=url, code=code))["result"] is result


def test_what_is_not_for_choosing_can_be_left_out(home: Caller, zoo: Zoo) -> None:
    url = zoo.value_set({})
    whole = get(home, "ValueSet/$expand", url=url, includeDesignations="true")["expansion"]["contains"]
    assert whole[0] == {"system": zoo.system, "abstract": True, "code": "animal", "display": "Animal"}
    assert whole[1]["designation"] == [{"language": "de", "value": "Hund"}]
    assert whole[4]["inactive"] is True
    expanded = get(home, "ValueSet/$expand", url=url, excludeNotForUI="true", activeOnly="true")
    assert codes(expanded) == ["dog", "beagle", "hen"]


def test_displays_come_in_the_language_asked_for(home: Caller, zoo: Zoo) -> None:
    url = zoo.value_set({"concept": [{"code": "dog"}, {"code": "hen"}]})
    expanded = get(home, "ValueSet/$expand", url=url, displayLanguage="de-CH")
    assert [each["display"] for each in expanded["expansion"]["contains"]] == ["Hund", "Hen"]
    assert codes(get(home, "ValueSet/$expand", url=url, displayLanguage="de", filter="hun")) == ["dog"]
    found = values(get(home, "CodeSystem/$lookup", system=zoo.system, code="dog", displayLanguage="de"))
    assert found["display"] == "Hund"


def test_an_expansion_can_be_a_tree(home: Caller, zoo: Zoo) -> None:
    url = zoo.value_set({})

    def tree(contains: list[dict[str, Any]]) -> dict[str, Any]:
        return {each["code"]: tree(each.get("contains", [])) for each in contains}

    expansion = get(home, "ValueSet/$expand", url=url, excludeNested="false")["expansion"]
    assert tree(expansion["contains"]) == {"animal": {"dog": {"beagle": {}}, "hen": {}, "griffin": {}}}
    assert expansion["total"] == 5
    some = zoo.value_set({"concept": [{"code": "beagle"}, {"code": "animal"}]})
    nested = get(home, "ValueSet/$expand", url=some, excludeNested="false")["expansion"]["contains"]
    assert tree(nested) == {"beagle": {}, "animal": {}}


def test_circles_and_long_chains_of_concepts_end(home: Caller) -> None:
    system = f"http://example.com/{uuid.uuid4()}"
    chain = [
        {"code": f"c{number}", "property": [{"code": "parent", "valueCode": f"c{number - 1}"}]}
        for number in range(1, 1500)
    ]
    circle = [
        {"code": code, "property": [{"code": "parent", "valueCode": other}]} for code, other in ("xy", "yx")
    ]
    concepts = [{"code": "c0"}, *chain, *circle]
    home.create({**ANIMALS, "url": system, "concept": concepts})
    url = f"http://example.com/{uuid.uuid4()}"
    compose = {"include": [{"system": system}]}
    home.create({"resourceType": "ValueSet", "status": "active", "url": url, "compose": compose})
    expansion = get(home, "ValueSet/$expand", url=url, excludeNested="false")["expansion"]
    assert expansion["total"] == len(concepts)


def test_value_sets_come_by_id_or_in_the_body(home: Caller, zoo: Zoo) -> None:
    value_set = {
        "resourceType": "ValueSet",
        "status": "active",
        "compose": {"include": [{"system": zoo.system, "concept": [{"code": "dog"}]}]},
    }
    made = home.create(value_set)
    assert codes(get(home, f"ValueSet/{made['id']}/$expand")) == ["dog"]
    parameters = {"resourceType": "Parameters", "parameter": [{"name": "valueSet", "resource": value_set}]}
    for body in (value_set, parameters):
        assert codes(home.send("POST", "ValueSet/$expand", body).json()) == ["dog"]
    broken = home.send("POST", "ValueSet/$expand", {**value_set, "compose": {"include": "all"}})
    assert broken.status_code == 400
    stored = {
        "resourceType": "ValueSet",
        "status": "active",
        "expansion": {
            "timestamp": "2026-01-01T00:00:00Z",
            "contains": [{"display": "group", "contains": [{"system": "x:y", "code": "a"}]}],
        },
    }
    assert codes(home.send("POST", "ValueSet/$expand", stored).json()) == ["a"]


def test_the_own_value_set_comes_before_the_published_one(home: Caller, foreign: Caller, zoo: Zoo) -> None:
    url = "http://hl7.org/fhir/ValueSet/contact-point-use"
    compose = {"include": [{"system": zoo.system, "concept": [{"code": "hen"}]}]}
    home.create(
        {"resourceType": "ValueSet", "status": "active", "url": url, "version": "9", "compose": compose}
    )
    assert codes(get(home, "ValueSet/$expand", url=url)) == ["hen"]
    assert "home" in codes(get(home, "ValueSet/$expand", url=url, valueSetVersion="4.0.1"))
    assert "home" in codes(get(foreign, "ValueSet/$expand", url=url))
    own = zoo.value_set({})
    assert refused(foreign, "ValueSet/$expand", url=own) == (400, "ValueSet not found")
    assert refused(foreign, "CodeSystem/$lookup", system=zoo.system, code="dog")[0] == 400


def test_what_cannot_be_expanded_is_refused_with_the_reason(home: Caller, zoo: Zoo) -> None:
    circle = f"http://example.com/{uuid.uuid4()}"
    home.create(
        {
            "resourceType": "ValueSet",
            "status": "active",
            "url": circle,
            "compose": {"include": [{"valueSet": [circle]}]},
        }
    )
    bad_pattern = {"filter": [{"property": "code", "op": "regex", "value": "(("}]}
    missing = zoo.value_set(
        {"system": "http://snomed.info/sct", "filter": [{"property": "a", "op": "=", "value": "b"}]}
    )
    for parameters, text in (
        ({"url": "http://nowhere"}, "ValueSet not found"),
        ({"url": f"{GENDER}|1.0"}, "ValueSet not found"),
        ({}, "Missing parameter url"),
        ({"url": circle}, f"ValueSet includes itself, or is nested too deeply: {circle}"),
        ({"url": zoo.value_set(bad_pattern)}, "Invalid regular expression in a value set: (("),
        ({"url": missing}, "The codes of CodeSystem http://snomed.info/sct are not present here"),
        ({"url": zoo.value_set({"system": "x:y"})}, "CodeSystem not found: x:y"),
        ({"url": zoo.value_set({"valueSet": ["x:y"]})}, "ValueSet not found: x:y"),
        ({"url": GENDER, "count": "many"}, "Invalid count: expected a whole number from 0 to 1000"),
        ({"url": GENDER, "activeOnly": "maybe"}, "Invalid activeOnly: expected true or false"),
    ):
        assert refused(home, "ValueSet/$expand", **parameters) == (400, text)


def test_a_code_is_validated_against_a_value_set(home: Caller) -> None:
    system = "http://hl7.org/fhir/administrative-gender"
    answer = values(get(home, "ValueSet/$validate-code", url=GENDER, code="male", system=system))
    assert answer == {"result": True, "display": "Male", "code": "male", "system": system}
    assert values(get(home, "ValueSet/$validate-code", url=GENDER, code="male"))["result"] is True
    wrong = values(get(home, "ValueSet/$validate-code", url=GENDER, code="male", system="x:y"))
    assert wrong == {"result": False, "message": f"x:y|male is not in {GENDER}"}
    wrong = values(get(home, "ValueSet/$validate-code", url=GENDER, code="male", display="Man"))
    assert (wrong["result"], wrong["message"]) == (False, "The display should be: Male")
    concept = {"coding": [{"system": "x:y", "code": "z"}, {"system": system, "code": "other"}]}
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "url", "valueUri": GENDER},
            {"name": "codeableConcept", "valueCodeableConcept": concept},
        ],
    }
    assert values(home.send("POST", "ValueSet/$validate-code", body).json())["code"] == "other"
    assert refused(home, "ValueSet/$validate-code", url=GENDER) == (
        400,
        "Missing parameter code, coding or codeableConcept",
    )


def test_a_code_is_looked_up(home: Caller, zoo: Zoo) -> None:
    answer = get(home, "CodeSystem/$lookup", system=zoo.system, code="dog")
    assert values(answer) == {"name": "Animals", "version": "7", "display": "Dog", "definition": "Barks"}
    parts = [(each["name"], each["part"]) for each in answer["parameter"] if "part" in each]
    assert parts == [
        ("designation", [{"name": "language", "valueCode": "de"}, {"name": "value", "valueString": "Hund"}]),
        ("property", [{"name": "code", "valueCode": "legs"}, {"name": "value", "valueInteger": 4}]),
        ("property", [{"name": "code", "valueCode": "parent"}, {"name": "value", "valueCode": "animal"}]),
        ("property", [{"name": "code", "valueCode": "child"}, {"name": "value", "valueCode": "beagle"}]),
    ]
    published = values(get(home, "CodeSystem/$lookup", system=ACT_CODE, code="AMB"))
    assert published["display"] == "ambulatory"
    assert refused(home, "CodeSystem/$lookup", system=zoo.system, code="cow") == (
        404,
        f"Code cow not found in {zoo.system}",
    )
    assert refused(home, "CodeSystem/$lookup", system="x:y", code="cow") == (400, "CodeSystem not found: x:y")
    assert refused(home, "CodeSystem/$lookup", system=zoo.system, version="8", code="dog")[0] == 400
    assert refused(home, "CodeSystem/$lookup", code="dog") == (400, "Missing parameter system")


def test_a_code_is_validated_against_a_code_system(home: Caller, zoo: Zoo) -> None:
    path = "CodeSystem/$validate-code"
    assert values(get(home, path, url=zoo.system, code="dog", display="hund"))["result"] is True
    assert values(get(home, path, url=zoo.system, code="dog", display="Cat"))["result"] is False
    assert values(get(home, path, url=zoo.system, code="cow")) == {
        "result": False,
        "message": "Code not found: cow",
    }
    assert refused(home, path, url="http://loinc.org", code="1-8") == (
        400,
        "The codes of CodeSystem http://loinc.org are not all present here: 1-8 cannot be checked",
    )
    folded = {**ANIMALS, "url": f"http://example.com/{uuid.uuid4()}", "caseSensitive": False}
    made = home.create(folded)
    assert values(get(home, path, url=folded["url"], code="DOG"))["code"] == "dog"
    assert values(get(home, f"CodeSystem/{made['id']}/$validate-code", code="Dog"))["result"] is True


def test_a_code_system_needs_no_url_where_it_is_named_otherwise(home: Caller) -> None:
    nameless = {
        "resourceType": "CodeSystem",
        "status": "draft",
        "content": "complete",
        "concept": [{"code": "a"}],
    }
    made = home.create(nameless)
    path = "CodeSystem/$validate-code"
    assert values(get(home, f"CodeSystem/{made['id']}/$validate-code", code="a")) == {
        "result": True,
        "code": "a",
    }
    body = {
        "resourceType": "Parameters",
        "parameter": [{"name": "codeSystem", "resource": nameless}, {"name": "code", "valueCode": "b"}],
    }
    assert values(home.send("POST", path, body).json())["result"] is False


@pytest.mark.parametrize(
    ("a", "b", "outcome"),
    [
        ("dog", "dog", "equivalent"),
        ("animal", "beagle", "subsumes"),
        ("griffin", "animal", "subsumed-by"),
        ("dog", "hen", "not-subsumed"),
    ],
)
def test_subsumption_follows_the_hierarchy(home: Caller, zoo: Zoo, a: str, b: str, outcome: str) -> None:
    answer = get(home, "CodeSystem/$subsumes", system=zoo.system, codeA=a, codeB=b)
    assert values(answer) == {"outcome": outcome}


def test_subsumption_needs_two_known_codes(home: Caller, zoo: Zoo) -> None:
    assert refused(home, "CodeSystem/$subsumes", system=zoo.system, codeA="dog") == (
        400,
        "Missing parameter codeB",
    )
    assert refused(home, "CodeSystem/$subsumes", system=zoo.system, codeA="dog", codeB="cow")[1].startswith(
        "Code cow not found"
    )


def matches(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    """(equivalence, target code) of each match."""
    found = []
    for each in answer["parameter"]:
        if each["name"] == "match":
            parts = {part["name"]: part for part in each["part"]}
            concept = parts.get("concept", {}).get("valueCoding", {})
            found.append((parts["equivalence"]["valueCode"], concept.get("code")))
    return found


def test_codes_are_translated(home: Caller, zoo: Zoo) -> None:
    fallback = {
        "resourceType": "ConceptMap",
        "status": "active",
        "url": f"http://example.com/{uuid.uuid4()}",
        "group": [
            {
                "source": zoo.system,
                "target": "http://food",
                "element": [{"code": "none", "target": [{"code": "x", "equivalence": "equal"}]}],
                "unmapped": {"mode": "fixed", "code": "air"},
            }
        ],
    }
    home.create(fallback)
    food = [
        {"code": "meat", "equivalence": "equivalent"},
        {"code": "bones", "equivalence": "wider"},
    ]
    map_url = f"http://example.com/{uuid.uuid4()}"
    home.create(
        {
            "resourceType": "ConceptMap",
            "status": "active",
            "url": map_url,
            "group": [
                {
                    "source": zoo.system,
                    "target": "http://food",
                    "element": [
                        {"code": "dog", "target": food},
                        {"code": "griffin", "target": [{"equivalence": "unmatched"}]},
                    ],
                    "unmapped": {"mode": "other-map", "url": fallback["url"]},
                }
            ],
        }
    )

    def ask(**parameters: str) -> dict[str, Any]:
        return get(home, "ConceptMap/$translate", **parameters)

    answer = ask(url=map_url, system=zoo.system, code="dog")
    assert values(answer) == {"result": True}
    assert matches(answer) == [("equivalent", "meat"), ("wider", "bones")]
    assert matches(ask(url=map_url, system=zoo.system, code="hen")) == [("inexact", "air")]
    assert values(ask(url=map_url, system=zoo.system, code="griffin"))["result"] is False
    assert matches(ask(url=map_url, system="http://food", code="bones", reverse="true")) == [("wider", "dog")]
    assert matches(ask(url=map_url, system=zoo.system, code="dog", targetsystem="http://drink")) == []
    assert ("equivalent", "meat") in matches(ask(system=zoo.system, code="dog"))
    published = ask(system="http://hl7.org/fhir/administrative-gender", code="male")
    assert ("equal", "M") in matches(published) or ("equivalent", "M") in matches(published)
    assert refused(home, "ConceptMap/$translate", url="x:y", code="a") == (400, "ConceptMap not found")
    assert refused(home, "ConceptMap/$translate", code="a")[0] == 400


def test_the_operations_are_in_the_capability_statement(home: Caller) -> None:
    listed = {
        each["type"]: {operation["name"] for operation in each["operation"]}
        for each in home.send("GET", "metadata").json()["rest"][0]["resource"]
    }
    assert {"expand", "validate-code"} <= listed["ValueSet"]
    assert {"lookup", "validate-code", "subsumes"} <= listed["CodeSystem"]
    assert "translate" in listed["ConceptMap"]
    assert "everything" in listed["Patient"]
    assert "find" in listed["Schedule"]
