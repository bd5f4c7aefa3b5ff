"""What pages and operations show of schedules and deliveries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from django.db.models import Count

from bots import cron
from bots.context import author_of
from bots.models import Delivery
from bots.subscriptions import endpoint_problem, watch_of
from fhirstore.api import FhirError, Repository, forbidden, system_identity


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """How a Subscription is doing.

    Attributes:
        problem: why nothing is delivered, as a sentence; empty when all is well.
        counts: number of deliveries by state (``Delivery.State``); states without any are left out.
    """

    problem: str
    counts: dict[str, int]


def subscription_state(repository: Repository, subscription_id: str) -> SubscriptionState:
    """Return the state of a Subscription; raises FhirError when the caller may not read it."""
    subscription = repository.read("Subscription", subscription_id).resource
    rows = Delivery.objects.filter(project=repository.identity.project, subscription_id=subscription_id)
    counts = {row["state"]: row["count"] for row in rows.values("state").annotate(count=Count("id"))}
    return SubscriptionState(_problem(repository.identity.project, subscription), counts)


def _problem(project: str, subscription: dict[str, Any]) -> str:
    try:
        watch = watch_of(project, subscription)
        author = author_of(project, subscription)
    except FhirError as error:
        return str(error)
    if subscription.get("status") == "off" and subscription.get("error"):
        return f"Nothing is delivered: {subscription['error']}."
    if subscription.get("status") != "active":
        return "Nothing is delivered: its status is not active."
    if problem := endpoint_problem(subscription):
        return problem
    if watch.end is not None and watch.end < datetime.now(UTC):
        return "Nothing is delivered any more: its end has passed."
    if not Repository(author).may_read_some(watch.type):
        return f"Nothing is delivered: the AccessPolicy of its author does not allow to read {watch.type}."
    return ""


def deliveries(
    repository: Repository, subscription_id: str, *, count: int = 20, offset: int = 0
) -> list[Delivery]:
    """Return deliveries of a Subscription, newest first; raises FhirError when the caller may not read it."""
    return deliveries_page(repository, "Subscription", subscription_id, count=count, offset=offset)[0]


def deliveries_page(
    repository: Repository,
    type_: str,
    id_: str | None,
    *,
    state: str | None = None,
    count: int = 20,
    offset: int = 0,
) -> tuple[list[Delivery], int]:
    """Return deliveries of a Subscription, Bot or Cron, newest first, and how many there are.

    Args:
        type_, id_: the resource that set them off; no id for those of the whole project.
        state: only those in this ``Delivery.State``.
        count, offset: the page.

    Raises:
        FhirError: when the caller may not read the resource; 403 for the whole project unless he is admin.
    """
    rows = Delivery.objects.filter(project=repository.identity.project)
    if id_ is not None:
        repository.read(type_, id_)
        rows = rows.filter(subscription_id=id_)
    elif not repository.identity.is_admin:
        raise forbidden()
    if state is not None:
        rows = rows.filter(state=state)
    return list(rows.order_by("-id")[offset : offset + count]), rows.count()


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """When a Bot or Cron runs by itself.

    Attributes:
        plan: its schedule, None without one.
        zone: IANA name of the time zone the schedule is read in.
        description: the schedule in words.
        moments: the next ones, in that zone.
        problem: why nothing runs, as a sentence; empty when all is well.
        last: the newest delivery a schedule has made for it.
    """

    plan: cron.Plan | None
    zone: str
    description: str
    moments: list[datetime]
    problem: str
    last: Delivery | None


def schedule_state(repository: Repository, resource: dict[str, Any]) -> ScheduleState:
    """Return the schedule of a Bot or Cron the caller has read."""
    plan, project = cron.plan_of(resource), repository.identity.project
    found = _project(project)
    features = found.get("features") or ()
    problem = ""
    if plan is None:
        problem = "It has no schedule" if resource["resourceType"] == "Bot" else "It is not active"
    elif cron.FEATURE not in features:
        problem = "The project does not have the feature cron: nothing runs by itself"
    elif "bots" not in features:
        problem = "The project does not have the feature bots"
    rows = Delivery.objects.filter(
        project=project, subscription_id=resource["id"], trigger=Delivery.Trigger.CRON
    )
    last = rows.order_by("-change_id").first()
    if plan is None:
        return ScheduleState(None, cron.project_zone(found), "", [], problem, last)
    return replace(plan_state(project, plan), problem=problem, last=last)


def plan_state(project: str, plan: cron.Plan, count: int = 5) -> ScheduleState:
    """What a schedule means that need not be saved: its zone, its words and its next `count` moments."""
    zone = plan.zone or cron.project_zone(_project(project))
    return ScheduleState(
        plan, zone, cron.describe(plan.expression), cron.next_moments(plan, zone, count), "", None
    )


def _project(project: str) -> dict[str, Any]:
    """The Project, as far as everybody in it may know what is asked here."""
    return Repository(system_identity(project)).read("Project", project).resource
