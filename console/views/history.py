"""Versions of a resource: list, one version, difference of two."""

from __future__ import annotations

from typing import Any, Final

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_POST, require_safe

from console import access, diffs, tables
from console.htmx import render_page
from console.source import source_of
from console.timeline import versions
from console.views.resource import page_context
from fhirstore.api import FhirError, Repository, Stored, not_found

PAGE: Final = 50
CLIENT_META: Final = ("profile", "tag", "security", "source", "extension")
"""Parts of `meta` that belong to people; the server writes the others."""


@require_safe
def resource_history(request: HttpRequest, type: str, id: str) -> HttpResponse:
    """All versions, newest first, with what each has changed."""
    repository = access.member_for(request, type)
    if request.GET.get("old") and request.GET.get("new"):
        return HttpResponseRedirect(f"/{type}/{id}/history/{request.GET['old']}/diff/{request.GET['new']}")
    offset = tables.offset_of(request.GET)
    # One more than shown, so that the last one has something to be compared with.
    found, total = repository.history(type, id, count=PAGE + 1, offset=offset)
    if not found:
        raise not_found()
    items = versions(found, has_deployments=False)[:PAGE]
    resource = _newest_living(found, type, id)
    context = page_context(resource, "History") | {
        "items": items,
        "total": total,
        "numbers": [total - offset - index for index in range(len(items))],
        "rows": [(total - offset - index, item) for index, item in enumerate(items)],
        "deleted": found[0].deleted and not offset,
        **tables.pages([], offset, PAGE, offset + PAGE < total),
    }
    return render_page(request, "resource/history.html", context)


@require_safe
def resource_version(request: HttpRequest, type: str, id: str, version: str) -> HttpResponse:
    """One version as it was."""
    repository = access.member_for(request, type)
    stored = repository.read_version(type, id, version)
    resource = stored.resource
    code = source_of(repository, stored).text if type == "Bot" else ""
    context = page_context(resource, "History") | {"value": resource, "version": stored, "code": code}
    return render_page(request, "resource/version.html", context)


@require_POST
def version_restore(request: HttpRequest, type: str, id: str, version: str) -> HttpResponse:
    """Make an old version the current one, as a new version; restores a deleted resource as well."""
    repository = access.member_for(request, type)
    old = repository.read_version(type, id, version).resource
    # Who restores is the author: what the server wrote into the old version must not come back.
    old["meta"] = {name: old["meta"][name] for name in CLIENT_META if name in old["meta"]}
    _stored, is_new = repository.update(old)
    messages.success(
        request, "Restored as a new version." if is_new else "This is the current version already."
    )
    return HttpResponseRedirect(f"/{type}/{id}/history")


@require_safe
def version_diff(request: HttpRequest, type: str, id: str, old: str, new: str) -> HttpResponse:
    """The difference of two versions; of a Bot also that of its code."""
    repository = access.member_for(request, type)
    before, after = repository.read_version(type, id, old), repository.read_version(type, id, new)
    context: dict[str, Any] = page_context(after.resource, "History") | {
        "before": before,
        "after": after,
        "rows": diffs.resource_diff(before.resource, after.resource),
        "code_rows": _code_diff(repository, before, after) if type == "Bot" else [],
    }
    return render_page(request, "resource/diff.html", context)


@require_safe
def history_alias(request: HttpRequest, type: str, id: str, version: str = "") -> HttpResponse:
    """`_history` in the address, as the API has it."""
    access.member_for(request, type)
    return HttpResponseRedirect(f"/{type}/{id}/history" + (f"/{version}" if version else ""))


def _code_diff(repository: Repository, before: Stored, after: Stored) -> list[diffs.Row]:
    try:
        return diffs.text_diff(source_of(repository, before).text, source_of(repository, after).text)
    except FhirError:  # code of an old version may be gone with its Binary
        return []


def _newest_living(found: list[Stored], type: str, id: str) -> dict[str, Any]:
    for stored in found:
        if not stored.deleted:
            return stored.resource
    return {"resourceType": type, "id": id}
