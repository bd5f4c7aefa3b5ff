"""The project's own pages: details, people, client applications, Bots by membership."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods, require_safe

from console import access, tables
from console.forms.admin import ClientForm, InviteForm
from console.forms.project import ProjectForm
from console.forms.schedule import zones
from console.htmx import render_page
from console.views.bot import named
from fhirstore.api import (
    FhirError,
    Invitation,
    Repository,
    client_create,
    member_invite,
    parse,
    project_update,
)

PAGE: Final = 50
MEMBERS: Final = {
    "Bot": ("profile-type", "Bot"),
    "ClientApplication": ("profile-type", "ClientApplication"),
    "User": ("profile-type:not", "Bot,ClientApplication"),
}
"""Kinds of members, each with the filter that finds their memberships."""
Json = dict[str, Any]
CRUMBS = [("Project", "/admin/project")]
CLIENT_CRUMBS = [*CRUMBS, ("Clients", "/admin/clients")]


@require_safe
def project_page(request: HttpRequest) -> HttpResponse:
    """Name, id and features of the project, and where to go from here."""
    repository = access.admin(request)
    project = repository.read("Project", repository.identity.project).resource
    counts = {kind: _count(repository, member_filter) for kind, member_filter in MEMBERS.items()}
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
    wanted = request.GET.get("name", "").strip()
    filters = [MEMBERS["User"]]
    if wanted:
        text = wanted.replace("\\", "\\\\").replace('"', '\\"')
        filters.append(("_filter", f'profile.name co "{text}" or profile.email eq "{text}"'))
    people, page = _page(request, repository, "ProjectMembership", filters)
    return render_page(request, "admin/users.html", {"people": people, "crumbs": CRUMBS} | page)


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
            send_email=data["send_email"],
        )
        try:
            member_invite(repository, invitation)
        except FhirError as error:
            form.refuse(error.outcome)
        else:
            sent = " An email with a link to choose a password was sent." if data["send_email"] else ""
            messages.success(request, f"The person is a member now.{sent}")
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
    bots, page = _page(request, repository, "Bot", named(request.GET.get("name", "").strip()))
    rows = _with_memberships(repository, bots)
    return render_page(request, "admin/bots.html", {"rows": rows, "crumbs": CRUMBS} | page)


@require_safe
def project_clients(request: HttpRequest) -> HttpResponse:
    """Client applications."""
    repository = access.admin(request)
    clients, page = _page(
        request, repository, "ClientApplication", named(request.GET.get("name", "").strip())
    )
    rows = _with_memberships(repository, clients)
    return render_page(request, "admin/clients.html", {"rows": rows, "crumbs": CRUMBS} | page)


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


def _page(
    request: HttpRequest, repository: Repository, type: str, filters: Sequence[tuple[str, str]]
) -> tuple[list[Json], Json]:
    """A page of a list, newest first, and what its template needs to page and to search by name."""
    offset = tables.offset_of(request.GET)
    query = [*filters, ("_sort", "-_lastUpdated"), ("_count", str(PAGE)), ("_offset", str(offset))]
    found = repository.search(parse(type, query))
    name = request.GET.get("name", "").strip()
    pager = tables.pages([("name", name)] if name else [], offset, PAGE, found.has_next)
    return [stored.resource for stored in found.entries], {"name": name, "path": request.path, **pager}


def _with_memberships(repository: Repository, resources: Sequence[Json]) -> list[tuple[Json, Json | None]]:
    """Bots or clients, each with its membership."""
    if not resources:
        return []
    profiles = [f"{each['resourceType']}/{each['id']}" for each in resources]
    found = repository.search_all("ProjectMembership", [("profile", ",".join(profiles))])
    by_profile = {stored.resource["profile"]["reference"]: stored.resource for stored in found}
    return [(each, by_profile.get(profile)) for each, profile in zip(resources, profiles, strict=True)]


def _count(repository: Repository, member_filter: tuple[str, str]) -> int | None:
    query = [member_filter, ("_count", "0"), ("_total", "accurate")]
    return repository.search(parse("ProjectMembership", query)).total
