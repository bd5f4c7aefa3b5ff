"""What every page gets: a request id, no caching of resource data, and refusals shown as pages.

The Content-Security-Policy of a page class stands in `CONTENT_SECURITY_POLICY` (settings) and, for the editor, at its view.
"""

from __future__ import annotations

import logging
import traceback
import uuid
from collections.abc import Callable
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.utils.cache import add_never_cache_headers

from console.access import AdminNeeded, SignInNeeded
from console.htmx import is_fragment
from console.views.errors import admin_needed, fhir_refusal, signed_out_fragment
from fhirstore.api import FhirError

logger = logging.getLogger(__name__)


class ConsoleMiddleware:
    """Frames the console's views; API views answer for themselves and pass through unchanged."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Give the request an id; answers that do not say otherwise must not be stored by browsers or proxies."""
        request.request_id = str(uuid.uuid4())  # type: ignore[attr-defined]  # also the trace id of what it writes
        response = self.get_response(request)
        if not response.has_header("Cache-Control") and not request.path.startswith("/static/"):
            add_never_cache_headers(response)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Turn the refusals of access helpers and Repository into pages; other exceptions go on to the 500 page."""
        if isinstance(exception, SignInNeeded):
            if is_fragment(request):
                return signed_out_fragment(request)
            return HttpResponseRedirect(f"/signin?{urlencode({'next': request.get_full_path()})}")
        if isinstance(exception, AdminNeeded):
            return admin_needed(request)
        if isinstance(exception, FhirError):
            return fhir_refusal(request, exception)
        # The place and the kind of the error, not its text: that may quote a resource.
        place = "".join(traceback.format_tb(exception.__traceback__))
        logger.error(
            "Request %s failed: %s\n%s",
            request.request_id,  # type: ignore[attr-defined]
            type(exception).__name__,
            place,
        )
        return None
