"""Binary: the one resource whose content travels as raw bytes (https://hl7.org/fhir/R4/binary.html)."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, Final
from urllib.parse import parse_qs

import orjson

from fhirstore import binaries
from fhirstore.definitions import registry
from fhirstore.errors import FhirError, bad_request, content_too_large, forbidden, issue, outcome
from fhirstore.operations import OperationRequest
from fhirstore.repository import Stored
from fhirstore.rest import interactions
from fhirstore.rest.body import media_type, parse_json
from fhirstore.rest.limits import CHUNK, MAX_MEMORY, json_limit
from fhirstore.rest.messages import FhirRequest, FhirResponse
from fhirstore.rest.response import http_date, respond_resource

MAX_HELD: Final = 64 * 2**20
"""Bytes that a caller inside the process (a Bot, a batch) gets at once."""

RAW_HEADERS = {
    # The bytes are whatever somebody uploaded: never to run in this origin.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "x-content-type-options": "nosniff",
}


def create(request: FhirRequest, type: str) -> FhirResponse:
    """``POST /Binary?_filename=…``: the body is the content, unless it is a Binary resource with ``data``."""
    return _store(request, None)


def update(request: FhirRequest, type: str, id: str) -> FhirResponse:
    """``PUT /Binary/id``: replace the content, as :func:`create`."""
    return _store(request, id)


def read(request: FhirRequest, type: str, id: str) -> FhirResponse:
    """``GET /Binary/id``: the resource if ``Accept`` begins with application/fhir+json, else the bytes."""
    if _wants_resource(request):
        return interactions.read(request, type, id)
    return _raw(request, id, None)


def read_version(request: FhirRequest, id: str, version: str) -> FhirResponse:
    """``GET /Binary/id/_history/version``, as :func:`read`."""
    if _wants_resource(request):
        return interactions.read_version(request, "Binary", id, version)
    return _raw(request, id, version)


def presigned_url(request: OperationRequest) -> dict[str, Any]:
    """``GET /Binary/id/$presigned-url``: an address that gives the bytes without login, for one hour.

    With ``upload=true`` an address to PUT new bytes to, which then are stored as the caller.

    Raises:
        FhirError: 403 for an upload by somebody who may not update the Binary, and whatever reading it raises.
    """
    assert request.id is not None
    repository = request.repository
    stored = repository.read("Binary", request.id)
    if parse_qs(request.query).get("upload") == ["true"]:
        repository.check_update("Binary", request.id)
        membership = repository.identity.membership
        if membership is None or repository.identity.on_behalf_of:
            raise forbidden("An address for uploads is made for the member who asks for it only")
        url = binaries.presigned_upload(stored.id, stored.version_id, repository.identity.project, membership)
    else:
        url = _url(request, stored)
    return {"resourceType": "Parameters", "parameter": [{"name": "url", "valueUri": url}]}


def respond_content(stored: Stored, content: BinaryIO, headers: Mapping[str, str]) -> FhirResponse:
    """Answer with the bytes of a Binary, or a range of them (https://www.rfc-editor.org/rfc/rfc9110#section-14).

    Args:
        stored: the Binary.
        content: its bytes, closed at the end.
        headers: of the request: ``Range``, ``If-Range`` and ``If-None-Match`` count.
    """
    size = content.seek(0, os.SEEK_END)
    etag = f'W/"{stored.version_id}"'
    answer = FhirResponse(
        200,
        headers={
            "content-type": _content_type(stored),
            "etag": etag,
            "last-modified": http_date(stored),
            "accept-ranges": "bytes",
            **RAW_HEADERS,
        },
    )
    start, end = 0, size
    wanted = headers.get("range")
    if etag in (part.strip() for part in headers.get("if-none-match", "").split(",")):
        answer.status, end = 304, 0
    elif wanted is not None and headers.get("if-range", etag) in (etag, http_date(stored)):
        match _range(wanted, size):
            case (start, end):
                answer.status = 206
                answer.headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
            case "unsatisfiable":
                content.close()
                refused = FhirError(
                    outcome("range-not-satisfiable", [issue(f"The content has {size} bytes")]),
                    {"content-range": f"bytes */{size}"},
                )
                raise refused
    content.seek(start)
    if end - start <= MAX_MEMORY:
        with content:
            answer.body = content.read(end - start)
    else:
        answer.headers["content-length"] = str(end - start)
        answer.stream = _Piece(content, end - start)
    return answer


def _content_type(stored: Stored) -> str:
    """What the Binary says it is, unless no header can say it: a code may hold line breaks."""
    said = stored.resource.get("contentType") or ""
    return said if re.fullmatch(r"[\x20-\x7e]+", said) else "application/octet-stream"


_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def _range(text: str, size: int) -> tuple[int, int] | str | None:
    """Start and end (exclusive) of a range, ``unsatisfiable``, or None for what is to be ignored (several ranges too)."""
    found = _RANGE.fullmatch(text.replace(" ", ""))
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
        return (start, end) if end > start else "unsatisfiable"
    start, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    if end <= start:
        return None if found[2] and start < size else "unsatisfiable"
    return (start, min(end, size)) if start < size else "unsatisfiable"


class _Piece:
    """So many bytes of a file from where it stands, in chunks; closed with the response."""

    def __init__(self, content: BinaryIO, length: int) -> None:
        self._content, self._left = content, length

    def __iter__(self) -> _Piece:
        return self

    def __next__(self) -> bytes:
        chunk = self._content.read(min(CHUNK, self._left))
        if not chunk:
            self.close()
            raise StopIteration
        self._left -= len(chunk)
        return chunk

    def close(self) -> None:
        self._content.close()


def _store(request: FhirRequest, id: str | None) -> FhirResponse:
    resource = _binary_resource(request)
    if resource is None:
        stored = request.repository.store_binary(
            request.content or io.BytesIO(request.body),
            request.headers.get("content-type") or "application/octet-stream",
            filename=parse_qs(request.query).get("_filename", [None])[0],
            security_context=_security_context(request),
            id=id,
            if_match=interactions.if_match(request),
        )
    elif id is None:
        stored = request.repository.create(resource)
    elif resource.setdefault("id", id) == id:
        stored, _ = request.repository.update(resource, if_match=interactions.if_match(request))
    else:
        raise bad_request("Incorrect resource ID")
    answer = respond_resource(request, stored, 200 if id else 201)
    if answer.body:
        # Medplum's client makes attachments of this url, so it has to be there.
        answer.body = orjson.dumps({**orjson.loads(answer.body), "url": _url(request, stored)})
    return answer


def _security_context(request: FhirRequest) -> str | None:
    """The reference in ``X-Security-Context``; raises FhirError (400) for what is none."""
    reference = request.headers.get("x-security-context")
    if reference:
        type, _, id = reference.partition("/")
        if not registry.is_resource_type(type) or not id or "/" in id:
            raise bad_request("X-Security-Context must be a reference such as Patient/{id}")
    return reference or None


def _binary_resource(request: FhirRequest) -> dict[str, Any] | None:
    """The body, if it is a Binary resource sent as JSON; None if it is content, which may well be other JSON."""
    if media_type(request) not in ("application/fhir+json", "application/json"):
        return None
    body = request.body
    if request.content is not None:
        limit = json_limit()
        body = request.content.read(limit + 1)
        request.content.seek(0)
        if len(body) > limit:
            if b'"Binary"' in body[:1000]:
                raise content_too_large(
                    f"A Binary with data may have {limit} bytes; send its bytes as they are instead"
                )
            return None
    if b'"Binary"' not in body:
        return None
    value = parse_json(body)
    return value if isinstance(value, dict) and value.get("resourceType") == "Binary" else None


def _raw(request: FhirRequest, id: str, version: str | None) -> FhirResponse:
    stored, content = request.repository.open_binary(id, version)
    answer = respond_content(stored, content, request.headers)
    if answer.stream is not None and not request.streams:
        length = int(answer.headers.pop("content-length"))
        chunks = answer.stream
        answer.stream = None
        if length > MAX_HELD:
            content.close()
            raise content_too_large(
                f"The content has {length} bytes; here it may have {MAX_HELD}. Ask for a range"
            )
        answer.body = b"".join(chunks)
    return answer


def _wants_resource(request: FhirRequest) -> bool:
    return request.headers.get("accept", "").startswith("application/fhir+json")


def _url(request: FhirRequest, stored: Stored) -> str:
    return binaries.presigned_url(stored.id, stored.version_id, request.repository.identity.project)
