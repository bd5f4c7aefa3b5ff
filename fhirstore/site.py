"""The API for a client inside the process, as a Bot's is: the same routes without HTTP and without a login."""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.handlers.wsgi import WSGIRequest
from django.template.response import SimpleTemplateResponse
from django.urls import Resolver404, resolve

from fhirstore.errors import not_found
from fhirstore.repository import Repository
from fhirstore.rest.messages import FhirRequest, FhirResponse
from fhirstore.rest.response import respond_error
from fhirstore.rest.router import handle

_FHIR: Final = re.compile(r"(?P<prefix>(?:api/)?fhir/R4)(?:/(?P<path>.*))?", re.DOTALL)
_OTHERS: Final = re.compile(r"(?:auth/me$|admin/projects/|email/|keyvalue/|storage/|cds-services)")
"""What else a client may call: all but the ways to log in."""


def handle_site_request(
    method: str, url: str, headers: Mapping[str, str], body: bytes, repository: Repository
) -> FhirResponse:
    """Answer a request to this site made by somebody who is known already.

    Args:
        method: HTTP method.
        url: absolute, or relative to the root of the site.
        headers: by any case of name; credentials among them are ignored.
        body: the bytes.
        repository: who asks; its trace and depth are kept.

    Returns:
        the answer of the route; a 404 outcome for everything that is no part of the API.
    """
    path, _, query = url.removeprefix(settings.BASE_URL).removeprefix("/").partition("#")[0].partition("?")
    path = unquote(path)
    lower = {name.lower(): value for name, value in headers.items()}
    if found := _FHIR.fullmatch(path):
        return handle(
            FhirRequest(
                method=method,
                path=found["path"] or "",
                query=query,
                headers=lower,
                body=body,
                repository=repository,
                base_url=settings.BASE_URL,
                prefix=f"{found['prefix']}/",
            )
        )
    if _OTHERS.match(path):
        try:
            return _call_view(method, path, query, lower, body, repository)
        except Resolver404:
            pass
    return respond_error(not_found(), str(uuid.uuid4()), repository.trace_id)


def _call_view(
    method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, repository: Repository
) -> FhirResponse:
    """Call the Django view of a path, as its Repository's owner; raises Resolver404."""
    base = urlsplit(settings.BASE_URL)
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": f"/{path}",
        "QUERY_STRING": query,
        "SERVER_NAME": base.hostname or "localhost",
        "SERVER_PORT": str(base.port or {"http": 80, "https": 443}.get(base.scheme, 80)),
        "CONTENT_TYPE": headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.url_scheme": base.scheme,
        "wsgi.input": io.BytesIO(body),
    }
    for name, value in headers.items():
        if name not in ("content-type", "content-length", "transfer-encoding", "authorization"):
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    view, arguments, keywords = resolve(f"/{path}")
    request = WSGIRequest(environ)
    request.repository = repository  # type: ignore[attr-defined]  # read by repository_of()
    response = view(request, *arguments, **keywords)
    if isinstance(response, SimpleTemplateResponse):
        response.render()
    content = b"".join(response.streaming_content) if response.streaming else response.content
    response.close()
    return FhirResponse(
        response.status_code, content, {name.lower(): value for name, value in response.headers.items()}
    )
