"""AuditEvents: all runs, one run, and how many are new."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_POST, require_safe

from bots.api import Run as ArchivedRun
from bots.api import bot_replay, run_details, run_lines
from bots.api import run_of as archived_run
from console import access, tables
from console.htmx import render_page
from console.story import runs
from console.timeline import Position, Run, run_of
from console.views.resource import list_context, page_context
from fhirstore.api import FhirError, Repository, bad_request, not_found, parse

PAGE: Final = 20
FILTERS: Final = ("outcome", "entity", "before")

OUTCOMES: Final = (("", "All outcomes"), ("0", "Success"), ("4,8,12", "Failures"))


@require_safe
def auditevent_list(request: HttpRequest) -> HttpResponse:
    """All AuditEvents as runs; an address that names columns gets exactly these."""
    repository = access.admin(request)
    query = [(name, value) for name, values in request.GET.lists() for value in values]
    if "_fields" in request.GET:
        context = list_context(repository, "AuditEvent", query) | {"runs_url": "/AuditEvent"}
        return render_page(request, "resource/list.html", context)
    page = event_page(repository, event_filters(request.GET))
    return render_page(request, "auditevent/list.html", page)


def event_filters(query: Mapping[str, str]) -> dict[str, str]:
    """The filters of an events page that its address names."""
    return {name: query[name] for name in FILTERS if query.get(name)}


def event_page(repository: Repository, filters: Mapping[str, str], entity: str = "") -> dict[str, Any]:
    """One page of runs, newest first, paged by time.

    Args:
        repository: of the reader.
        filters: `outcome` (codes), `entity` (a reference), `before` (a position).
        entity: only AuditEvents that name this resource, whatever the filters say.
    """
    query = []
    if filters.get("outcome") in dict(OUTCOMES):
        query.append(("outcome", filters["outcome"]))
    if entity or filters.get("entity"):
        query.append(("entity", entity or filters["entity"]))
    found, has_older = runs(repository, query, Position.parse(filters.get("before")), PAGE)
    kept = {name: value for name, value in filters.items() if name != ("entity" if entity else "")}
    newest = [(name, value) for name, value in kept.items() if name != "before"]
    older = [*newest, ("before", str(found[-1].position))] if has_older else []
    return {
        "runs": found,
        "outcomes": OUTCOMES,
        "filters": filters,
        "older_url": f"?{tables.with_parameters(older)}" if older else "",
        "newest_url": f"?{tables.with_parameters(newest)}" if filters.get("before") else "",
    }


@require_safe
def auditevent_page(request: HttpRequest, id: str) -> HttpResponse:
    """The run page: outcome, what caused it, log, and what else happened to the same things."""
    repository = access.admin(request)
    _stored, event = access.read(repository, "AuditEvent", id)
    run = run_of(event)
    bot_id = run.bot["reference"].removeprefix("Bot/") if run.bot and run.is_bot_run else ""
    kept = _kept(repository, bot_id, id) if bot_id else None
    context = page_context(event, "") | {
        "run": run,
        "event": event,
        "kept": kept,
        "lines": _lines(kept) if kept and kept.log is not None else run.lines,
        "details": orjson.loads(kept.details) if kept else {},
        "kept_input": kept is not None and kept.request is not None,
        "input_url": f"/-/run/{id}/input",
        "similar": _neighbours(repository, run),
        "tabs": [],
        "bot_id": bot_id,
        "editor_url": f"/Bot/{bot_id}/editor",
        "events_url": f"/Bot/{bot_id}/event",
    }
    return render_page(request, "auditevent/run.html", context)


@require_safe
def run_input(request: HttpRequest, id: str) -> HttpResponse:
    """What a run was given; fetched only when somebody asks for it, for it may be a whole record of a patient."""
    repository = access.admin(request)
    _stored, event = access.read(repository, "AuditEvent", id)
    run = run_of(event)
    if run.bot is None:
        raise not_found()
    details = run_details(archived_run(repository, run.bot["reference"].removeprefix("Bot/"), id))
    value = details.get("input")
    context = {"input": value, "is_text": isinstance(value, str), "headers": details.get("headers") or {}}
    return render_page(request, "auditevent/_input.html", context)


@require_POST
def run_replay(request: HttpRequest, id: str) -> HttpResponse:
    """Repeat a run with the code deployed now; leads to the new run."""
    repository = access.admin(request)
    _stored, event = access.read(repository, "AuditEvent", id)
    run = run_of(event)
    if run.bot is None:
        raise not_found()
    result = bot_replay(repository, run.bot["reference"].removeprefix("Bot/"), id)
    if result.ok:
        messages.success(request, "Repeated with the code deployed now.")
    else:
        messages.error(request, "Repeated with the code deployed now: it failed.")
    return HttpResponseRedirect(f"/AuditEvent/{result.audit_event_id or id}")


def _kept(repository: Repository, bot_id: str, run_id: str) -> ArchivedRun | None:
    """What the archive has of a run; None if it has nothing, or the reader may not see it."""
    try:
        return archived_run(repository, bot_id, run_id)
    except FhirError as error:
        if error.status >= 500:
            raise
        return None


def _lines(kept: ArchivedRun) -> list[dict[str, Any]]:
    """The log with levels, and milliseconds since the run began."""
    return [
        {
            "level": line["level"],
            "offset": (line["time"] - kept.started).total_seconds() * 1000,
            "text": line["text"],
        }
        for line in run_lines(kept)
    ]


def _neighbours(repository: Repository, run: Run) -> list[Run]:
    """The newest other runs of the same Bot."""
    if run.bot is None:
        return []
    found, _more = runs(repository, [("entity", run.bot["reference"])], None, 6)
    return [other for other in found if other.id != run.id][:5]


@require_safe
def news(request: HttpRequest, type: str, id: str) -> HttpResponse:
    """How many AuditEvents of a resource are newer than the page; empty if none are."""
    repository = access.member_for(request, type)
    after = request.GET.get("after", "")
    try:
        datetime.fromisoformat(after)
    except ValueError:
        raise bad_request("after must be an instant") from None
    query = [("entity", f"{type}/{id}"), ("date", f"gt{after}"), ("_count", "21"), ("_sort", "-_lastUpdated")]
    number = len(repository.search(parse("AuditEvent", query)).entries)
    if not number:
        return HttpResponse(status=204)
    text = f"{number if number <= PAGE else f'More than {PAGE}'} new {'event' if number == 1 else 'events'}."
    return render_page(request, "auditevent/_news.html", {"text": text, "url": f"/{type}/{id}"})
