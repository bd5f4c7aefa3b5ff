"""Schedule/$find: when somebody is free, from scheduling parameters and stored Slots."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhirstore.rest.scheduling import PARAMETERS, TIMEZONE, Interval, read_group, subtract, unite
from tests.rest.conftest import Caller, text_of

WEEKDAYS = ["mon", "tue", "wed", "thu", "fri"]
MONDAY = "2026-03-02"
CONSULT = {"coding": [{"system": "http://x", "code": "consult"}]}


def duration(name: str, value: float, unit: str = "min") -> dict[str, Any]:
    return {"url": name, "valueDuration": {"value": value, "unit": unit}}


def timing(*times: str, hours: float = 8, days: list[str] = WEEKDAYS) -> dict[str, Any]:
    repeat = {"dayOfWeek": days, "timeOfDay": list(times), "duration": hours, "durationUnit": "h"}
    return {"url": "availability", "valueTiming": {"repeat": repeat}}


def available_time(start: str, end: str, days: list[str] = WEEKDAYS) -> dict[str, Any]:
    parts = [{"url": "daysOfWeek", "valueCode": day} for day in days]
    parts += [
        {"url": "availableStartTime", "valueTime": start},
        {"url": "availableEndTime", "valueTime": end},
    ]
    return {"url": "availability", "extension": [{"url": "availableTime", "extension": parts}]}


ALL_DAY = {
    "url": "availability",
    "extension": [
        {
            "url": "availableTime",
            "extension": [
                *({"url": "daysOfWeek", "valueCode": day} for day in [*WEEKDAYS, "sat", "sun"]),
                {"url": "allDay", "valueBoolean": True},
            ],
        }
    ],
}
UTC_ZONE = {"url": "timezone", "valueCode": "Etc/UTC"}
HOURLY = duration("alignmentInterval", 60)


def parameters(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"url": PARAMETERS, "extension": list(parts)}


def make_schedule(home: Caller, *extensions: dict[str, Any], zone: str | None = None) -> str:
    practitioner: dict[str, Any] = {"resourceType": "Practitioner"}
    if zone:
        practitioner["extension"] = [{"url": TIMEZONE, "valueCode": zone}]
    actor = {"reference": f"Practitioner/{home.create(practitioner)['id']}", "display": "Dr. Gopher"}
    schedule: dict[str, Any] = {"resourceType": "Schedule", "actor": [actor]}
    if extensions:
        schedule["extension"] = list(extensions)
    return home.create(schedule)["id"]


def add_slot(home: Caller, schedule: str, start: str, end: str, status: str, **more: Any) -> None:
    slot = {"resourceType": "Slot", "schedule": {"reference": f"Schedule/{schedule}"}, "status": status}
    home.create({**slot, "start": start, "end": end, **more})


def find(home: Caller, schedule: str, start: str, end: str, extra: str = "") -> list[dict[str, Any]]:
    answer = home.send("GET", f"Schedule/{schedule}/$find?start={start}&end={end}{extra}")
    assert answer.status_code == 200, answer.content
    bundle = answer.json()
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "searchset")
    return [entry["resource"] for entry in bundle.get("entry", [])]


def times(slots: list[dict[str, Any]]) -> list[str]:
    """The slots as ``day hour:minute-hour:minute``."""
    return [f"{slot['start'][8:10]} {slot['start'][11:16]}-{slot['end'][11:16]}" for slot in slots]


@pytest.mark.parametrize(
    ("parts", "start", "end", "expected"),
    [
        ([duration("duration", 60), HOURLY, timing("09:00:00", hours=3)], "00:00", "23:59",
         ["02 09:00-10:00", "02 10:00-11:00", "02 11:00-12:00"]),
        ([duration("duration", 1, "h"), duration("alignmentInterval", 30), timing("09:00:00", hours=2)], "00:00", "23:59",
         ["02 09:00-10:00", "02 09:30-10:30", "02 10:00-11:00"]),
        ([duration("duration", 30), duration("alignmentInterval", 30), duration("alignmentOffset", 10),
          timing("09:00:00", hours=2)], "00:00", "23:59",
         ["02 09:10-09:40", "02 09:40-10:10", "02 10:10-10:40"]),
        ([duration("duration", 30), duration("bufferBefore", 15), duration("bufferAfter", 15),
          duration("alignmentInterval", 15), timing("09:00:00", hours=1.5)], "00:00", "23:59",
         ["02 09:15-09:45", "02 09:30-10:00", "02 09:45-10:15"]),
        ([duration("duration", 20), HOURLY, timing("09:00:00", "13:00:00", hours=1)], "00:00", "23:59",
         ["02 09:00-09:20", "02 13:00-13:20"]),
        ([duration("duration", 60), HOURLY, timing("09:00:00")], "09:30", "12:00", ["02 10:00-11:00", "02 11:00-12:00"]),
        ([duration("duration", 60), HOURLY, available_time("22:00:00", "01:00:00")], "20:00", "23:59",
         ["02 22:00-23:00"]),
        ([duration("duration", 60), HOURLY, available_time("22:00:00", "02:00:00", ["sun"])], "00:00", "06:00",
         ["02 00:00-01:00", "02 01:00-02:00"]),
        ([duration("duration", 60), HOURLY, available_time("09:00:00", "10:00:00", ["tue"])], "00:00", "23:59", []),
        ([duration("duration", 6, "h"), HOURLY, ALL_DAY], "00:00", "07:00", ["02 00:00-06:00", "02 01:00-07:00"]),
        ([duration("duration", 2, "h"), duration("alignmentInterval", 2, "h")], "01:00", "07:00",
         ["02 02:00-04:00", "02 04:00-06:00"]),
        ([duration("duration", 45)], "09:10", "11:00", ["02 09:10-09:55", "02 09:55-10:40"]),
        ([duration("duration", 45), duration("alignmentOffset", 15)], "09:00", "11:10",
         ["02 09:15-10:00", "02 10:15-11:00"]),
    ],
)  # fmt: skip
def test_slots_follow_the_scheduling_parameters(
    home: Caller, parts: list[dict[str, Any]], start: str, end: str, expected: list[str]
) -> None:
    schedule = make_schedule(home, parameters(UTC_ZONE, *parts))
    assert times(find(home, schedule, f"{MONDAY}T{start}:00Z", f"{MONDAY}T{end}:00Z")) == expected


def test_seconds_are_rounded_up_to_the_grid(home: Caller) -> None:
    schedule = make_schedule(home, parameters(duration("duration", 10), duration("alignmentInterval", 1)))
    found = find(home, schedule, f"{MONDAY}T09:00:01.5Z", f"{MONDAY}T09:12:00Z")
    assert times(found) == ["02 09:01-09:11", "02 09:02-09:12"]


def test_stored_slots_add_and_take_time(home: Caller) -> None:
    schedule = make_schedule(
        home, parameters(UTC_ZONE, duration("duration", 60), HOURLY, timing("09:00:00", hours=4))
    )
    other = make_schedule(home)
    for status, start, end in (
        ("busy", "09:00", "10:00"),
        ("busy-unavailable", "10:30", "10:45"),
        ("busy-tentative", "12:30", "12:35"),
        ("entered-in-error", "11:00", "12:00"),
        ("free", "15:00", "16:00"),
    ):
        add_slot(home, schedule, f"{MONDAY}T{start}:00Z", f"{MONDAY}T{end}:00Z", status)
    add_slot(home, other, f"{MONDAY}T11:00:00Z", f"{MONDAY}T12:00:00Z", "busy")
    found = find(home, schedule, f"{MONDAY}T00:00:00Z", f"{MONDAY}T23:00:00Z")
    assert times(found) == ["02 11:00-12:00", "02 15:00-16:00"]
    assert found[0]["schedule"] == {"reference": f"Schedule/{schedule}", "display": "Dr. Gopher"}
    assert found[0]["status"] == "free"
    assert found[0]["start"] == f"{MONDAY}T11:00:00.000Z"
    assert "id" not in found[0]


def test_availability_keeps_its_local_time_when_the_clocks_change(home: Caller) -> None:
    schedule = make_schedule(
        home,
        parameters(duration("duration", 60), HOURLY, available_time("09:00:00", "10:00:00", ["sat", "sun"])),
        zone="America/New_York",
    )
    # on 8 March 2026 New York goes from UTC-5 to UTC-4
    found = find(home, schedule, "2026-03-07T00:00:00Z", "2026-03-09T00:00:00Z")
    assert times(found) == ["07 14:00-15:00", "08 13:00-14:00"]


def test_the_day_the_clocks_change_has_23_hours(home: Caller) -> None:
    parts = [duration("duration", 60), HOURLY, {"url": "timezone", "valueCode": "Europe/Berlin"}, ALL_DAY]
    schedule = make_schedule(home, parameters(*parts))
    found = find(home, schedule, "2026-03-29T00:00:00%2B01:00", "2026-03-30T00:00:00%2B02:00", "&_count=100")
    assert len(found) == 23


def test_the_grid_may_stand_in_another_time_zone(home: Caller) -> None:
    parts = [duration("duration", 60), HOURLY, {"url": "alignmentTimezone", "valueCode": "Asia/Kolkata"}]
    schedule = make_schedule(home, parameters(*parts))
    assert times(find(home, schedule, f"{MONDAY}T09:00:00Z", f"{MONDAY}T11:00:00Z")) == ["02 09:30-10:30"]


def test_services_choose_the_parameters(home: Caller) -> None:
    service = home.create(
        {
            "resourceType": "HealthcareService",
            "type": [{"coding": [{"system": "http://x", "code": "surgery"}]}],
            "extension": [parameters(duration("duration", 120), duration("bufferBefore", 30), HOURLY)],
        }
    )
    reference = f"HealthcareService/{service['id']}"
    schedule = make_schedule(
        home,
        parameters(duration("duration", 30), HOURLY, {"url": "serviceType", "valueCodeableConcept": CONSULT}),
        parameters(
            {"url": "service", "valueReference": {"reference": reference}}, duration("bufferBefore", 0)
        ),
    )
    window = (f"{MONDAY}T09:00:00Z", f"{MONDAY}T11:00:00Z")
    assert times(find(home, schedule, *window)) == ["02 09:00-09:30", "02 09:00-11:00", "02 10:00-10:30"]
    consult = find(home, schedule, *window, "&service-type=http://x%7Cconsult")
    assert times(consult) == ["02 09:00-09:30", "02 10:00-10:30"]
    assert consult[0]["serviceType"] == [CONSULT]
    for query in ("&service-type=surgery", f"&service-type-reference={reference}"):
        assert times(find(home, schedule, *window, query)) == ["02 09:00-11:00"]
    bare = make_schedule(home)
    query = f"&service-type-reference={reference}"
    assert times(find(home, bare, f"{MONDAY}T09:00:00Z", f"{MONDAY}T12:00:00Z", query)) == ["02 10:00-12:00"]
    answer = home.send(
        "GET", f"Schedule/{schedule}/$find?start={window[0]}&end={window[1]}&service-type=other"
    )
    assert answer.status_code == 400
    assert text_of(answer) == "No scheduling parameters found for the requested service type(s)"


def test_without_scheduling_parameters_stored_free_slots_tell(home: Caller) -> None:
    schedule = make_schedule(home)
    window = (f"{MONDAY}T09:00:00Z", f"{MONDAY}T12:00:00Z")
    assert find(home, schedule, *window) == []
    add_slot(home, schedule, f"{MONDAY}T08:30:00Z", f"{MONDAY}T09:30:00Z", "free", serviceType=[CONSULT])
    add_slot(home, schedule, f"{MONDAY}T10:00:00Z", f"{MONDAY}T11:00:00Z", "free")
    add_slot(home, schedule, f"{MONDAY}T10:20:00Z", f"{MONDAY}T10:40:00Z", "busy")
    found = find(home, schedule, *window)
    assert times(found) == ["02 09:00-09:30", "02 10:00-10:20", "02 10:40-11:00"]
    assert found[0]["serviceType"] == [CONSULT]
    assert len(find(home, schedule, *window, "&_count=2")) == 2
    assert len(find(home, schedule, *window, "&service-type=other")) == 2


def ask_as_the_tutorial_does(home: Caller, schedule: str, now: datetime) -> bool:
    """True if the bot of the messaging tutorial would think the provider available."""
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "start", "valueDateTime": now.isoformat(timespec="milliseconds")},
            {"name": "end", "valueDateTime": (now + timedelta(hours=1)).isoformat(timespec="milliseconds")},
        ],
    }
    answer = home.send("POST", f"Schedule/{schedule}/$find", body).json()
    assert answer["parameter"][0]["name"] == "return"
    bundle = answer["parameter"][0]["resource"]
    return any(entry["resource"]["status"] == "free" for entry in bundle.get("entry", []))


def test_the_out_of_office_bot_learns_whether_a_provider_is_available(home: Caller) -> None:
    schedule = make_schedule(home, parameters(UTC_ZONE, duration("duration", 60), timing("09:00:00")))
    now = datetime(2026, 3, 2, 10, 23, 17, 123000, UTC)
    assert ask_as_the_tutorial_does(home, schedule, now)
    assert not ask_as_the_tutorial_does(home, schedule, now.replace(hour=20))
    assert not ask_as_the_tutorial_does(home, schedule, now + timedelta(days=5))
    add_slot(home, schedule, f"{MONDAY}T00:00:00Z", "2026-03-09T00:00:00Z", "busy-unavailable")
    assert not ask_as_the_tutorial_does(home, schedule, now)
    assert not ask_as_the_tutorial_does(home, make_schedule(home), now)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "Missing parameter start"),
        ("start=2026-03-02T09:00:00Z", "Missing parameter end"),
        (
            "start=2026-03-02&end=2026-03-03",
            "Invalid start: expected an instant such as 2026-03-01T09:00:00Z",
        ),
        ("start=2026-03-02T09:00:00Z&end=2026-03-02T09:00:00Z", "Invalid search time range"),
        ("start=0001-01-01T00:00:00%2B14:00&end=0001-01-02T00:00:00Z", "Invalid search time range"),
        ("start=2026-03-02T09:00:00Z&end=2026-04-03T09:00:00Z", "Search range cannot exceed 31 days"),
        (
            "start=2026-03-02T09:00:00Z&end=2026-03-03T09:00:00Z&_count=0",
            "Invalid _count: expected a whole number from 1 to 1000",
        ),
        (
            "start=2026-03-02T09:00:00Z&end=2026-03-03T09:00:00Z&service-type-reference=Patient/1",
            "service-type-reference must be the reference of a HealthcareService",
        ),
    ],
)
def test_wrong_parameters_are_refused(home: Caller, query: str, text: str) -> None:
    answer = home.send("GET", f"Schedule/{make_schedule(home)}/$find?{query}")
    assert (answer.status_code, text_of(answer)) == (400, text)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([timing("09:00:00"), duration("duration", 5)], "No timezone specified"),
        ([UTC_ZONE, timing("09:00:00")], "SchedulingParameters need a duration above zero"),
        ([duration("duration", 5, "fortnight")], "Invalid scheduling parameter: duration"),
        ([{"url": "timezone", "valueCode": "Mars/Base"}], "Unknown timezone: Mars/Base"),
        ([UTC_ZONE, duration("duration", 5), timing("09:00:00", days=["fri"]) | {"url": "alignmentInterval"}],
         "Invalid scheduling parameter: alignmentInterval"),
    ],
)  # fmt: skip
def test_unusable_scheduling_parameters_are_named(
    home: Caller, parts: list[dict[str, Any]], text: str
) -> None:
    schedule = make_schedule(home, parameters(*parts))
    answer = home.send("GET", f"Schedule/{schedule}/$find?start={MONDAY}T00:00:00Z&end={MONDAY}T20:00:00Z")
    assert (answer.status_code, text_of(answer)) == (400, text)


def test_a_service_that_is_not_there_is_named(home: Caller) -> None:
    for reference in ("HealthcareService/00000000-0000-4000-8000-000000000000", "Patient/1"):
        service = {"url": "service", "valueReference": {"reference": reference}}
        schedule = make_schedule(home, parameters(duration("duration", 5), service))
        answer = home.send(
            "GET", f"Schedule/{schedule}/$find?start={MONDAY}T00:00:00Z&end={MONDAY}T20:00:00Z"
        )
        text = f"The HealthcareService of the scheduling parameters is not there: {reference}"
        assert (answer.status_code, text_of(answer)) == (400, text)


def test_only_schedules_of_one_actor_of_the_own_project_are_asked(home: Caller, foreign: Caller) -> None:
    actors = [{"reference": "Practitioner/1"}, {"reference": "Location/1"}]
    several = home.create({"resourceType": "Schedule", "actor": actors})["id"]
    query = f"$find?start={MONDAY}T00:00:00Z&end={MONDAY}T20:00:00Z"
    answer = home.send("GET", f"Schedule/{several}/{query}")
    assert text_of(answer) == "$find only supported on schedules with exactly one actor"
    assert foreign.send("GET", f"Schedule/{make_schedule(home)}/{query}").status_code == 404


def test_a_slot_each_second_of_a_month_is_cut_short(home: Caller) -> None:
    schedule = make_schedule(home, parameters(duration("duration", 1, "s")))
    found = find(home, schedule, f"{MONDAY}T00:00:00Z", "2026-04-01T00:00:00Z", "&_count=1000")
    assert len(found) == 1000


START = datetime(2026, 3, 2, tzinfo=UTC)
minutes = st.integers(0, 600)
intervals = st.lists(
    st.tuples(minutes, minutes).filter(lambda pair: pair[0] < pair[1]).map(
        lambda pair: Interval(START + timedelta(minutes=pair[0]), START + timedelta(minutes=pair[1]))
    ),
    max_size=8,
)  # fmt: skip


def minutes_of(found: list[Interval]) -> set[int]:
    return {
        minute
        for interval in found
        for minute in range((interval.start - START).seconds // 60, (interval.end - START).seconds // 60)
    }


@settings(max_examples=200, deadline=None)
@given(intervals, intervals)
def test_intervals_behave_like_sets_of_minutes(left: list[Interval], right: list[Interval]) -> None:
    assert minutes_of(subtract(left, right)) == minutes_of(left) - minutes_of(right)
    joined = unite(left)
    assert minutes_of(joined) == minutes_of(left)
    assert all(first.end < second.start for first, second in pairwise(joined))


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 120),
    interval=st.none() | st.integers(1, 60),
    offset=st.integers(0, 59),
    before=st.integers(0, 30),
    gap=st.tuples(st.integers(0, 20_000), st.integers(1, 20_000)),
)
def test_cut_slots_lie_inside_their_gap_and_on_the_grid(
    length: int, interval: int | None, offset: int, before: int, gap: tuple[int, int]
) -> None:
    parts = [duration("duration", length), duration("bufferBefore", before)]
    if interval:
        parts += [duration("alignmentInterval", interval), duration("alignmentOffset", offset)]
    start = START + timedelta(seconds=gap[0])
    free = Interval(start, start + timedelta(seconds=gap[1]))
    slots = list(read_group(parameters(*parts)).cut(free))
    for slot in slots:
        assert slot.end - slot.start == timedelta(minutes=length)
        assert free.start + timedelta(minutes=before) <= slot.start
        assert slot.end <= free.end
        if interval:
            assert (slot.start.minute - offset) % interval == 0
            assert slot.start.second == 0
    room = gap[1] - 60 * (before + length)
    if interval is None:
        assert bool(slots) == (room >= 0)
    elif 60 % interval == 0:
        assert bool(slots) or room < 60 * interval
