"""Bots: list, create, timeline, Subscriptions, events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods, require_safe

from bots.api import bot_create, deployment_current
from console import access, tables
from console.forms.bot import BotForm
from console.htmx import render_page
from console.story import bot_story
from console.timeline import Run, run_of
from console.views.auditevent import event_filters, event_page
from console.views.resource import page_context
from console.views.subscription import news_url, subscription_rows
from fhirstore.api import FhirError, Repository, Stored, membership_of_profile, parse

PAGE: Final = 20
MAX_RECENT: Final = 1000
"""AuditEvents of the last 24 hours that are counted for a list of Bots."""


@dataclass(frozen=True, slots=True)
class BotRow:
    """A Bot in the list."""

    id: str
    name: str
    description: str
    updated: str
    deployed: bool
    subscriptions: int
    last_run: Run | None
    errors: int


@require_safe
def bot_list(request: HttpRequest) -> HttpResponse:
    """All Bots with their health."""
    repository = access.admin(request)
    wanted = request.GET.get("name", "").strip()
    offset = tables.offset_of(request.GET)
    query = [("_sort", "-_lastUpdated"), ("_count", str(PAGE)), ("_offset", str(offset))]
    found = repository.search(parse("Bot", query + named(wanted)))
    keep = [("name", wanted)] if wanted else []
    context = {
        "rows": bot_rows(repository, found.entries),
        "name": wanted,
        **tables.pages(keep, offset, PAGE, found.has_next),
    }
    return render_page(request, "bot/list.html", context)


def named(wanted: str) -> list[tuple[str, str]]:
    """The filter for names that contain a text; none for an empty one."""
    return [("name:contains", tables.search_text(wanted))] if wanted else []


def bot_rows(repository: Repository, bots: Sequence[Stored]) -> list[BotRow]:
    """Add to Bots what the list tells about them, by two further searches however many they are."""
    if not bots:
        return []
    references = ",".join(f"Bot/{bot.id}" for bot in bots)
    subscriptions = repository.search(
        parse("Subscription", [("url", references), ("_count", "1000")])
    ).entries
    targets = Counter((s.resource.get("channel") or {}).get("endpoint") for s in subscriptions)
    runs = recent_runs(repository, references)
    rows = []
    for stored in bots:
        bot, reference = stored.resource, f"Bot/{stored.id}"
        own = [run for run in runs if run.bot is not None and run.bot.get("reference") == reference]
        rows.append(
            BotRow(
                id=stored.id,
                name=bot.get("name") or f"Bot {stored.id.split('-')[0]}",
                description=bot.get("description") or "",
                updated=bot["meta"]["lastUpdated"],
                deployed=bool((bot.get("executableCode") or {}).get("url")),
                subscriptions=targets[reference],
                last_run=own[0] if own else None,
                errors=sum(not run.ok for run in own),
            )
        )
    return rows


def recent_runs(repository: Repository, references: str = "", count: int = MAX_RECENT) -> list[Run]:
    """Bot runs of the last 24 hours, newest first."""
    since = datetime.now(UTC) - timedelta(hours=24)
    query = [
        ("_lastUpdated", f"ge{since.isoformat(timespec='seconds')}"),
        ("type", "execute"),
        ("_sort", "-_lastUpdated"),
        ("_count", str(count)),
    ]
    if references:
        query.append(("entity", references))
    return [run_of(stored.resource) for stored in repository.search(parse("AuditEvent", query)).entries]


@require_http_methods(["GET", "HEAD", "POST"])
def bot_new(request: HttpRequest) -> HttpResponse:
    """Create a Bot; the acknowledgement names its id and the next steps."""
    repository = access.admin(request)
    policies = [
        (f"AccessPolicy/{stored.id}", stored.resource.get("name") or stored.id)
        for stored in repository.search_all("AccessPolicy", [("_sort", "name")])
    ]
    form = BotForm(policies, request.POST or None)
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        try:
            created = bot_create(
                repository,
                name=data["name"],
                description=data["description"] or None,
                access_policy=data["access_policy"] or None,
                language=data["language"],
            )
        except FhirError as error:
            form.add_error(None, str(error))
        else:
            return HttpResponseRedirect(f"/admin/bots/new?created={created.id}")
    if request.method != "POST" and (id := request.GET.get("created")):
        bot = repository.read("Bot", id).resource
        return render_page(request, "bot/created.html", page_context(bot, "") | {"bot": bot})
    context = {"form": form, "crumbs": [("Project", "/admin/project"), ("Bots", "/admin/bots")]}
    return render_page(request, "bot/new.html", context, status=422 if form.errors else 200)


@require_safe
def bot_page(request: HttpRequest, id: str) -> HttpResponse:
    """The story of a Bot: runs, saved versions and deployments, newest first."""
    repository = access.admin(request)
    stored, bot = access.read(repository, "Bot", id)
    items, older = bot_story(repository, stored, before=request.GET.get("before"))
    context = bot_context(repository, bot, "Timeline") | {
        "policy_url": policy_url(repository, bot),
        "items": items,
        "older": older,
        "empty": "Nothing has happened yet. Deploy the Bot, then press Execute.",
        "news_url": news_url(f"Bot/{id}", items[0].moment if items else None)
        if not request.GET.get("before")
        else "",
    }
    return render_page(request, "bot/timeline.html", context)


@require_safe
def bot_subscriptions(request: HttpRequest, id: str) -> HttpResponse:
    """The Subscriptions that call this Bot."""
    repository = access.admin(request)
    _stored, bot = access.read(repository, "Bot", id)
    offset = tables.offset_of(request.GET)
    query = [
        ("url", f"Bot/{id}"),
        ("_sort", "-_lastUpdated"),
        ("_count", str(PAGE)),
        ("_offset", str(offset)),
    ]
    found = repository.search(parse("Subscription", query))
    context = bot_context(repository, bot, "Subscriptions") | {
        "rows": subscription_rows(repository, found.entries),
        "never_deployed": deployment_current(repository, id) is None,
        **tables.pages([], offset, PAGE, found.has_next),
    }
    return render_page(request, "bot/subscriptions.html", context)


@require_safe
def bot_events(request: HttpRequest, id: str) -> HttpResponse:
    """The runs of this Bot as a table."""
    repository = access.admin(request)
    _stored, bot = access.read(repository, "Bot", id)
    page = event_page(repository, event_filters(request.GET), entity=f"Bot/{id}")
    context = bot_context(repository, bot, "Event") | page | {"of_bot": True}
    return render_page(request, "bot/events.html", context)


def policy_url(repository: Repository, bot: dict[str, Any]) -> str:
    """Where an admin limits a Bot that may read and write everything; empty if an AccessPolicy or its caller's limits it already."""
    membership = membership_of_profile(repository.identity.project, f"Bot/{bot['id']}")
    if membership is None or bot.get("runAsUser"):
        return ""
    try:
        resource = repository.read("ProjectMembership", membership).resource
    except FhirError:  # a policy of the reader's own may hide memberships
        return ""
    is_limited = resource.get("accessPolicy") or resource.get("access")
    return "" if is_limited else f"/ProjectMembership/{membership}/edit"


def bot_context(repository: Repository, bot: dict[str, Any], tab: str) -> dict[str, Any]:
    """What the pages of one Bot share: header, tabs, state."""
    deployment = deployment_current(repository, bot["id"])
    text = f"Deployed v{deployment.number}" if deployment else "Never deployed"
    return page_context(bot, tab) | {"bot": bot, "deployment": deployment, "deployed_text": text}
