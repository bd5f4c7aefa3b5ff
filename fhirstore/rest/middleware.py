"""The way of API requests: straight to their view, past all that only the console's pages need.

Sessions, CSRF tokens, messages and nonces cost more than reading a resource does, and the API knows no cookies. What its
answers carry instead stands here: security headers, no caching, and CORS for the origins that may.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import uuid
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse
from django.urls import Resolver404, resolve

from fhirstore import rates
from fhirstore.errors import FhirError
from fhirstore.rest.http import to_django
from fhirstore.rest.response import respond_error
from fhirstore.rest.views import nothing

API: Final = re.compile(
    r"/(?:api/)?(?:projects/[^/]+/)?"
    r"(?:fhir|auth|oauth2|admin/projects|email|keyvalue|storage|\.well-known|cds-services|webhook|openapi\.json)(?:/|$)"
)
PAGES: Final = frozenset({"/oauth2/authorize"})
"""API paths that are pages for a person with a session."""

HEADERS: Final = {
    "Cache-Control": "no-store, no-cache, must-revalidate",
    "Pragma": "no-cache",
    "Expires": "0",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}

EXPOSED: Final = "Content-Location, Content-Range, ETag, Last-Modified, Location, RateLimit"


class ApiMiddleware:
    """Answers the API's paths itself; the first in settings.MIDDLEWARE."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response
        base = urlsplit(settings.BASE_URL)
        self.origins = {f"{base.scheme}://{base.netloc}", *getattr(settings, "CORS_ALLOWED_ORIGINS", ())}
        self.headers = dict(HEADERS)
        if settings.SECURE_HSTS_SECONDS:
            self.headers["Strict-Transport-Security"] = f"max-age={settings.SECURE_HSTS_SECONDS}"

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if settings.TRUST_PROXY_HEADERS:
            _take_address(request)
        path = request.path_info
        if not API.match(path) or path in PAGES:
            return self.get_response(request)
        origin = request.META.get("HTTP_ORIGIN")
        preflight = request.method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in request.META
        response = HttpResponse(status=204) if preflight else _limited(request)
        for name, value in self.headers.items():
            response.headers.setdefault(name, value)
        if isinstance(response, HttpResponse):
            response.headers["Content-Length"] = str(len(response.content))
            if request.method == "HEAD":
                response.content = b""
        elif request.method == "HEAD":
            response.close()
            response = HttpResponse(status=response.status_code, headers=dict(response.headers))
        if origin and not path.startswith(("/webhook/", "/api/webhook/")):
            response.headers["Vary"] = "Origin"
            if origin in self.origins or "*" in self.origins:
                _allow(request, response, origin, preflight=preflight)
        return response


def _take_address(request: HttpRequest) -> None:
    """Put the client's address in the place of the proxy's: the last one of ``X-Forwarded-For``, which the proxy itself wrote."""
    given = request.META.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
    with contextlib.suppress(ValueError):
        request.META["REMOTE_ADDR"] = str(ipaddress.ip_address(given))


def _limited(request: HttpRequest) -> HttpResponseBase:
    """Call the view, unless the address has sent too many requests."""
    try:
        used = rates.requests.use(request.META.get("REMOTE_ADDR", ""))
    except FhirError as error:
        return to_django(respond_error(error, str(uuid.uuid4()), None))
    response = _call_view(request)
    if used:
        others = response.headers.get("RateLimit")
        response.headers["RateLimit"] = f"{used}, {others}" if others else used
    return response


def _call_view(request: HttpRequest) -> HttpResponseBase:
    try:
        view, arguments, keywords = resolve(request.path_info)
    except Resolver404:
        return nothing(request)
    response: HttpResponseBase = view(request, *arguments, **keywords)
    if isinstance(response, SimpleTemplateResponse):
        response.render()
    return response


def _allow(request: HttpRequest, response: HttpResponseBase, origin: str, *, preflight: bool) -> None:
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Allow-Credentials"] = "true"
    response.headers["Access-Control-Expose-Headers"] = EXPOSED
    if preflight:
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
        wanted = request.META.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
        response.headers["Access-Control-Allow-Headers"] = wanted
        response.headers["Access-Control-Max-Age"] = "600"
