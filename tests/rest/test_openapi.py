"""The OpenAPI document: whole in itself, and true."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rest.conftest import Caller

METHODS = {"get", "put", "post", "delete", "patch"}


@pytest.fixture(scope="module")
def document(home: Caller) -> dict[str, Any]:
    answer = home.send("GET", "/openapi.json", authorization="")
    assert (answer.status_code, answer["content-type"]) == (
        200,
        "application/json; charset=utf-8",
    )
    assert answer["x-content-type-options"] == "nosniff"
    return answer.json()


def calls(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and Operation Object of each call."""
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            yield path, method, item[method]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)


def resolve(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_the_document_is_whole(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document.keys() == {"openapi", "info", "servers", "security", "tags", "paths", "components"}
    for reference in set(references(document)):
        assert resolve(document, reference), reference
    ids = Counter(call["operationId"] for _, _, call in calls(document))
    assert [id for id, count in ids.items() if count > 1] == []
    tags = {tag["name"] for tag in document["tags"]}
    schemes = document["components"]["securitySchemes"].keys()
    for path, item in document["paths"].items():
        assert path.startswith("/")
        assert item.keys() <= METHODS | {"parameters"}, path
        assert item.keys() & METHODS, path
    for path, method, call in calls(document):
        given = [*document["paths"][path].get("parameters", ()), *call.get("parameters", ())]
        given = [resolve(document, each["$ref"]) if "$ref" in each else each for each in given]
        assert all(each["required"] and each["schema"] for each in given if each["in"] == "path")
        assert {each["name"] for each in given if each["in"] == "path"} == set(
            re.findall(r"\{(\w+)\}", path)
        ), path
        assert len({(each["in"], each["name"]) for each in given}) == len(given), (path, method)
        assert call["responses"].keys() >= {"default"}
        assert set(call["tags"]) <= tags
        assert all(each.keys() <= schemes for each in call.get("security", ()))
        assert method in ("post", "put", "patch") or "requestBody" not in call
        assert call["summary"]
        assert not any(word in call["summary"] for word in ("`", "shared/", "docs/", "raises")), call[
            "summary"
        ]


def test_it_tells_types_with_parameters_operations_and_what_is_beside(document: dict[str, Any]) -> None:
    paths = document["paths"]
    search = {each.get("name") for each in paths["/fhir/R4/Patient"]["get"]["parameters"]}
    assert {"family", "birthdate", "_lastUpdated"} <= search
    assert paths["/fhir/R4/Bot/{id}/$execute"].keys() >= {"get", "post"}
    assert "get" not in paths["/fhir/R4/Binary"], "which is not searchable"
    invite = paths["/admin/projects/{project}/invite"]["post"]["requestBody"]["content"]["application/json"]
    assert invite["schema"]["properties"]["email"] == {"type": "string", "format": "email"}
    assert set(invite["schema"]["required"]) >= {"resourceType", "firstName", "lastName"}
    assert paths["/auth/login"]["post"]["security"] == []
    assert "application/x-www-form-urlencoded" in paths["/oauth2/token"]["post"]["requestBody"]["content"]
    assert {"/auth/me", "/keyvalue/v1/{key}", "/admin/projects/{project}/bot"} <= paths.keys()
    assert not any(path.startswith(("/signin", "/admin/bots")) for path in paths), "no pages"


@pytest.mark.parametrize("type", ["Patient", "Binary", "Bot", "ValueSet", "system", "beside"])
def test_every_path_is_there_with_its_methods(home: Caller, document: dict[str, Any], type: str) -> None:
    """A method nobody takes is answered with those that are taken."""
    told: dict[str, set[str]] = {}
    for path, method, _ in calls(document):
        below = path.removeprefix("/fhir/R4")
        of = "beside" if below == path else below.split("/")[1] if below[1:2].isupper() else "system"
        if of == type:
            told.setdefault(path, set()).add(method.upper())
    assert told
    for path, methods in told.items():
        at = path.replace("{project}", home.project).replace("{type}", "Basic")
        at = re.sub(r"\{\w+\}", str(uuid.uuid4()), at)
        answer = home.send("TRACE", at)
        assert answer.status_code == 405, (path, answer.content)
        allowed = set(answer["allow"].replace(" ", "").split(",")) - {"HEAD", "OPTIONS"}
        if path != "/fhir/R4/Binary":  # where those that search are only refused otherwise
            assert allowed <= methods, path
