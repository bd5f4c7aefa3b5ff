"""Answers as bytes. Stored JSON is joined, not parsed, wherever nothing in it has to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import orjson

from fhirstore import binaries
from fhirstore.definitions import registry
from fhirstore.errors import FhirError, Outcome, all_ok, created, gone, issue, outcome, status_of
from fhirstore.includes import MAX_INCLUDED
from fhirstore.repository import SearchResult, Stored
from fhirstore.rest.messages import FHIR_JSON, FhirRequest, FhirResponse
from fhirstore.search.model import Cursor, SearchRequest
from fhirstore.search.parse import MAX_OFFSET, cursor_text

EXTENDED_META: Final = ("author", "project", "account", "accounts", "compartment", "onBehalfOf")
"""Elements of ``meta`` that are shown only to requests with ``X-Medplum: extended``."""

TRACING: Final = "https://medplum.com/fhir/StructureDefinition/tracing"
CURSOR_COUNT: Final = 20
"""Pages at least this large are followed by a cursor when they are in ascending order of ``_lastUpdated``."""
SUBSETTED: Final = {"system": "http://hl7.org/fhir/v3/ObservationValue", "code": "SUBSETTED"}


def respond_resource(
    request: FhirRequest,
    resource: Stored | Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> FhirResponse:
    """Answer with a resource.

    Args:
        request: decides about ``X-Medplum``, ``Prefer`` and ``_pretty``.
        resource: a stored version (gets ETag and Last-Modified, with 201 also Location, and what hooks warn of as Warning,
            RFC 7234 §5.5), or plain JSON; an OperationOutcome is sent with the status of its id.
        status: 200 or 201.
        headers: further headers.
    """
    if not isinstance(resource, Stored):
        if resource.get("resourceType") == "OperationOutcome":
            return respond_outcome(request, dict(resource), headers)
        return _respond(request, status, orjson.dumps(resource), headers)
    answer = _respond(request, status, b"", headers)
    answer.headers |= version_headers(resource)
    if status == 201:
        answer.headers["location"] = f"{request.base_url}fhir/R4/{resource.type}/{resource.id}"
    if warnings := request.repository.take_warnings():
        quoted = (text.replace("\\", "/").replace('"', "'") for text in warnings)
        answer.headers["warning"] = ", ".join(f'299 fhirbots "{text}"' for text in quoted)
    wanted = "" if request.method == "GET" else request.headers.get("prefer", "")
    if "return=OperationOutcome" in wanted:
        done = traced(
            created() if status == 201 else all_ok(), request.request_id, request.repository.trace_id
        )
        answer.body = _pretty(request, orjson.dumps(done))
    elif "return=minimal" not in wanted:
        answer.body = _pretty(request, resource_bytes(request, resource))
    return answer


def version_headers(stored: Stored) -> dict[str, str]:
    """``ETag`` and ``Last-Modified`` of a version."""
    return {"etag": f'W/"{stored.version_id}"', "last-modified": http_date(stored)}


def respond_outcome(
    request: FhirRequest, given: Outcome, headers: Mapping[str, str] | None = None
) -> FhirResponse:
    """Answer with an OperationOutcome, traced, with the status of its id."""
    body = orjson.dumps(traced(given, request.request_id, request.repository.trace_id))
    return _respond(request, status_of(given), body, headers)


def respond_error(error: FhirError, request_id: str, trace_id: str | None) -> FhirResponse:
    """Answer with the outcome of a refusal."""
    body = orjson.dumps(traced(error.outcome, request_id, trace_id))
    return FhirResponse(error.status, body, {"content-type": FHIR_JSON, **error.headers})


def traced(outcome: Outcome, request_id: str, trace_id: str | None) -> Outcome:
    """Return the outcome with the ids of request and trace, by which a report finds its way into the log."""
    ids = [{"url": "requestId", "valueId": request_id}]
    if trace_id:
        ids.append({"url": "traceId", "valueId": trace_id})
    return {**outcome, "extension": [*outcome.get("extension", ()), {"url": TRACING, "extension": ids}]}


def respond_search(request: FhirRequest, search: SearchRequest, result: SearchResult) -> FhirResponse:
    """Answer a search with a ``searchset`` Bundle (https://hl7.org/fhir/R4/search.html).

    Args:
        request: decides about the address of the links, ``X-Medplum`` and ``_pretty``.
        search: what was asked; of a search across types the request of one of them.
        result: what was found.
    """
    subsets: dict[str, frozenset[str] | None] = {}
    entries = []
    for stored in result.entries:
        if stored.type not in subsets:
            subsets[stored.type] = _subset_names(stored.type, search)
        names = subsets[stored.type]
        content = (
            resource_bytes(request, stored)
            if names is None
            else _subset(resource_json(request, stored), names)
        )
        entries.append(_search_entry(request, stored, b"match", content))
    entries += [
        _search_entry(request, stored, b"include", resource_bytes(request, stored))
        for stored in result.included
    ]
    if not result.complete:
        warning = issue(
            f"Not all included resources are sent: the limit is {MAX_INCLUDED} for each page",
            code="incomplete",
            severity="warning",
        )
        entries.append(
            b'{"search":{"mode":"outcome"},"resource":%b}' % orjson.dumps(outcome(None, [warning]))
        )
    links = _search_links(request, search, result)
    return _respond(request, 200, _bundle("searchset", result.total, links, entries))


def _search_entry(request: FhirRequest, stored: Stored, mode: bytes, content: bytes) -> bytes:
    return b'{"fullUrl":%b,"search":{"mode":"%b"},"resource":%b}' % (
        _full_url(request, stored),
        mode,
        content,
    )


def respond_history(
    request: FhirRequest,
    versions: Iterable[Stored],
    total: int | None,
    count: int,
    offset: int,
    *,
    more: bool,
) -> FhirResponse:
    """Answer with a ``history`` Bundle, newest version first; deletions have no resource."""
    entries = []
    methods = {"create": b"POST", "update": b"PUT", "delete": b"DELETE"}
    for stored in versions:
        url = f"{stored.type}" if stored.interaction == "create" else f"{stored.type}/{stored.id}"
        response: dict[str, Any] = {
            "status": {"create": "201", "update": "200", "delete": "204"}[stored.interaction],
            "etag": f'W/"{stored.version_id}"',
            "lastModified": stored.last_updated.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        if stored.deleted:
            response["outcome"] = gone().outcome
        entries.append(
            b'{"fullUrl":%b,"request":{"method":"%b","url":%b},%b"response":%b}'
            % (
                _full_url(request, stored),
                methods[stored.interaction],
                orjson.dumps(url),
                b"" if stored.deleted else b'"resource":%b,' % resource_bytes(request, stored),
                orjson.dumps(response),
            )
        )
    links = [("self", _page(request.path, request, offset, offset))]
    if more and count:
        links.append(("next", _page(request.path, request, offset, offset + count)))
    return _respond(request, 200, _bundle("history", total, links, entries))


def resource_bytes(request: FhirRequest, stored: Stored) -> bytes:
    """Return the JSON to send for a stored version: attachments presigned, extended meta only where asked for."""
    if request.headers.get("x-medplum") == "extended":
        return binaries.presign_urls(stored.content, request.repository)
    return orjson.dumps(resource_json(request, stored))


def resource_json(request: FhirRequest, stored: Stored) -> dict[str, Any]:
    """The same as :func:`resource_bytes`, parsed."""
    resource: dict[str, Any] = orjson.loads(binaries.presign_urls(stored.content, request.repository))
    if request.headers.get("x-medplum") != "extended" and (meta := resource.get("meta")):
        for name in EXTENDED_META:
            meta.pop(name, None)
    return resource


def http_date(stored: Stored) -> str:
    """The version's time for ``Last-Modified``."""
    return formatdate(stored.last_updated.timestamp(), usegmt=True)


def _respond(
    request: FhirRequest, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> FhirResponse:
    return FhirResponse(status, _pretty(request, body), {"content-type": FHIR_JSON, **(headers or {})})


def _pretty(request: FhirRequest, body: bytes) -> bytes:
    if body and "_pretty=true" in request.query:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2)
    return body


# --- Bundles ---------------------------------------------------------------------------------------------------------


def _bundle(kind: str, total: int | None, links: Iterable[tuple[str, str]], entries: list[bytes]) -> bytes:
    parts = [b'{"resourceType":"Bundle","type":"%b"' % kind.encode()]
    if total is not None:
        parts.append(b',"total":%d' % total)
    parts.append(b',"link":' + orjson.dumps([{"relation": relation, "url": url} for relation, url in links]))
    if entries:
        parts.append(b',"entry":[%b]' % b",".join(entries))
    parts.append(b"}")
    return b"".join(parts)


def _full_url(request: FhirRequest, stored: Stored) -> bytes:
    return orjson.dumps(f"{request.base_url}fhir/R4/{stored.type}/{stored.id}")


def _search_links(request: FhirRequest, search: SearchRequest, result: SearchResult) -> list[tuple[str, str]]:
    """The links self, first, next and previous; every one can be fetched by GET, also after POST _search."""
    path = request.path.strip("/").removesuffix("_search").rstrip("/")
    address = f"{request.root}{path}"
    links = [("self", address + (f"?{search.query}" if search.query else ""))]
    if search.count == 0:
        return links
    pairs = [
        pair
        for pair in parse_qsl(search.query, keep_blank_values=True)
        if pair[0] not in ("_offset", "_cursor")
    ]

    def page(*place: tuple[str, str]) -> str:
        query = urlencode([*pairs, *place])
        return f"{address}?{query}" if query else address

    links.append(("first", page()))
    if result.has_next:
        links.append(("next", page(_next_page(search, result, across=not path))))
    if search.offset > 0:
        offset = search.offset - search.count
        links.append(("previous", page(("_offset", str(offset))) if offset > 0 else page()))
    return links


def _next_page(search: SearchRequest, result: SearchResult, *, across: bool) -> tuple[str, str]:
    """The parameter that leads to the next page: a cursor where one works and pays, else an offset."""
    offset = search.offset + search.count
    by_time = [sort.parameter.code for sort in search.sort] in ([], ["_lastUpdated"])
    ascending = bool(search.sort) and not search.sort[0].descending
    pays = (
        across
        or search.cursor is not None
        or (ascending and search.count >= CURSOR_COUNT)
        or offset > MAX_OFFSET
    )
    if by_time and pays and result.entries:
        last = result.entries[-1]
        milliseconds = round(last.last_updated.timestamp() * 1000)
        return "_cursor", cursor_text(Cursor(milliseconds, last.type, last.id))
    return "_offset", str(offset)


def _page(path: str, request: FhirRequest, current: int, offset: int) -> str:
    pairs = [pair for pair in parse_qsl(request.query, keep_blank_values=True) if pair[0] != "_offset"]
    if offset:
        pairs.append(("_offset", str(offset)))
    return f"{request.root}{path}" + (f"?{urlencode(pairs)}" if pairs else "")


# --- parts of resources ------------------------------------------------------------------------------------------------


def _subset_names(type: str, search: SearchRequest) -> frozenset[str] | None:
    """The elements to keep, by their base name (``value`` for ``value[x]``); None for whole resources.

    A type that declares no summary is sent whole. A name that is a search parameter and no element (columns of Medplum's
    app may be) asks for the whole resource too: what it is computed from could be anywhere.
    """
    structure = registry.structure(type)
    if structure is None or (search.fields is None and search.summary is None):
        return None
    elements = structure.children()
    names = frozenset(element.name for element in elements)
    required = {element.name for element in elements if element.min > 0}
    if search.summary == "data":
        return names - {"text"}
    if search.summary == "text":
        return frozenset({"text"} | required)
    if search.fields is None:
        return frozenset({*structure.summary, *required}) if structure.summary else None
    asked = frozenset(
        field.removeprefix(f"{type}.").split(".")[0].removesuffix("[x]") for field in search.fields
    )
    parameters = registry.search_parameters(type)
    if any(name in parameters and not name.startswith("_") for name in asked - names):
        return None
    return asked


def _subset(resource: dict[str, Any], names: frozenset[str]) -> bytes:
    """Serialise the named elements, ``resourceType``, ``id`` and ``meta``, which is tagged SUBSETTED."""
    kept = {
        key: value
        for key, value in resource.items()
        if key in {"resourceType", "id"} or _base_name(key, names) is not None
    }
    meta = resource.get("meta") or {}
    kept["meta"] = {**meta, "tag": [*(meta.get("tag") or ()), SUBSETTED]}
    return orjson.dumps(kept)


def _base_name(key: str, names: frozenset[str]) -> str | None:
    key = key.removeprefix("_")
    if key in names:
        return key
    return next((name for name in names if key.startswith(name) and key[len(name)].isupper()), None)
