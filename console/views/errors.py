"""Error pages: what happened, where, and what to do next (shared/ux.md §7.20)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent
from django.http import HttpRequest, HttpResponse

from console.access import visitor_of
from console.htmx import render_page
from fhirstore.api import FhirError, Repository, Stored, parse, system_identity


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error page: a title and one sentence on how to go on."""

    title: str
    text: str


REFUSALS = {
    400: Refusal("This request cannot be read", "Correct it and try again."),
    403: Refusal("You may not do this", "Your access policy does not allow it. Ask a project admin."),
    404: Refusal(
        "Not found, or not in this project",
        "Check the address, or look for it in the list of its type.",
    ),
    405: Refusal("This address takes no such request", "Go back and use the buttons of the page."),
    409: Refusal("This conflicts with another change", "Reload the page and try again."),
    410: Refusal("Deleted", "Its versions are still in the history."),
    412: Refusal("Changed by someone else", "Reload to see the newer version, then make your change again."),
    413: Refusal("Input too large", "Send less at once."),
    429: Refusal("Too many requests", "Wait a moment, then try again."),
    500: Refusal(
        "Something broke on our side", "It was not you. Tell your administrator the request id below."
    ),
    503: Refusal("A part of the server cannot be reached", "Look at the health page, then try again."),
}


def refusal_page(request: HttpRequest, status: int, text: str = "", **context: Any) -> HttpResponse:
    """Render the error page of a status; for htmx only a message for the message region.

    Args:
        request: the request.
        status: HTTP status.
        text: the server's own words, shown between title and advice.
        context: further values of the template.
    """
    refusal = REFUSALS.get(status) or REFUSALS[400 if status < 500 else 500]
    values = {
        "refusal": refusal,
        "status_code": status,
        "text": text,
        "type_url": _type_url(request),
        **context,
    }
    return render_page(request, "errors/error.html", values, fragment="errors/_error.html", status=status)


def fhir_refusal(request: HttpRequest, error: FhirError) -> HttpResponse:
    """The page of a refused read or write: the OperationOutcome's texts are shown as they are."""
    if error.status == 410:
        return deleted_page(request)
    return refusal_page(request, error.status, "" if error.status == 404 else str(error))


def deleted_page(request: HttpRequest) -> HttpResponse:
    """410: who deleted it and when, and the way to its last version."""
    visitor, (_root, kind, id, *_rest) = visitor_of(request), [*request.path.split("/"), "", ""]
    versions: list[Stored] = []
    if visitor is not None:
        with contextlib.suppress(FhirError):  # whoever may read but not see the history gets the plain page
            versions = Repository(visitor.identity).history(kind, id, count=2)[0]
    if not versions or not versions[0].deleted:
        return refusal_page(request, 410)
    author = (versions[0].resource.get("meta") or {}).get("author") or {}
    title = f"Deleted by {author.get('display') or author.get('reference') or 'somebody'}"
    last = f"/{kind}/{id}/history/{versions[1].version_id}" if len(versions) > 1 else ""
    context: dict[str, Any] = {
        "deleted": versions[0].last_updated,
        "history_url": f"/{kind}/{id}/history",
        "last_url": last,
    }
    text = "Its versions are still in the history; the last one can be restored."
    return refusal_page(request, 410, refusal=Refusal(title, text), **context)


def admin_needed(request: HttpRequest) -> HttpResponse:
    """403 for a member who is no project admin, with the names of those who are."""
    visitor = visitor_of(request)
    admins = project_admins(visitor.identity.project) if visitor else []
    names = f" Ask {', '.join(admins)}." if admins else ""
    kind = request.path.split("/")[1]
    pages = {"Bot": "Bots", "Subscription": "Subscriptions", "AuditEvent": "Events"}.get(kind, "this page")
    return refusal_page(
        request,
        403,
        refusal=Refusal("Only project admins can do this", f"Only project admins can see {pages}.{names}"),
    )


def project_admins(project: str) -> list[str]:
    """Names of the people who administer a project, at most five."""
    repository = Repository(system_identity(project))
    found = repository.search(parse("ProjectMembership", [("admin", "true"), ("_count", "50")]))
    profiles = [stored.resource.get("profile") or {} for stored in found.entries]
    people = [p for p in profiles if not p.get("reference", "").startswith(("Bot/", "ClientApplication/"))]
    return [p["display"] for p in people if p.get("display")][:5]


def signed_out_fragment(request: HttpRequest) -> HttpResponse:
    """For htmx: the session has ended. The page stays, so that nothing typed is lost."""
    return render_page(request, "errors/_signed_out.html", {}, status=401)


def _type_url(request: HttpRequest) -> str:
    first = request.path.split("/")[1]
    return f"/{first}" if first[:1].isupper() and first.isalpha() else ""


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """400: Django could not read the request; 413 if it is too large."""
    if isinstance(exception, RequestDataTooBig):
        limit = f"At most {settings.DATA_UPLOAD_MAX_MEMORY_SIZE // 1024 // 1024} MB can be sent at once."
        return refusal_page(request, 413, limit)
    if isinstance(exception, TooManyFieldsSent):
        return refusal_page(request, 413, "The form has too many fields. Edit the resource as JSON.")
    return refusal_page(request, 400)


def page_not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """404: no such address."""
    return refusal_page(request, 404)


def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """403 raised by Django."""
    return refusal_page(request, 403)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """403: the form's token is missing or old, usually because someone signed in again in another tab."""
    text = "It was opened before you signed in again. Reload the page and send it once more."
    if request.headers.get("HX-Request"):
        text = "It was opened before you signed in again. Reload the page: the editor offers your text again."
    return refusal_page(request, 403, refusal=Refusal("The form is out of date", text))


def server_error(request: HttpRequest) -> HttpResponse:
    """500 with the request id; what broke is in the server's log."""
    return refusal_page(request, 500)
