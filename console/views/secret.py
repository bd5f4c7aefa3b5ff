"""Secrets of the project and of single Bots: names are shown, values never."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods

from bots.api import secrets_set, secrets_shown
from console import access
from console.forms.project import SecretForm
from console.htmx import render_page
from console.views.bot import bot_context
from fhirstore.api import FhirError

CRUMBS = [("Project", "/admin/project")]


@require_http_methods(["GET", "HEAD", "POST"])
def project_secrets(request: HttpRequest) -> HttpResponse:
    """The secrets every Bot of the project is given."""
    repository = access.admin(request)
    stored, project = access.read(repository, "Project", repository.identity.project)
    items: list[dict[str, Any]] = project.get("secret") or []

    def save(changed: list[dict[str, Any]]) -> None:
        resource = {**project, "secret": changed}
        if not changed:
            del resource["secret"]
        repository.update(resource, if_match=stored.version_id)

    form = SecretForm(request.POST if _adds(request) else None)
    if request.method == "POST" and _change(request, form, items, save):
        return HttpResponseRedirect("/admin/secrets")
    context = {"form": form, "names": [item["name"] for item in items], "crumbs": CRUMBS}
    return render_page(request, "admin/secrets.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "HEAD", "POST"])
def bot_secrets(request: HttpRequest, id: str) -> HttpResponse:
    """The secrets only this Bot is given."""
    repository = access.admin(request)
    _stored, bot = access.read(repository, "Bot", id)
    items = secrets_shown(repository, id, "secret")
    form = SecretForm(request.POST if _adds(request) else None)
    if request.method == "POST" and _change(
        request, form, items, lambda changed: secrets_set(repository, id, "secret", changed)
    ):
        return HttpResponseRedirect(f"/Bot/{id}/secrets")
    project = repository.read("Project", repository.identity.project).resource
    context = bot_context(repository, bot, "Secrets") | {
        "form": form,
        "names": [item["name"] for item in items],
        "inherited": [item["name"] for item in project.get("secret") or ()],
    }
    return render_page(request, "bot/secrets.html", context, status=422 if form.errors else 200)


def _adds(request: HttpRequest) -> bool:
    return request.method == "POST" and "delete" not in request.POST


def _change(request: HttpRequest, form: SecretForm, items: list[dict[str, Any]], save: Any) -> bool:
    """Delete one secret, or add or replace one; False if the form was refused."""
    deleted = request.POST.get("delete")
    if deleted is None and not form.is_valid():
        return False
    name = deleted if deleted is not None else form.cleaned_data["name"]
    changed = [item for item in items if item["name"] != name]
    if deleted is None:
        changed.append({"name": name, "valueString": form.cleaned_data["value"].replace("\r\n", "\n")})
    try:
        save(changed)
    except FhirError as error:
        form.add_error(None, str(error))
        return False
    done = "deleted" if deleted is not None else "replaced" if len(changed) == len(items) else "added"
    messages.success(request, f"Secret {name} {done}. The next runs have it so.")
    return True
