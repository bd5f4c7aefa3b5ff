"""The overview: is everything all right, and what needs a person?"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import quantiles

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from console import access, health
from console.htmx import render_page
from console.timeline import Run
from console.views.bot import MAX_RECENT, bot_rows, recent_runs
from fhirstore.api import Repository, parse


@dataclass(frozen=True, slots=True)
class Attention:
    """One thing that needs a person."""

    text: str
    url: str
    tone: str = "warn"


@require_safe
def overview(request: HttpRequest) -> HttpResponse:
    """For admins: attention, numbers, recent runs and Bots. Other members get their way to the resources."""
    repository = access.member(request)
    if not repository.identity.is_admin:
        return render_page(request, "overview/member.html", {})
    found = repository.search(parse("Bot", [("_sort", "-_lastUpdated"), ("_count", "8")]))
    bots = bot_rows(repository, found.entries)
    runs = recent_runs(repository)
    durations = sorted(run.duration_ms for run in runs if run.duration_ms is not None)
    cuts = quantiles(durations, n=20) if len(durations) > 1 else durations * 20
    context = {
        "attention": attention(repository, runs),
        "bots": bots,
        "runs": runs[:8],
        "count": f"{MAX_RECENT:,}+" if len(runs) == MAX_RECENT else str(len(runs)),
        "failures": sum(not run.ok for run in runs),
        "median": cuts[9] if durations else None,
        "slow": cuts[18] if durations else None,
        "steps": steps(repository, bots_exist=bool(bots), any_deployed=any(bot.deployed for bot in bots)),
    }
    return render_page(request, "overview/overview.html", context)


def attention(repository: Repository, runs: list[Run]) -> list[Attention]:
    """What needs a person: Bots that failed in the last 24 hours, Subscriptions in status error."""
    failed: dict[str, tuple[str, int]] = {}
    for run in runs:
        if not run.ok and run.bot is not None:
            reference = run.bot["reference"]
            failed[reference] = (run.bot.get("display") or reference, failed.get(reference, ("", 0))[1] + 1)
    found = [
        Attention(
            f"{name}: {n} failed {'run' if n == 1 else 'runs'} in 24 hours",
            f"/{reference}/event?outcome=4,8,12",
            "bad",
        )
        for reference, (name, n) in failed.items()
    ]
    broken = repository.search(parse("Subscription", [("status", "error"), ("_count", "20")])).entries
    found += [
        Attention(
            f"The Subscription on {s.resource.get('criteria', '')} is in error", f"/Subscription/{s.id}"
        )
        for s in broken
    ]
    return found


def steps(repository: Repository, *, bots_exist: bool, any_deployed: bool) -> list[tuple[str, str, bool]]:
    """The way to the first working Bot: text, address, done. Empty when all is done."""
    subscribed = (
        bool(repository.search(parse("Subscription", [("status", "active"), ("_count", "1")])).entries)
        if bots_exist
        else False
    )
    way = [
        ("Create a Bot", "/admin/bots/new", bots_exist),
        ("Write its code, save and deploy it", "/Bot", any_deployed),
        ("Subscribe it to Patient", "/Subscription/new?criteria=Patient", subscribed),
    ]
    return [] if all(done for _text, _url, done in way) else way


@require_safe
def help_page(request: HttpRequest) -> HttpResponse:
    """Keyboard shortcuts and where to read on."""
    access.member(request)
    return render_page(request, "overview/help.html", {})


PARTS = {"database": "Database", "broker": "Message broker", "worker": "Worker", "sandbox": "Sandboxes"}


@require_safe
def health_part(request: HttpRequest) -> HttpResponse:
    """State of the server's parts, for the overview."""
    access.admin(request)
    parts = [
        (PARTS.get(name, name), state == health.OK, state) for name, state in health.check_parts().items()
    ]
    return render_page(request, "overview/_health.html", {"parts": parts})
