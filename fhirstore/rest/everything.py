"""``Patient/{id}/$everything``: a patient, the patient's compartment, and whom and what these resources refer to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlencode

import orjson

from fhirstore.definitions import registry
from fhirstore.errors import FhirError, bad_request
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.repository import Repository, SearchResult, Stored
from fhirstore.rest.parameters import Input, read_input
from fhirstore.rest.response import resource_bytes
from fhirstore.search.model import SearchRequest
from fhirstore.search.parse import MAX_COUNT, MAX_OFFSET, parse
from fhirstore.search.sql import MAX_PAGE_BYTES, PageTooLargeError
from fhirstore.search.terms import canonical_uuid

Json = dict[str, Any]

CARE_DATES: Final = (
    "date",
    "period",
    "started",
    "authored-on",
    "authored",
    "authoredon",
    "occurrence",
    "onset-date",
    "effective",
    "effective-time",
    "whenhandedover",
    "sent",
    "identified",
    "datetime",
    "datewritten",
    "collected",
    "created",
)
"""Search parameters that say when care took place; the first one a type has counts."""

SUPPORTING: Final = frozenset(
    {"Device", "Location", "Medication", "Organization", "Practitioner", "PractitionerRole"}
)
"""Types outside of any compartment that are sent along when a resource of the page refers to them."""


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation("$everything", patient_everything, types=["Patient"], instance=True)


def patient_everything(request: OperationRequest) -> Json:
    """``GET`` or ``POST /Patient/{id}/$everything`` → searchset Bundle, the patient first.

    Parameters: ``start`` and ``end`` (dates of care; types without such a date are always in, resources without one are
    then not), ``_since`` (instant), ``_type`` (comma list), ``_count`` (1000), ``_offset``.

    Raises:
        FhirError: 404 or 410 for the patient, 400 for invalid parameters.
    """
    assert request.id is not None
    given = read_input(request)
    repository = request.repository
    patient = repository.read("Patient", request.id)
    count = given.whole_number("_count", MAX_COUNT, lowest=1, highest=MAX_COUNT)
    offset = given.whole_number("_offset", 0, highest=10**9)
    if offset > MAX_OFFSET:
        raise bad_request(f"Search offset exceeds maximum (got {offset}, max {MAX_OFFSET})")
    wanted = _types(given)
    own = [parse("Patient", [("_id", patient.id)])]
    others = [_search(type, patient.id, given) for type in sorted(registry.get().patient_compartment)]
    searches = [search for search in own + others if not wanted or search.type in wanted]
    found = []
    size = 0
    for stored in _walk(repository, searches, offset, count + 1):
        found.append(stored)
        size += len(stored.content)
        if size > MAX_PAGE_BYTES and len(found) > 2:
            raise PageTooLargeError
    page = found[:count]
    entries = [_entry(request, stored, "match") for stored in page]
    entries += [_entry(request, stored, "include") for stored in _supporting(repository, page, wanted)]
    links = [("self", offset), *([("next", offset + count)] if len(found) > count else [])]
    bundle: Json = {
        "resourceType": "Bundle",
        "type": "searchset",
        "link": [{"relation": name, "url": _link(request, given, at)} for name, at in links],
    }
    if entries:
        bundle["entry"] = entries
    return bundle


def _types(given: Input) -> frozenset[str]:
    """The types asked for; none for all."""
    names = frozenset(name for text in given.texts("_type") for name in text.split(",") if name)
    for name in sorted(names):
        if not registry.is_resource_type(name):
            raise bad_request(f"Unknown resource type: {name}")
    return names


def _search(type: str, patient_id: str, given: Input) -> SearchRequest:
    query = [("_compartment", f"Patient/{patient_id}"), ("_sort", "_lastUpdated")]
    if type == "Patient":
        query.append(("_id:not", patient_id))  # comes first, whatever was asked for
    if since := given.text("_since"):
        query.append(("_lastUpdated", f"ge{since}"))
    parameters = registry.search_parameters(type)
    care_date = next((code for code in CARE_DATES if code in parameters), None)
    for name, prefix in (("start", "ge"), ("end", "le")):
        if (day := given.text(name)) and care_date:
            query.append((care_date, f"{prefix}{day}"))
    return parse(type, query)


def _walk(
    repository: Repository, searches: Iterable[SearchRequest], skip: int, room: int
) -> Iterator[Stored]:
    """At most `room` matches behind the first `skip`, search after search."""
    for search in searches:
        if (
            skip
            and (total := _matches(repository, replace(search, count=0, total="accurate")).total or 0) <= skip
        ):
            skip -= total
            continue
        more = True
        while more and room > 0:
            result = _matches(repository, replace(search, count=min(room, MAX_COUNT), offset=skip))
            yield from result.entries
            skip += len(result.entries)
            room -= len(result.entries)
            more = result.has_next
        skip = 0


def _matches(repository: Repository, search: SearchRequest) -> SearchResult:
    """The matches of a search; none of a type the caller may not search."""
    try:
        return repository.search(search)
    except FhirError as error:
        if error.status != 403:
            raise
        return SearchResult([])


def _supporting(repository: Repository, page: Iterable[Stored], wanted: frozenset[str]) -> Iterator[Stored]:
    """What the resources of a page refer to outside of compartments, as far as the caller may see it."""
    references: dict[str, dict[str, None]] = {}
    for stored in page:
        for type, id in _references(stored.resource):
            if type in SUPPORTING and (not wanted or type in wanted):
                references.setdefault(type, {})[id] = None
    for type, ids in sorted(references.items()):
        listed = list(ids)
        for start in range(0, len(listed), 100):
            query = [("_id", ",".join(listed[start : start + 100])), ("_count", "100")]
            yield from _matches(repository, parse(type, query)).entries


def _references(value: Any) -> Iterator[tuple[str, str]]:
    """(type, id) of each local reference inside a value."""
    if isinstance(value, dict):
        reference = value.get("reference")
        if isinstance(reference, str) and reference.count("/") == 1:
            type, _, id = reference.partition("/")
            if canonical_uuid(id):
                yield type, id
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _entry(request: OperationRequest, stored: Stored, mode: str) -> Json:
    return {
        "fullUrl": f"{request.base_url}fhir/R4/{stored.type}/{stored.id}",
        "search": {"mode": mode},
        "resource": orjson.Fragment(resource_bytes(request, stored)),
    }


def _link(request: OperationRequest, given: Input, offset: int) -> str:
    """An address that can be fetched by GET, also where the parameters came in a body."""
    pairs = [(name, str(value)) for name, value in given.values if name != "_offset"]
    query = urlencode([*pairs, ("_offset", str(offset))] if offset else pairs)
    return f"{request.root}{request.path}" + (f"?{query}" if query else "")
