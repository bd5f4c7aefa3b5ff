"""The FHIR interactions on resources (https://hl7.org/fhir/R4/http.html): read the request, ask the Repository, answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl

from fhirstore import database, published
from fhirstore import patch as patches
from fhirstore.definitions import registry
from fhirstore.errors import all_ok, bad_request, multiple_matches, not_found
from fhirstore.patch import Change
from fhirstore.repository import Stored
from fhirstore.rest.body import read_form, read_json, read_resource
from fhirstore.rest.messages import FhirRequest, FhirResponse
from fhirstore.rest.parameters import read_instant
from fhirstore.rest.response import (
    respond_history,
    respond_outcome,
    respond_resource,
    respond_search,
    version_headers,
)
from fhirstore.search.parse import parse_system
from fhirstore.search.terms import canonical_uuid

MAX_HISTORY = 1000


def search(request: FhirRequest, type: str) -> FhirResponse:
    """``GET /T?…`` and ``POST /T/_search``, whose form is joined to the query."""
    wanted = request.repository.parse(type, _search_query(request), base_url=f"{request.base_url}fhir/R4/")
    return respond_search(request, wanted, published.search(request.repository, wanted))


def search_system(request: FhirRequest) -> FhirResponse:
    """``GET /?_type=A,B&…`` and ``POST /_search``."""
    wanted = parse_system(
        _search_query(request),
        base_url=f"{request.base_url}fhir/R4/",
        parameters=request.repository.search_parameters,
    )
    return respond_search(request, wanted[0], request.repository.search_types(wanted))


def _search_query(request: FhirRequest) -> str | list[tuple[str, str]]:
    if request.method == "POST":
        return [*parse_qsl(request.query, keep_blank_values=True), *read_form(request)]
    return request.query


def create(request: FhirRequest, type: str, id: str | None = None) -> FhirResponse:
    """``POST /T``; with ``If-None-Exist`` an existing single match is answered instead.

    `id` is the id the server has chosen for the resource already (in a batch, for references among its entries).
    """
    resource = read_resource(request)
    check_type(resource, type)
    _set_account(request, resource)
    condition = request.headers.get("if-none-exist")
    if not condition:
        return respond_resource(request, request.repository.create(resource, id=id), 201)
    condition = condition.removeprefix("?")
    with _alone(request, type, condition):
        existing = find_single(request, type, condition)
        if existing is not None:
            return respond_resource(request, existing)
        return respond_resource(request, request.repository.create(resource, id=id), 201)


def create_new(request: FhirRequest, type: str, id: str) -> FhirResponse:
    """Create with the id the server has chosen; whatever condition there was has been looked at."""
    resource = read_resource(request)
    check_type(resource, type)
    _set_account(request, resource)
    return respond_resource(request, request.repository.create(resource, id=id), 201)


def read(request: FhirRequest, type: str, id: str) -> FhirResponse:
    """``GET /T/id``; 304 for who has seen that version (``If-None-Match``, ``If-Modified-Since``)."""
    stored = published.read(request.repository, type, id) or request.repository.read(type, id)
    if is_known(request, stored):
        return FhirResponse(304, headers=version_headers(stored))
    return respond_resource(request, stored)


def read_version(request: FhirRequest, type: str, id: str, version: str) -> FhirResponse:
    """``GET /T/id/_history/version``."""
    return respond_resource(request, request.repository.read_version(type, id, version))


def history(request: FhirRequest, type: str, id: str) -> FhirResponse:
    """``GET /T/id/_history``; ``_count`` up to 1000 (100 if not given), ``_offset``."""
    pairs = dict(parse_qsl(request.query, keep_blank_values=True))
    count = _whole_number(pairs, "_count", default=100, highest=MAX_HISTORY)
    offset = _whole_number(pairs, "_offset", default=0, highest=10_000)
    versions, total = request.repository.history(type, id, count=count, offset=offset)
    return respond_history(request, versions, total, count, offset, more=offset + count < total)


def history_of_type(request: FhirRequest, type: str) -> FhirResponse:
    """``GET /T/_history``; ``_count``, ``_offset``, and ``_since`` an instant."""
    pairs = dict(parse_qsl(request.query, keep_blank_values=True))
    count = _whole_number(pairs, "_count", default=100, highest=MAX_HISTORY)
    offset = _whole_number(pairs, "_offset", default=0, highest=10_000)
    since = read_instant("_since", pairs["_since"]) if pairs.get("_since") else None
    versions, more = request.repository.history_of_type(type, count=count, offset=offset, since=since)
    return respond_history(request, versions, None, count, offset, more=more)


def update(request: FhirRequest, type: str, id: str) -> FhirResponse:
    """``PUT /T/id``; ``If-Match`` guards against overwriting somebody else's version."""
    resource = read_resource(request)
    if resource.get("resourceType") != type:
        raise bad_request("Incorrect resource type")
    if resource.get("id") != id:
        raise bad_request("Incorrect resource ID")
    stored, _ = request.repository.update(resource, if_match=if_match(request))
    return respond_resource(request, stored)


def patch(request: FhirRequest, type: str, id: str) -> FhirResponse:
    """``PATCH /T/id`` with a JSON Patch (RFC 6902) or a FHIRPath Patch."""
    operations = read_patch(request)
    return respond_resource(
        request, request.repository.patch(type, id, operations, if_match=if_match(request))
    )


def delete(request: FhirRequest, type: str, id: str) -> FhirResponse:
    """``DELETE /T/id``."""
    request.repository.delete(type, id, if_match=if_match(request))
    return respond_outcome(request, all_ok())


# --- by condition ----------------------------------------------------------------------------------------------------


def conditional_update(request: FhirRequest, type: str, id: str | None = None) -> FhirResponse:
    """``PUT /T?query``: no match creates (with the id the server has chosen), one match is updated."""
    check_type(read_resource(request), type)
    condition = _condition(request)
    with _alone(request, type, condition):
        return update_or_create(request, type, find_single(request, type, condition), id)


def update_or_create(
    request: FhirRequest, type: str, existing: Stored | None, id: str | None
) -> FhirResponse:
    """The second half of a conditional update, when its match is known.

    Raises:
        FhirError: 400 if the body has the id of another resource.
    """
    resource = read_resource(request)
    check_type(resource, type)
    if existing is None:
        resource.pop("id", None)
        return respond_resource(request, request.repository.create(resource, id=id), 201)
    if resource.setdefault("id", existing.id) != existing.id:
        raise bad_request("Incorrect resource ID: it differs from the match of the condition")
    stored, _ = request.repository.update(resource, if_match=if_match(request))
    return respond_resource(request, stored)


def conditional_patch(request: FhirRequest, type: str) -> FhirResponse:
    """``PATCH /T?query``: one match is patched."""
    operations = read_patch(request)
    existing = find_single(request, type, _condition(request))
    if existing is None:
        raise not_found()
    return respond_resource(
        request, request.repository.patch(type, existing.id, operations, if_match=if_match(request))
    )


def conditional_delete(request: FhirRequest, type: str) -> FhirResponse:
    """``DELETE /T?query``: no match is fine, one match is deleted."""
    existing = find_single(request, type, _condition(request))
    if existing is not None:
        request.repository.delete(type, existing.id, if_match=if_match(request))
    return respond_outcome(request, all_ok())


def find_single(request: FhirRequest, type: str, condition: str) -> Stored | None:
    """Return the one match of a search, None for no match.

    Raises:
        FhirError: 412 for several matches, 400 for a condition that is no search or restricts nothing.
    """
    parsed = request.repository.parse(
        type, condition.removeprefix("?"), base_url=f"{request.base_url}fhir/R4/"
    )
    wanted = replace(parsed, count=2, offset=0, total="none")
    if not wanted.clauses:
        raise bad_request("The condition names no search parameter")
    matches = request.repository.search(wanted).entries
    if len(matches) > 1:
        raise multiple_matches()
    return matches[0] if matches else None


@contextmanager
def _alone(request: FhirRequest, type: str, condition: str) -> Iterator[None]:
    """Keep others with the same condition waiting until this one is committed: two of them must not both create."""
    with request.repository.transaction():
        database.lock(condition_lock(request.repository.identity.project, type, condition))
        yield


def condition_lock(project: str, type: str, condition: str | None) -> str:
    """The name of the lock that keeps others with the same condition waiting."""
    return f"{project} {type}?{condition}"


def _condition(request: FhirRequest) -> str:
    if not request.query:
        raise bad_request(f"{request.method} on a type needs a condition: {request.path}?parameter=value")
    return request.query


# --- parts of requests -----------------------------------------------------------------------------------------------


def check_type(resource: dict[str, Any], type: str) -> None:
    """Raise FhirError (400) if the body is not of the type in the path."""
    if (found := resource.get("resourceType")) != type:
        raise bad_request(f"Incorrect resource type: expected {type}, but found {found or '<EMPTY>'}")


def if_match(request: FhirRequest) -> str | None:
    """The version id of ``If-Match: W/"…"``, None without the header or for ``*``, which any version fits."""
    version = _version_of(request.headers.get("if-match", ""))
    return None if version in ("", "*") else version


def is_known(request: FhirRequest, stored: Stored) -> bool:
    """True if a reader has this version already, as ``If-None-Match`` says, else ``If-Modified-Since`` (RFC 9110)."""
    if (tags := request.headers.get("if-none-match")) is not None:
        return any(_version_of(tag) in ("*", stored.version_id) for tag in tags.split(","))
    try:
        since = parsedate_to_datetime(request.headers["if-modified-since"])
        return stored.last_updated.replace(microsecond=0) <= since
    except (KeyError, ValueError, TypeError):  # missing, no date, or one without time zone
        return False


def _version_of(tag: str) -> str:
    return tag.strip().removeprefix("W/").strip('"')


def _set_account(request: FhirRequest, resource: dict[str, Any]) -> None:
    """``?_account=Type/id`` stands for ``meta.account``, which the Repository takes from admins only."""
    account = dict(parse_qsl(request.query)).get("_account")
    if account is None:
        return
    type, _, id = account.partition("/")
    if not registry.is_resource_type(type) or canonical_uuid(id) is None:
        raise bad_request(f"Invalid _account: expected Type/id, found {account}")
    meta = resource.get("meta")
    resource["meta"] = {**(meta if isinstance(meta, dict) else {}), "account": {"reference": account}}


def read_patch(request: FhirRequest) -> Change:
    """Return what the patch in the body does.

    Raises:
        FhirError: 400 for an empty body or anything but a JSON Patch or a FHIRPath Patch.
    """
    if not request.body:
        raise bad_request("Empty patch body")
    return patches.read_patch(read_json(request))


def _whole_number(pairs: dict[str, str], name: str, *, default: int, highest: int) -> int:
    text = pairs.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise bad_request(f"Invalid {name}: expected a whole number")
    number = int(text[:9])
    if name == "_offset" and number > highest:
        raise bad_request(f"Search offset exceeds maximum (got {number}, max {highest})")
    return min(number, highest)
