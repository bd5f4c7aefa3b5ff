"""The project's own pages: details, people, client applications, Bots by membership."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods, require_safe

from console import access
from console.forms.admin import ClientForm, InviteForm
from console.forms.project import ProjectForm
from console.forms.schedule import zones
from console.htmx import render_page
from fhirstore.api import (
    FhirError,
    Invitation,
    Repository,
    client_create,
    member_invite,
    parse,
    project_update,
)

MAX_MEMBERS = 1000
CRUMBS = [("Project", "/admin/project")]
CLIENT_CRUMBS = [*CRUMBS, ("Clients", "/admin/clients")]


@require_safe
def project_page(request: HttpRequest) -> HttpResponse:
    """Name, id and features of the project, and where to go from here."""
    repository = access.admin(request)
    project = repository.read("Project", repository.identity.project).resource
    members = memberships(repository)
    counts = {kind: sum(_kind(m) == kind for m in members) for kind in ("Bot", "ClientApplication", "User")}
    return render_page(request, "admin/project.html", {"project": project, "counts": counts})


@require_http_methods(["GET", "HEAD", "POST"])
def project_settings(request: HttpRequest) -> HttpResponse:
    """Features and settings of the project."""
    repository = access.admin(request)
    stored, project = access.read(repository, "Project", repository.identity.project)
    form = ProjectForm.of(project, request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            project_update(repository, form.to_resource(project), if_match=stored.version_id)
        except FhirError as error:
            form.add_error(None, str(error))
        else:
            request.session[access.PROJECT_NAME_KEY] = form.cleaned_data["name"]
            messages.success(request, "Settings saved.")
            return HttpResponseRedirect("/admin/project")
    context = {"form": form, "zones": zones(), "crumbs": CRUMBS}
    return render_page(request, "admin/settings.html", context, status=422 if form.errors else 200)


@require_safe
def project_users(request: HttpRequest) -> HttpResponse:
    """The people of the project."""
    repository = access.admin(request)
    people = [member for member in memberships(repository) if _kind(member) == "User"]
    return render_page(request, "admin/users.html", {"people": people, "crumbs": CRUMBS})


@require_http_methods(["GET", "HEAD", "POST"])
def project_invite(request: HttpRequest) -> HttpResponse:
    """Make a person a member."""
    repository = access.admin(request)
    form = InviteForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        invitation = Invitation(
            profile_type=data["role"],
            first_name=data["first_name"],
            last_name=data["last_name"],
            email=data["email"],
            password=data["password"] or None,
            membership={"admin": True} if data["admin"] else None,
        )
        try:
            member_invite(repository, invitation)
        except FhirError as error:
            form.refuse(error.outcome)
        else:
            messages.success(request, "The person is a member now.")
            return HttpResponseRedirect("/admin/users")
    return render_page(
        request,
        "admin/invite.html",
        {"form": form, "crumbs": [*CRUMBS, ("Users", "/admin/users")]},
        status=422 if form.errors else 200,
    )


@require_safe
def project_bots(request: HttpRequest) -> HttpResponse:
    """Bots by membership: what they may do."""
    repository = access.admin(request)
    found = repository.search(parse("Bot", [("_sort", "-_lastUpdated"), ("_count", "200")])).entries
    by_profile = {(m.get("profile") or {}).get("reference"): m for m in memberships(repository)}
    rows = [(bot.resource, by_profile.get(f"Bot/{bot.id}")) for bot in found]
    return render_page(request, "admin/bots.html", {"rows": rows, "crumbs": CRUMBS})


@require_safe
def project_clients(request: HttpRequest) -> HttpResponse:
    """Client applications."""
    repository = access.admin(request)
    query = [("_sort", "-_lastUpdated"), ("_count", "200")]
    clients = [stored.resource for stored in repository.search(parse("ClientApplication", query)).entries]
    by_profile = {(m.get("profile") or {}).get("reference"): m for m in memberships(repository)}
    rows = [(client, by_profile.get(f"ClientApplication/{client['id']}")) for client in clients]
    return render_page(request, "admin/clients.html", {"rows": rows, "crumbs": CRUMBS})


@require_http_methods(["GET", "HEAD", "POST"])
def project_client_new(request: HttpRequest) -> HttpResponse:
    """Create a client application; this answer is the only one that shows its secret."""
    repository = access.admin(request)
    form = ClientForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        try:
            client = client_create(
                repository,
                name=data["name"],
                description=data["description"] or None,
                membership={"admin": True} if data["admin"] else None,
            )
        except FhirError as error:
            form.add_error(None, str(error))
        else:
            return render_page(
                request, "admin/client_created.html", {"client": client, "crumbs": CLIENT_CRUMBS}
            )
    return render_page(
        request,
        "admin/client_new.html",
        {"form": form, "crumbs": CLIENT_CRUMBS},
        status=422 if form.errors else 200,
    )


def memberships(repository: Repository) -> list[dict[str, Any]]:
    """All memberships of the project, newest first."""
    query = [("_sort", "-_lastUpdated"), ("_count", str(MAX_MEMBERS))]
    return [stored.resource for stored in repository.search(parse("ProjectMembership", query)).entries]


def _kind(membership: dict[str, Any]) -> str:
    return str((membership.get("user") or {}).get("reference", "")).partition("/")[0]
