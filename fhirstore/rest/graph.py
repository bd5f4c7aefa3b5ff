"""``/T/{id}/$graph``: a resource and what a GraphDefinition says belongs to it (https://hl7.org/fhir/R4/graphdefinition.html)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from fhirstore import published
from fhirstore.definitions import registry
from fhirstore.errors import FhirError, bad_request, too_costly
from fhirstore.fhirpath import evaluate
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.repository import Stored
from fhirstore.rest.parameters import read_input
from fhirstore.rest.response import resource_bytes
from fhirstore.search.parse import MAX_COUNT, parse
from fhirstore.search.sql import MAX_PAGE_BYTES

Json = dict[str, Any]

MAX_RESOURCES: Final = 1000
MAX_LEVELS: Final = 10
MAX_STEPS: Final = 3000
"""Links followed from resources; each is a read or a search."""


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation("$graph", graph, instance=True)


def graph(request: OperationRequest) -> Json:
    """``GET`` or ``POST /T/{id}/$graph?graph={name or url}`` → a Bundle of type ``collection``, the resource itself first.

    Raises:
        FhirError: 400 without ``graph``, for a GraphDefinition that is not there, begins at another type, or cannot be followed;
            404 or 410 for the resource.
    """
    assert request.type is not None
    assert request.id is not None
    name = read_input(request).required("graph")
    repository = request.repository
    parameter = "url" if "://" in name else "name"
    definition = repository.search_one("GraphDefinition", [(parameter, name.replace(",", "\\,"))])
    if definition is None:
        raise bad_request("GraphDefinition not found")
    resource = definition.resource
    if resource["start"] != request.type:
        raise bad_request(f"The GraphDefinition begins at {resource['start']}, not at {request.type}")
    walk = _Walk(request)
    start = repository.read(request.type, request.id)
    walk.add(start)
    walk.follow(start, resource.get("link", ()), 1)
    entries = [
        {
            "fullUrl": f"{request.base_url}fhir/R4/{stored.type}/{stored.id}",
            "resource": orjson.Fragment(resource_bytes(request, stored)),
        }
        for stored in walk.found.values()
    ]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries}


class _Walk:
    """Follows links, each resource and link once."""

    def __init__(self, request: OperationRequest) -> None:
        self.request = request
        self.found: dict[tuple[str, str], Stored] = {}
        self._followed: set[tuple[str, str, int, int]] = set()
        self._steps = 0
        self._size = 0

    def add(self, stored: Stored) -> None:
        """Take a resource along."""
        if (stored.type, stored.id) not in self.found:
            self._size += len(stored.content)
        self.found[stored.type, stored.id] = stored
        if self._size > MAX_PAGE_BYTES:
            raise too_costly(f"The graph has more than {MAX_PAGE_BYTES >> 20} MB")
        if len(self.found) > MAX_RESOURCES:
            raise bad_request(f"The graph has more than {MAX_RESOURCES} resources")

    def follow(self, stored: Stored, links: Any, level: int) -> None:
        """Take along what the links of a resource lead to, and what follows from there."""
        if level > MAX_LEVELS:
            raise bad_request(f"The GraphDefinition has more than {MAX_LEVELS} levels")
        # Each list of links once from each resource: circles would be walked again and again otherwise.
        here = (stored.type, stored.id, id(links), level)
        if here in self._followed:
            return
        self._followed.add(here)
        self._follow(stored, links, level)

    def _follow(self, stored: Stored, links: Any, level: int) -> None:
        for link in links:
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise bad_request(f"The graph takes more than {MAX_STEPS} steps to follow")
            targets: list[Json] = link.get("target", [])
            if path := link.get("path"):
                reached = list(self._along(stored, path))
                for target in targets or [{}]:
                    for other in reached:
                        if target.get("type", other.type) in (other.type, "Resource"):
                            self.add(other)
                            self.follow(other, target.get("link", ()), level + 1)
            else:
                for target in targets:
                    for other in self._back(stored, target):
                        self.add(other)
                        self.follow(other, target.get("link", ()), level + 1)

    def _along(self, stored: Stored, path: str) -> Iterator[Stored]:
        """What the references and canonical addresses at a path lead to; what cannot be seen is left out."""
        for value in evaluate(path, stored.resource):
            reference = value.get("reference") if isinstance(value, dict) else value
            if not isinstance(reference, str):
                continue
            type, _, id = reference.partition("/")
            if registry.is_resource_type(type) and id and "/" not in id:
                yield from self._seen(type, id)
            elif "://" in reference:
                for canonical in (
                    "PlanDefinition",
                    "ActivityDefinition",
                    "Questionnaire",
                    "Library",
                    "Measure",
                ):
                    query = [("url", reference.partition("|")[0].replace(",", "\\,"))]
                    yield from self._search(canonical, query, 1)

    def _back(self, stored: Stored, target: Json) -> Iterator[Stored]:
        """The resources of a type that refer to this one, as ``params`` says (``patient={ref}``)."""
        type, params = target.get("type", ""), target.get("params")
        if not registry.is_resource_type(type) or not params or "{ref}" not in params:
            raise bad_request("A link without path needs targets with type and params that hold {ref}")
        query = params.replace("{ref}", f"{stored.type}/{stored.id}")
        yield from self._search(type, parse_qsl(query, keep_blank_values=True), MAX_COUNT)

    def _seen(self, type: str, id: str) -> Iterator[Stored]:
        try:
            repository = self.request.repository
            yield published.read(repository, type, id) or repository.read(type, id)
        except FhirError as error:
            if error.status >= 500:
                raise

    def _search(self, type: str, query: list[tuple[str, str]], count: int) -> Iterator[Stored]:
        search = replace(parse(type, query), count=count)
        try:
            yield from self.request.repository.search(search).entries
        except FhirError as error:
            if error.status != 403:
                raise
