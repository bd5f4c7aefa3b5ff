"""When a Bot runs by itself: its schedule, the next moments, and the last runs."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods, require_safe

from bots.api import (
    deliveries_page,
    plan_of_expression,
    plan_state,
    schedule_run_now,
    schedule_state,
    scheduled,
)
from console import access
from console.forms.schedule import EXAMPLES, ScheduleForm, zones
from console.htmx import render_page
from console.views.bot import bot_context
from fhirstore.api import FhirError

PREVIEW = 6
"""Moments the preview shows."""


@require_http_methods(["GET", "HEAD", "POST"])
def bot_schedule(request: HttpRequest, id: str) -> HttpResponse:
    """Show and change the schedule of a Bot; run it now."""
    repository = access.admin(request)
    stored, bot = access.read(repository, "Bot", id)
    state = schedule_state(repository, bot)
    action = request.POST.get("action")
    form = ScheduleForm(state, request.POST if action == "save" else None)
    if action == "run":
        schedule_run_now(repository, "Bot", id)
        messages.success(request, "The Bot runs now. Its run appears on the timeline.")
        return HttpResponseRedirect(f"/Bot/{id}/schedule")
    if action == "remove" or (action == "save" and form.is_valid()):
        data = form.cleaned_data if action == "save" else {"cron": "", "zone": ""}
        changed = scheduled(
            bot,
            data["cron"],
            zone=data["zone"],
            overlap=data.get("overlap", "skip"),
            missed=data.get("missed", "once"),
        )
        try:
            repository.update(changed, if_match=stored.version_id)
        except FhirError as error:
            form.add_error(None, str(error))
        else:
            done = (
                "Schedule saved." if action == "save" else "Schedule removed. The Bot runs by itself no more."
            )
            messages.success(request, done)
            return HttpResponseRedirect(f"/Bot/{id}/schedule")
    runs, _total = deliveries_page(repository, "Bot", id, count=10)
    context = bot_context(repository, bot, "Schedule") | {
        "state": state,
        "form": form,
        "examples": EXAMPLES,
        "zones": zones(),
        "runs": runs,
    }
    return render_page(request, "bot/schedule.html", context, status=422 if form.errors else 200)


@require_safe
def cron_preview(request: HttpRequest) -> HttpResponse:
    """What an expression means while it is being written: words and next moments, or what is wrong."""
    repository = access.admin(request)
    context: dict[str, object] = {}
    if expression := request.GET.get("cron", "").strip():
        try:
            plan = plan_of_expression(expression, request.GET.get("zone", "").strip())
            context = {"state": plan_state(repository.identity.project, plan, PREVIEW)}
        except FhirError as error:
            context = {"problem": error.outcome["issue"][0]["details"]["text"]}
    return render_page(request, "bot/_cron_preview.html", context)
