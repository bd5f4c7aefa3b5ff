"""Deployments of a Bot: list, compare, roll back."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods, require_safe

from bots.api import Deployment, deployment_roll_back, deployments
from console import access, diffs
from console.htmx import render_page
from console.source import source_of
from console.views.resource import page_context
from fhirstore.api import not_found

LABELS = {"api": "API", "cli": "CLI", "console": "console"}


@require_safe
def bot_deployments(request: HttpRequest, id: str) -> HttpResponse:
    """All deployments, the current one on top."""
    repository = access.admin(request)
    _stored, bot = access.read(repository, "Bot", id)
    found = [
        (deployment, LABELS.get(deployment.via, deployment.via), len(deployment.source.encode()))
        for deployment in deployments(repository, id)
    ]
    context = page_context(bot, "Deployments") | {"bot": bot, "deployments": found}
    return render_page(request, "bot/deployments.html", context)


@require_safe
def deployment_diff(request: HttpRequest, id: str, old: int, new: str) -> HttpResponse:
    """Compare two deployments, or one with the saved code."""
    repository = access.admin(request)
    stored, bot = access.read(repository, "Bot", id)
    known = deployments(repository, id)
    before = _numbered(known, old)
    if new == "saved":
        after, label = source_of(repository, stored).text, "saved code"
    else:
        after, label = _numbered(known, int(new)).source, f"v{new}"
    rows = diffs.text_diff(before.source, after)
    added, removed = diffs.counts(rows)
    context: dict[str, Any] = {"bot": bot, "before": f"v{old}", "after": label, "rows": rows}
    context |= {"added": added, "removed": removed, "title": f"v{old} and {label}"}
    return render_page(request, "bot/deployment_diff.html", page_context(bot, "Deployments") | context)


@require_safe
def deployment_source(request: HttpRequest, id: str, number: int) -> HttpResponse:
    """The code of a deployment as a file."""
    repository = access.admin(request)
    found = _numbered(deployments(repository, id), number)
    response = HttpResponse(found.source, content_type="text/plain; charset=utf-8")
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in found.source_filename)
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@require_http_methods(["GET", "HEAD", "POST"])
def deployment_restore(request: HttpRequest, id: str, number: int) -> HttpResponse:
    """Show what rolling back would change; a second step does it."""
    repository = access.admin(request)
    _stored, bot = access.read(repository, "Bot", id)
    known = deployments(repository, id)
    wanted, current = _numbered(known, number), known[0]
    if request.method == "POST":
        made = deployment_roll_back(repository, bot_id=id, number=number, via="console")
        messages.success(request, f"Rolled back: v{made.number} runs the code of v{number}.")
        return HttpResponseRedirect(f"/Bot/{id}/deployments")
    context = {
        "bot": bot,
        "wanted": wanted,
        "current": current,
        "rows": diffs.text_diff(current.source, wanted.source),
    }
    return render_page(request, "bot/roll_back.html", page_context(bot, "Deployments") | context)


def _numbered(known: list[Deployment], number: int) -> Deployment:
    for deployment in known:
        if deployment.number == number:
            return deployment
    raise not_found()
