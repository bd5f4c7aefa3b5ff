"""The HTTP side of the FHIR API: thin adapters on the router, and presigned storage."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from fhirstore import binaries, rates
from fhirstore.auth.identities import identity_of_membership
from fhirstore.errors import forbidden, method_not_allowed, not_found
from fhirstore.identity import system_identity
from fhirstore.repository import Repository
from fhirstore.rest.binary import respond_content
from fhirstore.rest.http import endpoint, read_body, read_content, refusing, repository_of, to_django
from fhirstore.rest.messages import FhirRequest, FhirResponse
from fhirstore.rest.metadata import respond_metadata
from fhirstore.rest.router import handle

_BINARY_CONTENT = re.compile(r"Binary(/[^/]+)?/?")


@refusing
def fhir(
    request: HttpRequest,
    *,
    headers: dict[str, str],
    request_id: str,
    trace: str,
    prefix: str,
    project: str | None = None,
    path: str = "",
) -> HttpResponseBase:
    """Everything below ``fhir/R4/``.

    Args:
        prefix: path of the FHIR root as called, without slashes around.
        project: where the path names one; 403 for every project but the caller's, there or not.
        path: below the FHIR root.
    """
    repository = repository_of(request, headers, trace)
    if project is not None and project != repository.identity.project:
        raise forbidden()
    with ExitStack() as stack:
        content, body = None, b""
        if request.method in ("POST", "PUT") and _BINARY_CONTENT.fullmatch(path):
            content = stack.enter_context(read_content(request, headers))
        else:
            body = read_body(request, headers)
        identity = repository.identity
        used = rates.interactions.use(
            identity.membership or identity.profile, rates.points(request.method or "", path, body)
        )
        fhir_request = FhirRequest(
            method="GET" if request.method == "HEAD" else request.method or "",
            path=path,
            query=request.META.get("QUERY_STRING", ""),
            headers=headers,
            body=body,
            repository=repository,
            base_url=settings.BASE_URL,
            prefix=f"{prefix}/",
            request_id=request_id,
            content=content,
            streams=True,
        )
        answer = handle(fhir_request)
        if used:
            others = answer.headers.get("RateLimit")
            answer.headers["RateLimit"] = f"{used}, {others}" if others else used
        return to_django(answer)


@endpoint("GET", public=True)
def metadata(request: HttpRequest, name: str) -> HttpResponseBase:
    """``metadata`` and ``$versions``, which need no login."""
    return to_django(respond_metadata(settings.BASE_URL, name))


@refusing
def storage(
    request: HttpRequest, *, headers: dict[str, str], request_id: str, trace: str, id: str, version: str
) -> HttpResponseBase:
    """The bytes behind a presigned URL, without login: to be read (GET) or replaced (PUT)."""
    if request.method == "PUT":
        membership = binaries.verify_upload(id, version, request.GET.dict())
        repository = Repository(identity_of_membership(membership), trace_id=trace)
        with read_content(request, headers) as content:
            stored = repository.store_binary(
                content, headers.get("content-type") or "application/octet-stream", id=id
            )
        return to_django(FhirResponse(200, b"", {"etag": f'W/"{stored.version_id}"'}))
    if request.method not in ("GET", "HEAD"):
        raise method_not_allowed(("GET", "PUT"))
    project = binaries.verify(id, version, request.GET.dict())
    repository = Repository(system_identity(project))
    repository.read("Binary", id)  # deleted meanwhile, it is gone for whoever holds an address as well
    stored, content = repository.open_binary(id, version)
    answer = respond_content(stored, content, headers)
    answer.headers["cache-control"] = f"private, max-age={binaries.EXPIRY}"
    return to_django(answer)


@refusing
def nothing(request: HttpRequest, **_: Any) -> HttpResponse:
    """Paths of the API that do not exist: an outcome instead of a page."""
    raise not_found()
