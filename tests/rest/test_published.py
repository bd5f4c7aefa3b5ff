"""The published definitions: read and searched by every project, behind its own, changed by none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rest.conftest import Caller, new_caller
from tests.rest.test_bulk import with_policy

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(scope="module")
def own(database: None) -> Caller:
    """A project with a definition of its own."""
    caller = new_caller()
    caller.create(profile("http://example.com/A", "A"))
    return caller


def profile(url: str, name: str) -> dict[str, Any]:
    return {
        "resourceType": "StructureDefinition",
        "url": url,
        "name": name,
        "status": "active",
        "kind": "resource",
        "abstract": False,
        "type": "Patient",
        "baseDefinition": "http://hl7.org/fhir/StructureDefinition/Patient",
        "derivation": "constraint",
        "differential": {"element": [{"id": "Patient", "path": "Patient"}]},
    }


def found(caller: Caller, path: str) -> list[str]:
    answer = caller.send("GET", path)
    assert answer.status_code == 200, answer.content
    return [entry["resource"]["url"] for entry in answer.json().get("entry", ())]


def test_a_definition_is_read_by_its_own_id(own: Caller) -> None:
    answer = own.send("GET", "StructureDefinition/Patient")
    resource = answer.json()
    assert resource["url"] == "http://hl7.org/fhir/StructureDefinition/Patient"
    assert resource["snapshot"]["element"][0]["path"] == "Patient"
    assert own.send("GET", "SearchParameter/clinical-code").json()["code"] == "code"
    assert own.send("GET", "ValueSet/administrative-gender").json()["compose"]
    assert own.send("GET", "StructureDefinition/Nothing").status_code == 404


def test_a_search_finds_own_ones_first_then_published_ones(own: Caller) -> None:
    query = "StructureDefinition?type=Patient&derivation=specialization,constraint&_total=accurate"
    answer = own.send("GET", query).json()
    urls = [entry["resource"]["url"] for entry in answer["entry"]]
    assert urls[:2] == ["http://example.com/A", "http://hl7.org/fhir/StructureDefinition/Patient"]
    assert answer["total"] == len(urls)
    assert found(own, "StructureDefinition?url=http://hl7.org/fhir/StructureDefinition/Bundle") == [
        "http://hl7.org/fhir/StructureDefinition/Bundle"
    ]
    assert found(own, "StructureDefinition?name=Bot") == ["https://medplum.com/fhir/StructureDefinition/Bot"]
    assert len(found(own, "SearchParameter?base=Patient&_count=100")) > 20


def test_pages_hold_each_once(own: Caller) -> None:
    total = own.send("GET", "StructureDefinition?_summary=count").json()["total"]
    seen: list[str] = []
    path = "StructureDefinition?_count=150&_elements=url"
    while path:
        answer = own.send("GET", path).json()
        seen += [entry["fullUrl"] for entry in answer.get("entry", ())]
        links = {link["relation"]: link["url"] for link in answer["link"]}
        path = links.get("next", "").removeprefix("http://127.0.0.1:8000")
    assert len(seen) == len(set(seen)) == total


def test_whoever_may_read_anything_may_read_definitions_and_nobody_writes_them(own: Caller) -> None:
    policy = own.create({"resourceType": "AccessPolicy", "resource": [{"resourceType": "Patient"}]})
    restricted = with_policy(own, policy["id"])
    assert restricted.send("GET", "StructureDefinition/Patient").status_code == 200
    resource = own.send("GET", "StructureDefinition/Patient").json()
    assert own.send("PUT", "StructureDefinition/Patient", resource).status_code == 404
    assert own.send("DELETE", "StructureDefinition/Patient").status_code == 404


def test_graphql_answers_what_clients_ask_for_a_schema(own: Caller) -> None:
    query = """{
      StructureDefinitionList(name: "Patient") { name kind snapshot { element { path min type { code } } } }
      SearchParameterList(base: "Patient", _count: 100) { base code type expression target }
    }"""
    answer = own.send("POST", "$graphql", {"query": query}).json()
    assert "errors" not in answer
    (definition,) = answer["data"]["StructureDefinitionList"]
    assert {"path": "Patient.active", "min": 0, "type": [{"code": "boolean"}]} in definition["snapshot"][
        "element"
    ]
    assert "birthdate" in {each["code"] for each in answer["data"]["SearchParameterList"]}
