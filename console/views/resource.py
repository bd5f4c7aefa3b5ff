"""Pages of any resource: list, timeline, details, form, JSON, delete."""

from __future__ import annotations

from typing import Any, Final

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods, require_safe

from console import access, navigation, tables
from console.forms.structure import StructureForm, read_exactly
from console.htmx import is_fragment, render_page
from console.story import bot_story
from fhirstore.api import FhirError, Repository, parse, resource_types, search_parameters

PAGE_SIZE: Final = 20

LIST_NAMES: Final = {"AuditEvent": "Events", "Bot": "Bots", "Subscription": "Subscriptions"}

Json = dict[str, Any]


@require_safe
def resource_types_page(request: HttpRequest) -> HttpResponse:
    """All resource types."""
    access.member(request)
    wanted = request.GET.get("q", "").strip()
    names = sorted(name for name in resource_types() if wanted.lower() in name.lower())
    return render_page(request, "resource/types.html", {"names": names, "q": wanted})


@require_safe
def resource_list(request: HttpRequest, type: str) -> HttpResponse:
    """A list whose address tells everything: filters, columns, order and page."""
    repository = access.member_for(request, type)
    query = [(name, value) for name, values in request.GET.lists() for value in values]
    if not any(name in ("_fields", "_add") for name, _ in query):
        fields = ",".join(tables.default_fields(type))
        defaults = {"count": str(PAGE_SIZE), "fields": fields, "offset": "0", "sort": "-_lastUpdated"}
        given = {name.removeprefix("_") for name, _ in query}
        missing = {name: value for name, value in defaults.items() if name not in given}
        return HttpResponseRedirect(f"/{type}?{tables.with_parameters(query, **missing)}")
    if "_add" in request.GET:
        return HttpResponseRedirect(f"/{type}?{_with_filter(query)}")
    return render_page(request, "resource/list.html", list_context(repository, type, query))


def list_context(repository: Repository, type: str, query: list[tuple[str, str]]) -> Json:
    """The values of a list page.

    Args:
        repository: of the reader.
        type: resource type.
        query: parameters of the address; `_fields` names the columns.

    Raises:
        FhirError: 400, the search cannot be read.
    """
    fields = [name for name in dict(query).get("_fields", "").split(",") if name]
    search = repository.parse(type, [(name, value) for name, value in query if name != "_fields"])
    found = repository.search(search)
    rows = [tables.row(stored.resource, fields) for stored in found.entries]
    pager = tables.pages(query, search.offset, search.count, found.has_next)
    first = search.offset + 1
    return {
        "type": type,
        "new_url": f"/{type}/new",
        "columns": tables.columns(type, fields, query),
        "rows": rows,
        **pager,
        "range": pager["pager_text"] or (f"{first} to {search.offset + len(rows)}" if rows else ""),
        "filters": [(name, value, f"?{_without(query, name, value)}") for name, value in _filters(query)],
        "clear_url": f"?{tables.with_parameters([(n, v) for n, v in query if n in tables.CONTROL_PARAMETERS], offset=0)}",
        "unknown_fields": tables.unknown_fields(type, fields),
        "fields": ",".join(fields),
        "hidden": [(name, value) for name, value in query if name not in ("_fields", "_offset")],
        "keep": query,
        "parameters": sorted(search_parameters(type), key=lambda code: (code.startswith("_"), code)),
    }


@require_safe
def resource_page(request: HttpRequest, type: str, id: str) -> HttpResponse:
    """The timeline of a resource: its versions, and the Bot runs it caused."""
    repository = access.member_for(request, type)
    stored, resource = access.read(repository, type, id)
    items, older = bot_story(repository, stored, before=request.GET.get("before"))
    context = _context(resource, "Timeline") | {"items": items, "older": older}
    return render_page(request, "resource/timeline.html", context)


@require_safe
def resource_details(request: HttpRequest, type: str, id: str) -> HttpResponse:
    """All elements of a resource, its id on top."""
    repository = access.member_for(request, type)
    _stored, resource = access.read(repository, type, id)
    facts = [
        (name, tables.text_of(value), value if isinstance(value, dict | list) else None)
        for name, value in resource.items()
        if name not in ("resourceType", "id", "meta")
    ]
    return render_page(
        request,
        "resource/details.html",
        _context(resource, "Details") | {"facts": facts, "base_url": settings.BASE_URL},
    )


@require_safe
def resource_json(request: HttpRequest, type: str, id: str) -> HttpResponse:
    """The JSON as it is stored."""
    repository = access.member_for(request, type)
    _stored, resource = access.read(repository, type, id)
    return render_page(request, "resource/json.html", _context(resource, "JSON") | {"value": resource})


@require_http_methods(["GET", "HEAD", "POST"])
def resource_new(request: HttpRequest, type: str) -> HttpResponse:
    """Create a resource, by form or as JSON."""
    repository = access.member_for(request, type)
    form = StructureForm(type, {"resourceType": type}, request.POST if request.method == "POST" else None)
    form.show(request.GET.get("view", "form"))
    if request.method == "POST" and form.is_submitted:
        try:
            stored = repository.create(form.resource)
        except FhirError as error:
            form.refuse(error)
        else:
            messages.success(request, _said(f"{type} created.", form))
            return _redirect(request, f"/{type}/{stored.id}")
    context = {
        "form": form,
        "type": type,
        "title": f"New {type}",
        "button": "Create",
        "crumbs": [(type, f"/{type}")],
        "cancel_url": f"/{type}",
    }
    return render_page(
        request,
        "resource/form.html",
        context,
        fragment="resource/_form.html",
        status=_form_status(request, form),
    )


@require_http_methods(["GET", "HEAD", "POST"])
def resource_edit(request: HttpRequest, type: str, id: str) -> HttpResponse:
    """Change a resource; what the form cannot show stays as it is."""
    repository = access.member_for(request, type)
    stored, resource = access.read(repository, type, id)
    form = StructureForm(
        type,
        read_exactly(stored.content),
        request.POST if request.method == "POST" else None,
        version=stored.version_id,
    )
    form.show(request.GET.get("view", "form"))
    if request.method == "POST" and form.is_submitted:
        try:
            updated = {**form.resource, "resourceType": type, "id": id}
            _stored, is_new = repository.update(updated, if_match=form.version or None)
        except FhirError as error:
            form.refuse(error)
        else:
            messages.success(request, _said("Saved." if is_new else "Nothing has changed.", form))
            return _redirect(request, f"/{type}/{id}")
    context = _context(resource, "Edit") | {"form": form, "type": type, "button": "Update"}
    return render_page(
        request,
        "resource/edit.html",
        context,
        fragment="resource/_form.html",
        status=_form_status(request, form),
    )


@require_http_methods(["GET", "HEAD", "POST"])
def resource_delete(request: HttpRequest, type: str, id: str) -> HttpResponse:
    """Ask, naming what still points here; then delete."""
    repository = access.member_for(request, type)
    _stored, resource = access.read(repository, type, id)
    name = resource_name_to_type(resource)
    error = ""
    if request.method == "POST":
        if request.POST.get("name", "").strip() == name:
            repository.delete(type, id)
            messages.success(request, f"{type} deleted.")
            return HttpResponseRedirect(f"/{type}")
        error = f"Type {name} to confirm."
    context = _context(resource, "") | {
        "confirm": name,
        "error": error,
        "pointing": _pointing(repository, type, id),
    }
    return render_page(request, "resource/delete.html", context, status=422 if error else 200)


def resource_name_to_type(resource: Json) -> str:
    """What has to be typed before deleting: the name of a thing, the end of the id of anything else."""
    name = resource.get("name")
    if isinstance(name, str) and name:
        return name
    return tables.short_id(resource)


def _context(resource: Json, tab: str) -> Json:
    """What all pages of one resource share."""
    type, id = resource["resourceType"], resource["id"]
    return {
        "type": type,
        "resource": resource,
        "name": tables.resource_name(resource),
        "page_title": tables.page_title(resource),
        "url": f"/{type}/{id}",
        "editor_url": f"/Bot/{id}/editor",
        "subscription_url": f"/Subscription/new?endpoint=Bot/{id}",
        "cancel_url": f"/{type}/{id}",
        "tabs": navigation.tabs(type, id, tab),
        "crumbs": [(LIST_NAMES.get(type, type), f"/{type}")],
    }


page_context = _context


def _filters(query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in query if name not in tables.CONTROL_PARAMETERS]


def _without(query: list[tuple[str, str]], name: str, value: str) -> str:
    return tables.with_parameters([pair for pair in query if pair != (name, value)], offset=0)


def _with_filter(query: list[tuple[str, str]]) -> str:
    """The filter form sends parameter, modifier and value apart; the address holds them as FHIR search does."""
    values = dict(query)
    kept = [(n, v) for n, v in query if n not in ("_add", "_modifier", "_value")]
    if values.get("_add") and values.get("_value"):
        modifier = values.get("_modifier", "")
        if modifier.startswith(":"):
            kept.append((values["_add"] + modifier, values["_value"]))
        else:
            kept.append((values["_add"], modifier + values["_value"]))
    return tables.with_parameters(kept, offset=0)


def _pointing(repository: Repository, type: str, id: str) -> list[str]:
    """What still refers to a Bot."""
    if type != "Bot":
        return []
    found = repository.search(parse("Subscription", [("url", f"Bot/{id}"), ("_count", "20")]))
    return [f"Subscription on {stored.resource.get('criteria', '')}" for stored in found.entries]


def _said(done: str, form: StructureForm) -> str:
    """The message after saving, with what was not kept as typed: paths only, no values."""
    if not form.shortened:
        return done
    return f"{done} Zeros at the end of numbers are not kept ({', '.join(form.shortened)})."


def _form_status(request: HttpRequest, form: StructureForm) -> int:
    """422 for a refused plain form; htmx gets 200, because the fragment is what it asked for."""
    return 422 if form.is_refused and not is_fragment(request) else 200


def _redirect(request: HttpRequest, url: str) -> HttpResponse:
    """Go on to another page, also from htmx."""
    if is_fragment(request):
        return HttpResponse(status=204, headers={"HX-Redirect": url})
    return HttpResponseRedirect(url)
