"""Schedules: what is refused, what runs when, and that each moment runs once (subscriptions-and-cron.md §9)."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from bots import cron
from bots.models import Delivery, Schedule
from fhirstore.api import FhirError, Repository, connection, identity_of_membership, system_identity
from fhirstore.bootstrap import bootstrap
from tests.bots.conftest import Project, wait_until
from tests.bots.test_audit import parts

TELL = """
exports.handler = async (medplum, event) => {
  console.log(JSON.stringify({ ...event, secrets: undefined, profile: medplum.getProfile() }));
};"""
YEARLY = "0 0 1 1 *"


def due_again(owner_id: str, ago: timedelta = timedelta(seconds=1)) -> None:
    """Let the schedule of a resource be due, as if its moment had come this long ago."""
    assert Schedule.objects.filter(owner_id=owner_id).update(next_due=datetime.now(UTC) - ago) == 1


def runs_of(owner_id: str) -> list[Delivery]:
    return list(Delivery.objects.filter(subscription_id=owner_id).order_by("change_id"))


def parameters(answer: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an answer by name; repeated ones as a list."""
    found: dict[str, list[Any]] = {}
    for each in answer["parameter"]:
        value = next(value for key, value in each.items() if key != "name")
        found.setdefault(each["name"], []).append(value)
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


# --- as functions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timing", "expression"),
    [
        ({"repeat": {"period": 1}}, "0 0 * * *"),
        ({"repeat": {}}, "0 0 * * *"),
        ({"repeat": {"period": 2}}, "0 */12 * * *"),
        ({"repeat": {"period": 5}}, "0 */5 * * *"),
        ({"repeat": {"period": 24}}, "0 */1 * * *"),
        ({"repeat": {"period": 30}}, "*/48 * * * *"),
        ({"repeat": {"period": 60}}, "0 */1 * * *"),
        ({"repeat": {"period": 2, "dayOfWeek": ["sun", "wed"]}}, "0 */12 * * 0,3"),
        ({"event": ["2026-01-01"]}, None),
    ],
)
def test_timing_becomes_an_expression(timing: dict[str, Any], expression: str | None) -> None:
    plan = cron.plan_of({"resourceType": "Bot", "cronTiming": timing})
    assert (plan.expression if plan else None) == expression


@pytest.mark.parametrize(
    "expression",
    ["", "x", "* * * *", "* * * * * *", "@daily", "61 * * * *", "0 24 * * *", "0 0 31 2 *", "0 0 0 * *", "*/0 * * * *", "² * * * *"],
)  # fmt: skip
def test_expressions_that_make_no_sense(expression: str) -> None:
    with pytest.raises(FhirError) as refused:
        cron.check_expression(expression, "Bot.cronString")
    assert refused.value.status == 400
    assert refused.value.outcome["issue"][0]["expression"] == ["Bot.cronString"]
    assert "ron expression" in str(refused.value)


def test_moments_follow_the_wall_clock_through_daylight_saving_time() -> None:
    plan = cron.Plan("30 9 * * *", "Europe/Berlin", "skip", "once")
    moments = cron.next_moments(plan, "Europe/Berlin", 400)
    assert {(moment.hour, moment.minute) for moment in moments} == {(9, 30)}
    assert {moment.astimezone(ZoneInfo("UTC")).hour for moment in moments} == {7, 8}


# --- at write --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(database: None) -> Repository:
    """Of the admin of a project without any worker."""
    made = bootstrap(email="cron@example.com", password="x" * 20, project_name="Cron", client_id=None, client_secret=None)  # fmt: skip
    return Repository(identity_of_membership(made.membership))


def bot(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Bot", "name": "B"} | elements


@pytest.mark.parametrize(
    ("elements", "text"),
    [
        ({"cronString": "every day"}, "has five fields"),
        ({"cronString": "0 0 31 2 *"}, "Invalid cron expression"),
        ({"cronTiming": {"repeat": {"period": -1}}}, "how often a day"),
        ({"extension": [{"url": cron.ZONE, "valueCode": "Mars/Olympus"}], "cronString": YEARLY}, "Unknown time zone"),
        ({"extension": [{"url": cron.OVERLAP, "valueCode": "maybe"}], "cronString": YEARLY}, "one of skip, queue, allow"),
    ],
)  # fmt: skip
def test_a_bot_with_such_a_schedule_is_refused(
    repository: Repository, elements: dict[str, Any], text: str
) -> None:
    with pytest.raises(FhirError, match=text) as refused:
        repository.create(bot(**elements))
    assert refused.value.status == 400


def test_cron_resource_is_checked(repository: Repository) -> None:
    target = {"reference": f"Bot/{repository.create(bot()).id}"}
    behalf = {"reference": f"ProjectMembership/{repository.identity.membership}"}
    good = {"resourceType": "Cron", "active": True, "onBehalfOf": behalf, "targetReference": target, "cronString": YEARLY}  # fmt: skip
    for elements, text in (
        ({"cronString": "x"}, "five fields"),
        ({"targetReference": {"reference": f"Bot/{repository.identity.membership}"}}, "must refer to a Bot"),
        ({"onBehalfOf": target}, "must refer to a ProjectMembership"),
        ({"endTime": "soon"}, "endTime"),
    ):
        with pytest.raises(FhirError, match=text):
            repository.create(good | elements)
    made = repository.create(good | {"endTime": "2020"})
    assert Schedule.objects.get(owner_id=made.id).next_due is None
    repository.update(made.resource | {"endTime": "2999-01-01"})
    assert Schedule.objects.get(owner_id=made.id).next_due is not None
    repository.update(repository.read("Cron", made.id).resource | {"active": False})
    assert not Schedule.objects.filter(owner_id=made.id).exists()


def test_schedule_follows_its_bot_and_the_time_zone_of_its_project(repository: Repository) -> None:
    made = repository.create(bot(cronString="0 9 * * *"))

    def schedule() -> Schedule:
        return Schedule.objects.get(owner_id=made.id)

    first = schedule()
    assert first.next_due is not None
    assert first.next_due.hour == 9
    repository.patch("Bot", made.id, [{"op": "add", "path": "/description", "value": "x"}])
    assert schedule().next_due == first.next_due
    project = repository.identity.project
    setting = [{"name": "timeZone", "valueString": "Asia/Tokyo"}]
    repository.patch("Project", project, [{"op": "add", "path": "/setting", "value": setting}])
    moved = schedule().next_due
    assert moved is not None
    assert moved.hour == 0
    bad = [{"op": "add", "path": "/setting", "value": [{"name": "timeZone", "valueString": "Nowhere"}]}]
    with pytest.raises(FhirError, match="Unknown time zone"):
        repository.patch("Project", project, bad)
    repository.patch("Bot", made.id, [{"op": "remove", "path": "/cronString"}])
    assert not Schedule.objects.filter(owner_id=made.id).exists()
    repository.patch("Bot", made.id, [{"op": "add", "path": "/cronString", "value": YEARLY}])
    repository.delete("Bot", made.id)
    assert not Schedule.objects.filter(owner_id=made.id).exists()


# --- firing ----------------------------------------------------------------------------------------------------------


def features(repository: Repository, *names: str) -> None:
    system = Repository(system_identity(repository.identity.project))
    operations = [{"op": "add", "path": "/features", "value": list(names)}]
    system.patch("Project", repository.identity.project, operations)


def test_many_who_look_at_the_same_time_fire_each_moment_once(repository: Repository) -> None:
    features(repository, "bots", "cron")
    made = [repository.create(bot(cronString=YEARLY)).id for _ in range(5)]
    for each in made:
        due_again(each)
    counts: list[int] = []
    looking = [threading.Thread(target=lambda: counts.append(cron.fire_due())) for _ in range(6)]
    for each_thread in looking:
        each_thread.start()
    for each_thread in looking:
        each_thread.join()
    assert sum(counts) == 5
    for each in made:
        (run,) = runs_of(each)
        assert run.state == "waiting"
        due = Schedule.objects.get(owner_id=each).next_due
        assert due is not None
        assert due > datetime.now(UTC)


def test_missed_moments_and_overlap(repository: Repository) -> None:
    features(repository, "bots", "cron")

    def fired(ago: timedelta, **elements: Any) -> list[tuple[str, str]]:
        made = repository.create(bot(**elements)).id
        for _ in range(2):
            due_again(made, ago)
            cron.fire_due()
            ago /= 2
        return [(run.state, run.outcome.partition(":")[0]) for run in runs_of(made)]

    def choices(overlap: str, missed: str = "once") -> list[dict[str, str]]:
        return [{"url": cron.OVERLAP, "valueCode": overlap}, {"url": cron.MISSED, "valueCode": missed}]

    days = timedelta(days=800)
    assert fired(days, cronString=YEARLY) == [
        ("waiting", "")
    ]  # the same New Year's Day stands for all that were missed
    moment = timedelta(seconds=20)
    assert fired(moment, cronString=YEARLY) == [("waiting", ""), ("skipped", "Left out")]
    assert fired(moment, cronString=YEARLY, extension=choices("queue")) == [("waiting", "")] * 2
    assert fired(moment, cronString=YEARLY, extension=choices("allow")) == [("waiting", "")] * 2
    late = timedelta(minutes=10)
    assert fired(late, cronString=YEARLY, extension=choices("queue", "skip")) == [("skipped", "Left out")] * 2


def test_feature_switched_on_and_off_takes_effect_at_once(repository: Repository) -> None:
    features(repository, "bots")
    made = repository.create(bot(cronString=YEARLY)).id
    due_again(made)
    assert cron.fire_due() == 0
    assert runs_of(made) == []
    features(repository, "bots", "cron")
    due_again(made)
    assert cron.fire_due() == 1


@pytest.mark.parametrize("change", ["zone = 'Nowhere/Else'", "expression = 'of another version'"])
def test_schedule_that_cannot_be_fired_does_not_hold_up_others(repository: Repository, change: str) -> None:
    features(repository, "bots", "cron")
    broken, good = (repository.create(bot(cronString=YEARLY)).id for _ in range(2))
    with connection() as session:  # as if the time zone had gone from the system since
        session.execute(f"UPDATE bots_schedule SET {change} WHERE owner_id = %s", (broken,))
    due_again(broken, timedelta(seconds=9))
    due_again(good)
    assert cron.fire_due() == 1
    assert len(runs_of(good)) == 1
    assert cron.fire_due() == 0


# --- with a worker ---------------------------------------------------------------------------------------------------


def told(event: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(event["outcomeDesc"])
    return found


def test_bot_runs_by_itself(project: Project) -> None:
    features(project.repository, "bots", "cron")
    made = project.bot(TELL, filename="a.cjs", cronString=YEARLY, runAsUser=True)
    due_again(made)
    (event,) = project.audit_events(f"Bot/{made}", 1)
    assert [entity["what"]["reference"] for entity in event["entity"]] == [f"Bot/{made}"] * 2
    assert event["agent"][0] == {"requestor": True}
    assert event["agent"][1]["who"]["reference"] == f"Bot/{made}"
    assert parts(event, "urn:fhirbots:bot-run")["trigger"] == "cron"
    seen = told(event)
    assert (seen["input"]["id"], seen["contentType"]) == (made, "application/fhir+json")
    assert not {"requester", "headers"} & seen.keys()
    (run,) = runs_of(made)
    assert (run.state, run.audit_event_id) == ("done", event["id"])


def test_cron_runs_on_behalf_of_its_membership_with_itself_as_input(project: Project) -> None:
    features(project.repository, "bots", "cron")
    made = project.bot(TELL, filename="a.cjs")
    resource = {
        "resourceType": "Cron",
        "active": True,
        "onBehalfOf": {"reference": f"ProjectMembership/{project.admin.identity.membership}"},
        "targetReference": {"reference": f"Bot/{made}"},
        "cronString": YEARLY,
        "parameter": [{"name": "days", "valueInteger": 3}],
    }
    schedule = project.post("/fhir/R4/Cron", resource)
    due_again(schedule["id"])
    (event,) = project.audit_events(f"Cron/{schedule['id']}", 1)
    assert event["agent"][1]["who"]["reference"] == project.admin.identity.profile
    assert told(event)["input"]["parameter"] == resource["parameter"]


def test_failure_is_one_audit_event_and_visible(project: Project) -> None:
    features(project.repository, "bots", "cron")
    made = project.bot(
        "exports.handler = async () => { throw new Error('no'); };", filename="a.cjs", cronString=YEARLY
    )
    due_again(made)
    (event,) = project.audit_events(f"Bot/{made}", 1)
    assert event["outcome"] == "4"
    described = parameters(project.http.get(f"/fhir/R4/Bot/{made}/$schedule").json())
    last = parameters({"parameter": described["lastRun"]})
    assert (last["state"], last["auditEvent"]["reference"]) == ("failed", f"AuditEvent/{event['id']}")


def test_schedule_in_words_its_next_moments_and_run_now(project: Project) -> None:
    features(project.repository, "bots")
    zone = [{"url": cron.ZONE, "valueCode": "Europe/Berlin"}]
    made = project.bot(TELL, filename="a.cjs", cronString="30 9 * * 1-5", extension=zone)
    described = parameters(project.http.get(f"/fhir/R4/Bot/{made}/$schedule").json())
    assert described["description"] == "At 09:30 on Monday through Friday"
    assert described["timeZone"] == "Europe/Berlin"
    assert len(described["next"]) == 5
    assert all(datetime.fromisoformat(each).strftime("%H:%M") == "09:30" for each in described["next"])
    assert described["enabled"] is False
    assert "feature cron" in described["problem"]
    answer = project.http.post(f"/fhir/R4/Bot/{made}/$run-now")
    assert answer.status_code == 200, answer.text
    project.audit_events(f"Bot/{made}", 1)
    wait_until(lambda: [run.state for run in runs_of(made)] == ["done"])
    preview = project.http.get(
        "/fhir/R4/Bot/$schedule", params={"cron": "0 9 * * *", "timezone": "Asia/Tokyo"}
    )
    assert parameters(preview.json())["description"] == "At 09:00 every day"
    for query in ({"cron": "nonsense"}, {"cron": YEARLY, "timezone": "x"}, {}):
        assert project.http.get("/fhir/R4/Bot/$schedule", params=query).status_code == 400


def test_timing_that_never_repeats_is_warned_of(project: Project) -> None:
    timing = bot(cronTiming={"event": ["2026-01-01"]})
    answer = project.http.post("/fhir/R4/Bot", json=timing)
    assert (answer.status_code, "never runs by itself" in answer.headers["warning"]) == (201, True)
    refused = project.http.post("/fhir/R4/Bot", json=bot(cronString="x"))
    assert refused.json()["issue"][0]["expression"] == ["Bot.cronString"]
