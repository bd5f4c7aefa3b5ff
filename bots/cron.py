"""Schedules: ``Bot.cronString``, ``Bot.cronTiming`` and the resource Cron (shared/medplum/subscriptions-and-cron.md §9).

A hook puts each schedule, with the moment it is due next, into the table ``bots_schedule`` in the transaction that writes the
resource. :func:`fire_due` claims the rows that are due, makes a Delivery of each and moves the row on, in one transaction: however
many beats ring and workers look, a moment fires once, and what has fired is run as surely as a change is. The database's clock
counts.

Beyond Medplum, on a Bot or Cron:

* the standard extension :data:`ZONE` (valueCode, an IANA name): the time zone the expression is read in. Without it the one of
  ``Project.setting`` ``timeZone``, else UTC.
* :data:`OVERLAP` (valueCode), when the run before has not ended: ``skip`` (the default) leaves this one out, ``queue`` lets it wait,
  ``allow`` runs both at the same time.
* :data:`MISSED` (valueCode), when fhirbots was down at the moment: ``once`` (the default) runs once, late, however many were
  missed; ``skip`` leaves out what is more than a minute late.

What is left out stays visible as a skipped delivery.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from fhirstore.api import (
    FhirError,
    Repository,
    bad_request,
    connection,
    log_failure,
    system_identity,
    transaction,
)

Json = dict[str, Any]

FEATURE: Final = "cron"
"""In ``Project.features``; looked at when a schedule is due, so switching it takes effect at once."""

ZONE: Final = "http://hl7.org/fhir/StructureDefinition/timezone"
OVERLAP: Final = "urn:fhirbots:cron-overlap"
MISSED: Final = "urn:fhirbots:cron-missed"
CHOICES: Final = {OVERLAP: ("skip", "queue", "allow"), MISSED: ("once", "skip")}
"""The codes of each extension; the first is the default."""

LATE: Final = timedelta(minutes=1)
"""How late a moment may fire and still count as not missed."""

RECOVERY: Final = timedelta(minutes=5)
"""Until a schedule that could not be fired is looked at again."""

_DAYS: Final = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}


@dataclass(frozen=True, slots=True)
class Plan:
    """When something runs.

    Attributes:
        expression: cron expression of five fields.
        zone: IANA name of the time zone, empty for the project's.
        overlap, missed: see the module.
        ends: the last moment it may run.
    """

    expression: str
    zone: str
    overlap: str
    missed: str
    ends: datetime | None = None


# --- reading resources -----------------------------------------------------------------------------------------------


def plan_of(resource: Json) -> Plan | None:
    """Return when a Bot or Cron runs; None for one without schedule. Raises FhirError (400) for one that makes no sense."""
    type_ = resource["resourceType"]
    if type_ == "Cron":
        expression = resource.get("cronString") if resource.get("active") is True else None
    elif "cronTiming" in resource:
        expression = _timing_expression(resource["cronTiming"])
    else:
        expression = resource.get("cronString")
    if not isinstance(expression, str):
        return None  # what is neither text nor missing is the validation's affair
    zone = _zone(resource)
    check_expression(expression, f"{type_}.cronString")
    ends = _instant(resource.get("endTime")) if type_ == "Cron" else None
    return Plan(
        " ".join(expression.split()), zone, _choice(resource, OVERLAP), _choice(resource, MISSED), ends
    )


def plan_of_expression(expression: str, zone: str = "") -> Plan:
    """Return the plan of an expression that stands in no resource (yet); raises FhirError (400) if it makes no sense."""
    check_expression(expression)
    if zone:
        check_zone(zone, "timezone")
    return Plan(" ".join(expression.split()), zone, CHOICES[OVERLAP][0], CHOICES[MISSED][0])


def scheduled(
    bot: Json, expression: str, *, zone: str = "", overlap: str = "skip", missed: str = "once"
) -> Json:
    """Return a Bot with this schedule instead of the one it has; an empty expression takes the schedule away."""
    changed = {name: value for name, value in bot.items() if name not in ("cronTiming", "cronString")}
    extensions = [each for each in bot.get("extension", ()) if each.get("url") not in (ZONE, *CHOICES)]
    if expression:
        changed["cronString"] = expression
        codes = {ZONE: zone, OVERLAP: overlap, MISSED: missed}
        defaults = {ZONE: "", **{url: choices[0] for url, choices in CHOICES.items()}}
        extensions += [
            {"url": url, "valueCode": code} for url, code in codes.items() if code and code != defaults[url]
        ]
    changed.pop("extension", None)
    return changed | ({"extension": extensions} if extensions else {})


def check_expression(expression: str, where: str = "cron") -> None:
    """Raise FhirError (400) unless this is a cron expression of five fields that will ever come."""
    if len(expression.split()) != 5:
        raise bad_request(
            f"A cron expression has five fields (minute, hour, day, month, weekday), as in 0 9 * * 1-5; found {expression!r}",
            where,
        )
    try:
        next(_moments(expression, datetime.now(UTC), ZoneInfo("UTC")))
    except (CronSimError, ValueError) as error:
        reason = str(error) if isinstance(error, CronSimError) else "not a number"
        raise bad_request(f"Invalid cron expression {expression!r}: {reason}", where) from None
    except StopIteration:
        raise bad_request(f"Cron expression {expression!r} never comes", where) from None


def describe(expression: str) -> str:
    """Return a valid expression in words."""
    return CronSim(expression, datetime.now(UTC)).explain()


def next_moments(plan: Plan, zone: str, count: int = 5) -> list[datetime]:
    """Return the next moments of a plan, in its time zone; fewer if it ends before."""
    moments = _moments(plan.expression, datetime.now(UTC), ZoneInfo(zone))
    found = [moment for moment, _ in zip(moments, range(count), strict=False)]
    return [moment for moment in found if plan.ends is None or moment <= plan.ends]


def project_zone(project: Json) -> str:
    """The time zone of a Project's schedules."""
    for setting in project.get("setting") or ():
        if setting.get("name") == "timeZone" and setting.get("valueString"):
            return str(setting["valueString"])
    return "UTC"


def check_zone(zone: str, where: str) -> None:
    """Raise FhirError (400) unless this is the name of a time zone."""
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):  # unknown; not a name at all; the name of a folder
        raise bad_request(
            f"Unknown time zone {zone!r}: use an IANA name such as Europe/Berlin", where
        ) from None


def _moments(expression: str, after: datetime, zone: ZoneInfo) -> CronSim:
    return CronSim(expression, after.astimezone(zone))


def _timing_expression(timing: Any) -> str | None:
    """A Timing as cron expression: ``period`` is how often a day; None if it does not repeat."""
    repeat = timing.get("repeat") if isinstance(timing, dict) else None
    if not isinstance(repeat, dict):
        return None
    period = repeat.get("period") or 1
    if not isinstance(period, int | float) or isinstance(period, bool) or period <= 0:
        raise bad_request("Timing.repeat.period says how often a day: a number above 0", "Bot.cronTiming")
    days = [str(_DAYS[day]) for day in repeat.get("dayOfWeek") or () if day in _DAYS]
    often = 24 < period < 60
    step = math.ceil(1440 / period) if often else math.ceil(24 / period)
    minute, hour = (f"*/{min(step, 59)}", "*") if often else ("0", f"*/{min(step, 23)}" if step < 24 else "0")
    return f"{minute} {hour} * * {','.join(days) or '*'}"


def _zone(resource: Json) -> str:
    for extension in resource.get("extension") or ():
        if isinstance(extension, dict) and extension.get("url") == ZONE:
            zone = str(extension.get("valueCode") or "")
            check_zone(zone, f"{resource['resourceType']}.extension")
            return zone
    return ""


def _choice(resource: Json, url: str) -> str:
    for extension in resource.get("extension") or ():
        if isinstance(extension, dict) and extension.get("url") == url:
            code = extension.get("valueCode")
            if code not in CHOICES[url]:
                raise bad_request(
                    f"Unknown {url.rpartition(':')[2]} {code!r}: one of {', '.join(CHOICES[url])} is supported",
                    f"{resource['resourceType']}.extension",
                )
            return str(code)
    return CHOICES[url][0]


def _instant(text: Any) -> datetime | None:
    if text is None:
        return None
    try:
        whole = str(text) + {4: "-01-01", 7: "-01"}.get(len(str(text)), "")
        moment = datetime.fromisoformat(whole)
    except ValueError:
        raise bad_request("endTime must be a moment such as 2026-12-31T18:00:00Z", "Cron.endTime") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# --- hooks -----------------------------------------------------------------------------------------------------------

_PUT = """
INSERT INTO bots_schedule AS old (project, owner_type, owner_id, bot_id, expression, zone, overlap, missed, ends, next_due)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (project, owner_type, owner_id) DO UPDATE SET bot_id = excluded.bot_id, expression = excluded.expression,
    zone = excluded.zone, overlap = excluded.overlap, missed = excluded.missed, ends = excluded.ends,
    next_due = CASE WHEN (old.expression, old.zone, old.ends) IS NOT DISTINCT FROM (excluded.expression, excluded.zone, excluded.ends)
        THEN old.next_due ELSE excluded.next_due END
"""
_DROP = "DELETE FROM bots_schedule WHERE project = %s AND owner_type = %s AND owner_id = %s"


def plan_on_write(repository: Repository, resource: Json, _previous: Json | None) -> None:
    """Hook before a Bot or Cron is written: refuse a schedule that makes no sense, remember one that does."""
    plan = plan_of(resource)
    if resource["resourceType"] == "Cron":
        _check_cron(repository, resource)
    elif plan is None and "cronTiming" in resource:
        repository.warn("cronTiming does not repeat: the Bot never runs by itself")
    project = repository.identity.project
    owner = (project, resource["resourceType"], resource["id"])
    with connection() as session:
        if plan is None:
            session.execute(_DROP, owner)
            return
        zone = plan.zone or project_zone(
            Repository(system_identity(project)).read("Project", project).resource
        )
        values = (_target(resource), plan.expression, plan.zone, plan.overlap, plan.missed, plan.ends)
        session.execute(
            _PUT, (*owner, *values, _next_due(plan.expression, zone, plan.ends, datetime.now(UTC)))
        )


def drop_on_delete(repository: Repository, previous: Json) -> None:
    """Hook before a Bot or Cron is deleted."""
    with connection() as session:
        session.execute(_DROP, (repository.identity.project, previous["resourceType"], previous["id"]))


def replan_on_write(_repository: Repository, project: Json, previous: Json | None) -> None:
    """Hook before a Project is written: schedules without a time zone of their own follow the project's."""
    zone = project_zone(project)
    check_zone(zone, "Project.setting")
    if previous is None or zone == project_zone(previous):
        return
    with connection() as session:
        rows = session.execute(
            "SELECT id, expression, ends FROM bots_schedule WHERE project = %s AND zone = '' FOR UPDATE",
            (project["id"],),
        ).fetchall()
        for id_, expression, ends in rows:
            due = _next_due(expression, zone, ends, datetime.now(UTC))
            session.execute(_MOVE, (due, id_))


def _target(resource: Json) -> str:
    """Id of the Bot that a Bot or Cron runs."""
    if resource["resourceType"] == "Bot":
        return str(resource["id"])
    reference = (resource.get("targetReference") or {}).get("reference")
    return str(reference).removeprefix("Bot/")


def _check_cron(repository: Repository, cron: Json) -> None:
    system = Repository(system_identity(repository.identity.project))
    for element, type_ in (("onBehalfOf", "ProjectMembership"), ("targetReference", "Bot")):
        reference = cron.get(element)
        if not isinstance(reference, dict):
            continue  # the validation says what is wrong
        text = str(reference.get("reference"))
        if not text.startswith(f"{type_}/") or not system.may_read(type_, text.partition("/")[2]):
            raise bad_request(f"Cron.{element} must refer to a {type_} of this project", f"Cron.{element}")


def _next_due(expression: str, zone: str, ends: datetime | None, after: datetime) -> datetime | None:
    try:
        moment = next(_moments(expression, after, ZoneInfo(zone)))
    except StopIteration:
        return None
    return None if ends is not None and moment > ends else moment.astimezone(UTC)


# --- firing ----------------------------------------------------------------------------------------------------------

_DUE = """
SELECT id, project, owner_type, owner_id, bot_id, expression, zone, overlap, missed, ends, next_due, clock_timestamp()
FROM bots_schedule WHERE next_due <= clock_timestamp() ORDER BY next_due LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_MOVE = "UPDATE bots_schedule SET next_due = %s WHERE id = %s"
_FIRE = """
INSERT INTO bots_delivery (project, trigger, subscription_id, change_id, bot_id, unordered, resource_type, resource_id, version_id,
    interaction, author, changed, trace_id, depth, state, outcome, finished, attempts, due)
VALUES (%s, 'cron', %s, %s, %s, %s, %s, %s, '', '', '', %s, gen_random_uuid()::text, 0, %s, %s, %s, 0, clock_timestamp())
ON CONFLICT (subscription_id, change_id) DO NOTHING RETURNING id
"""
_OPEN = """
SELECT 1 FROM bots_delivery WHERE state IN ('waiting', 'running', 'retrying')
  AND subscription_id = %s AND resource_type = %s AND resource_id = %s LIMIT 1
"""


def fire_due() -> int:
    """Make a delivery of each schedule that is due, and move the schedules on; returns how many there are to run."""
    fired = 0
    while True:
        with transaction() as session:
            row = session.execute(_DUE).fetchone()
            if row is None:
                return fired
            due = _Due(*row)
            try:
                with (
                    session.transaction()
                ):  # a savepoint: one that cannot be fired must not hold up the others
                    fired += _fire(due)
            except Exception as error:  # whatever it is, the next look would find this one first again
                if session.broken or (isinstance(error, FhirError) and error.status >= 500):
                    raise
                log_failure(f"schedule {due.id}", error)
                session.execute(_MOVE, (due.now + RECOVERY, due.id))


@dataclass(frozen=True, slots=True)
class _Due:
    """A row of the table that is due, locked; and the database's clock."""

    id: int
    project: str
    owner_type: str
    owner_id: str
    bot_id: str
    expression: str
    zone: str
    overlap: str
    missed: str
    ends: datetime | None
    due: datetime
    now: datetime


def _fire(due: _Due) -> bool:
    """Fire one schedule; False if nothing runs this time."""
    project = Repository(system_identity(due.project)).read("Project", due.project).resource
    zone = ZoneInfo(due.zone or project_zone(project))
    with connection() as session:
        session.execute(_MOVE, (_next_due(due.expression, zone.key, due.ends, due.now), due.id))
    if FEATURE not in (project.get("features") or ()):
        return False
    # the latest of those that were missed stands for all of them
    moment = max(
        due.due, next(CronSim(due.expression, due.now.astimezone(zone), reverse=True)).astimezone(UTC)
    )
    if due.ends is not None and moment > due.ends:
        moment = due.due
    reason = ""
    if due.missed == "skip" and due.now - moment > LATE:
        reason = "Left out: fhirbots was not running when it was due"
    elif due.overlap == "skip" and _is_open(due.owner_type, due.owner_id):
        reason = "Left out: the run before it had not ended"
    delivery = _insert(
        due.project,
        due.owner_type,
        due.owner_id,
        due.bot_id,
        moment,
        unordered=due.overlap == "allow",
        reason=reason,
    )
    return delivery is not None and not reason


def run_now(repository: Repository, type_: str, id_: str) -> int:
    """Run a Bot or Cron at once as its schedule would; returns the id of the delivery.

    Raises FhirError: when the caller may not read the resource; 400 for one that no schedule could run.
    """
    resource = repository.read(type_, id_).resource
    if type_ == "Cron" and not resource.get("targetReference"):
        raise bad_request("The Cron has no target")
    now = datetime.now(UTC)
    while True:
        delivery = _insert(repository.identity.project, type_, id_, _target(resource), now, unordered=True)
        if delivery is not None:
            return delivery
        now += timedelta(milliseconds=1)  # its schedule has fired at this very moment


def _insert(
    project: str,
    owner_type: str,
    owner_id: str,
    bot_id: str,
    moment: datetime,
    *,
    unordered: bool,
    reason: str = "",
) -> int | None:
    """Insert the delivery of a moment; None if there is one already."""
    # Ascending, and below the ids of all Changes: what the clock asks for goes first.
    order = int(moment.timestamp() * 1000) - 10**14
    values = (project, owner_id, order, bot_id, unordered, owner_type, owner_id, moment)
    state = ("skipped", reason, datetime.now(UTC)) if reason else ("waiting", "", None)
    with connection() as session:
        row = session.execute(_FIRE, (*values, *state)).fetchone()
    return row[0] if row else None


def _is_open(owner_type: str, owner_id: str) -> bool:
    with connection() as session:
        return session.execute(_OPEN, (owner_id, owner_type, owner_id)).fetchone() is not None
