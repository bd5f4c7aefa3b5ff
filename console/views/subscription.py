"""Subscriptions: list, form, timeline, pause and resume."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from bots.api import (
    INTERACTION_URL,
    PAUSED,
    Delivery,
    deliveries_page,
    deliveries_replay,
    subscription_state,
)
from console import access, tables
from console.forms.subscription import INTERACTIONS, SubscriptionForm
from console.htmx import render_page
from console.story import bot_story
from console.views.resource import page_context
from fhirstore.api import FhirError, Repository, Stored, parse

PAGE: Final = 20
LABELS: Final = dict(INTERACTIONS)
OPEN: Final = ("waiting", "running", "retrying")
"""States of deliveries that are not at their end yet."""


@dataclass(frozen=True, slots=True)
class SubscriptionRow:
    """A Subscription in a list."""

    id: str
    criteria: str
    status: str
    target: str
    target_url: str
    on: str
    updated: str


@require_safe
def subscription_list(request: HttpRequest) -> HttpResponse:
    """All Subscriptions."""
    repository = access.admin(request)
    offset = tables.offset_of(request.GET)
    status = request.GET.get("status", "")
    query = [("_sort", "-_lastUpdated"), ("_count", str(PAGE)), ("_offset", str(offset))]
    query += [("status", status)] if status else []
    found = repository.search(parse("Subscription", query))
    keep = [("status", status)] if status else []
    context = {
        "rows": subscription_rows(repository, found.entries),
        "status": status,
        **tables.pages(keep, offset, PAGE, found.has_next),
    }
    return render_page(request, "subscription/list.html", context)


def subscription_rows(repository: Repository, found: list[Stored]) -> list[SubscriptionRow]:
    """Add the names of the Bots, read by one search."""
    resources = [stored.resource for stored in found]
    ids = {e.removeprefix("Bot/") for r in resources if (e := _endpoint(r)).startswith("Bot/")}
    names: dict[str, str] = {}
    if ids:
        bots = repository.search(parse("Bot", [("_id", ",".join(sorted(ids))), ("_count", "100")]))
        names = {bot.id: bot.resource.get("name") or "Bot" for bot in bots.entries}
    return [_row(resource, names) for resource in resources]


def _row(resource: dict[str, Any], names: dict[str, str]) -> SubscriptionRow:
    endpoint = _endpoint(resource)
    id = endpoint.removeprefix("Bot/")
    is_bot = endpoint.startswith("Bot/")
    return SubscriptionRow(
        id=resource["id"],
        criteria=resource.get("criteria", ""),
        status=resource.get("status", ""),
        target=names.get(id, f"{endpoint} (missing)") if is_bot else endpoint,
        target_url=f"/{endpoint}" if is_bot and id in names else "",
        on=interactions_of(resource),
        updated=resource["meta"]["lastUpdated"],
    )


def interactions_of(resource: dict[str, Any]) -> str:
    """Which interactions a Subscription listens to, in words."""
    codes = [e.get("valueCode") for e in resource.get("extension") or [] if e.get("url") == INTERACTION_URL]
    return ", ".join(LABELS.get(code, code) for code in codes if code) or "Created, Updated, Deleted"


def _endpoint(resource: dict[str, Any]) -> str:
    return str((resource.get("channel") or {}).get("endpoint") or "")


@require_http_methods(["GET", "HEAD", "POST"])
def subscription_new(request: HttpRequest) -> HttpResponse:
    """Create a Subscription; errors stand at their fields."""
    repository = access.admin(request)
    initial = {name: request.GET[name] for name in ("criteria", "endpoint", "reason") if name in request.GET}
    form = SubscriptionForm(request.POST if request.method == "POST" else None, initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            created = repository.create(form.to_resource())
        except FhirError as error:
            form.refuse(error.outcome)
        else:
            messages.success(request, "Subscription created.")
            return HttpResponseRedirect(f"/Subscription/{created.id}")
    bots = repository.search(parse("Bot", [("_sort", "-_lastUpdated"), ("_count", "50")])).entries
    choices = [(f"Bot/{bot.id}", bot.resource.get("name") or "Bot") for bot in bots]
    status = 422 if form.errors else 200
    return render_page(
        request,
        "subscription/new.html",
        {"form": form, "bots": choices, "crumbs": [("Subscriptions", "/Subscription")]},
        status=status,
    )


@require_safe
def subscription_page(request: HttpRequest, id: str) -> HttpResponse:
    """What this Subscription has caused, newest first; the log text is readable without a click."""
    repository = access.admin(request)
    stored, subscription = access.read(repository, "Subscription", id)
    items, older = bot_story(repository, stored, before=request.GET.get("before"))
    row = subscription_rows(repository, [stored])[0]
    state = subscription_state(repository, id)
    open_states = [(number, name) for name in OPEN if (number := state.counts.get(name))]
    news = news_url(f"Subscription/{id}", items[0].moment if items else None)
    context = page_context(subscription, "Timeline") | {
        "subscription": subscription,
        "row": row,
        "problem": state.problem if subscription.get("status") == "active" else "",
        "open_states": open_states,
        "items": items,
        "older": older,
        "empty": "Nothing has been delivered yet.",
        "news_url": "" if request.GET.get("before") else news,
    }
    return render_page(request, "subscription/timeline.html", context)


def news_url(reference: str, moment: datetime | None) -> str:
    """Address of the fragment that counts what is newer than the page."""
    since = (moment or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"/-/news/{reference}?after={since}"


STATES: Final = (
    ("waiting", "Waiting"),
    ("running", "Running"),
    ("retrying", "Retrying"),
    ("failed", "Given up"),
    ("skipped", "Skipped"),
    ("done", "Done"),
)


@require_http_methods(["GET", "HEAD", "POST"])
def subscription_deliveries(request: HttpRequest, id: str) -> HttpResponse:
    """What became of each change, with its attempts; carry out again what was given up or left out."""
    repository = access.admin(request)
    _stored, subscription = access.read(repository, "Subscription", id)
    if request.method == "POST":
        return _replay(request, repository, id)
    wanted = request.GET.get("state", "")
    wanted = wanted if wanted in dict(STATES) else ""
    offset = tables.offset_of(request.GET)
    rows, total = deliveries_page(
        repository, "Subscription", id, state=wanted or None, count=PAGE, offset=offset
    )
    state = subscription_state(repository, id)
    failed = state.counts.get("failed", 0)
    paused = Delivery.objects.filter(
        project=repository.identity.project, subscription_id=id, state="skipped", outcome=PAUSED
    ).count()
    keep = [("state", wanted)] if wanted else []
    context = page_context(subscription, "Deliveries") | {
        "subscription": subscription,
        "problem": state.problem,
        "rows": rows,
        "total": f"{total} deliveries",
        "wanted": wanted,
        "states": [(value, label, state.counts.get(value, 0)) for value, label in STATES],
        "failed": failed,
        "failed_text": f"Deliver again all {failed} given up",
        "paused": paused if subscription.get("status") == "active" else 0,
        "paused_text": f"Deliver the {paused} changes made during the pause",
        **tables.pages(keep, offset, PAGE, offset + PAGE < total),
    }
    return render_page(request, "subscription/deliveries.html", context)


def _replay(request: HttpRequest, repository: Repository, id: str) -> HttpResponse:
    one, every = request.POST.get("delivery", ""), request.POST.get("all")
    ids = [int(one)] if one.isascii() and one.isdigit() and len(one) < 19 else []
    count = 0
    if ids or every in ("failed", "paused"):
        count = deliveries_replay(
            repository, "Subscription", id, ids=None if every else ids, paused=every == "paused"
        )
    if count:
        messages.success(request, f"Delivered again: {count}.")
    else:
        messages.warning(request, "There was nothing to deliver again.")
    return HttpResponseRedirect(f"/Subscription/{id}/deliveries")


@require_POST
def subscription_status(request: HttpRequest, id: str) -> HttpResponse:
    """Pause (status off) or resume (status active)."""
    repository = access.admin(request)
    stored, subscription = access.read(repository, "Subscription", id)
    paused = request.POST.get("status") == "off"
    repository.update(subscription | {"status": "off" if paused else "active"}, if_match=stored.version_id)
    text = "Paused. Changes from now on are not delivered." if paused else "Resumed."
    messages.success(request, text)
    return HttpResponseRedirect(f"/Subscription/{id}")
