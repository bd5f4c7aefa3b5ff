"""The definitions FHIR and Medplum publish, as resources every project can read and search behind its own ones.

They are no rows: they come with the assets, are the same for all, cannot be changed, and have the ids they were published with
(``StructureDefinition/Patient``). A search finds a project's own resources first, in the order asked for, then these, in the
order of their publication; pages by cursor hold own ones only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import orjson

from fhirstore.definitions import registry
from fhirstore.definitions.registry import Library
from fhirstore.errors import FhirError
from fhirstore.repository import Repository, SearchResult, Stored
from fhirstore.search.index import index
from fhirstore.search.match import match
from fhirstore.search.model import IndexValues, SearchRequest

Json = dict[str, Any]

TYPES: Final = frozenset({"CodeSystem", "ConceptMap", "SearchParameter", "StructureDefinition", "ValueSet"})

PUBLICATION: Final = datetime(2019, 11, 1, tzinfo=UTC)
"""Of R4: ``meta.lastUpdated`` of all of them."""

VERSION: Final = "1"


def read(repository: Repository, type: str, id: str) -> Stored | None:
    """Return the published resource with an id, None if there is none or its type may not be read."""
    if type not in TYPES or id not in _ids(type) or not repository.may_search(type):
        return None
    return _stored(type, _ids(type)[id])


def find(type: str, url: str) -> Json | None:
    """Return the published resource with a canonical URL (a version is ignored), None if there is none."""
    found = _library(type).get(type, url.partition("|")[0])
    return None if found is None else _with_meta(found)


def search(repository: Repository, request: SearchRequest) -> SearchResult:
    """Search as :meth:`Repository.search` does, among the published resources as well; raises the same."""
    result = repository.search(request)
    if request.type not in TYPES or request.cursor is not None or request.deleted:
        return result
    matches = _matches(request)
    total = None if result.total is None else result.total + len(matches)
    result = replace(result, total=total)
    if result.has_next or not request.count:
        return result
    own = len(result.entries)
    before = request.offset
    if before and not own:  # the page begins behind the own ones: how many are these?
        counted = repository.search(replace(request, count=0, offset=0, total="accurate"))
        before = counted.total or 0
    start = max(0, request.offset - before - own) if not own else 0
    wanted = matches[start : start + request.count - own]
    more = len(matches) > start + len(wanted)
    entries = [*result.entries, *(_stored(request.type, url) for url in wanted)]
    return replace(result, entries=entries, has_next=more)


def _matches(request: SearchRequest) -> Sequence[str]:
    """The URLs of the published resources that fit; none for a search that only the database can answer."""
    try:
        return [url for url, values in _indexed(request.type) if match(request, values)]
    except (FhirError, ValueError):
        return []


def _library(type: str) -> Library:
    return registry.published() if type in ("SearchParameter", "StructureDefinition") else registry.library()


@cache
def _ids(type: str) -> dict[str, str]:
    return dict(_library(type).ids(type))


@cache
def _indexed(type: str) -> list[tuple[str, IndexValues]]:
    """What each is found by, read once: some hundred milliseconds for a type."""
    library = _library(type)
    return [(url, index(_with_meta(library.get(type, url) or {}))) for url in _ids(type).values()]


def _with_meta(resource: Json) -> Json:
    meta = {"versionId": VERSION, "lastUpdated": PUBLICATION.isoformat().replace("+00:00", "Z")}
    head = {"resourceType": resource["resourceType"], "id": resource.get("id"), "meta": meta}
    return head | {key: value for key, value in resource.items() if key not in head}


def _stored(type: str, url: str) -> Stored:
    resource = find(type, url)
    assert resource is not None
    return Stored(type, resource["id"], VERSION, PUBLICATION, orjson.dumps(resource), interaction="create")
