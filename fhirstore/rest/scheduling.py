"""``Schedule/{id}/$find``: when is somebody free?

Free time comes from the Schedule's SchedulingParameters (weekly availability in a time zone, one group for each service)
and from stored Slots. Without SchedulingParameters stored Slots alone tell, and no free Slot means not available.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fhirstore.errors import FhirError, bad_request, forbidden
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.repository import Repository, Stored
from fhirstore.rest.parameters import Input, output, read_input
from fhirstore.rest.response import resource_json
from fhirstore.search.index import date_range

Json = dict[str, Any]

PARAMETERS: Final = "https://medplum.com/fhir/StructureDefinition/SchedulingParameters"
TIMEZONE: Final = "http://hl7.org/fhir/StructureDefinition/timezone"
MAX_RANGE: Final = timedelta(days=31)
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
UNITS: Final = {
    "s": timedelta(seconds=1),
    "min": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "wk": timedelta(weeks=1),
}
MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
LONGEST: Final = timedelta(days=366)
MICROSECOND: Final = timedelta(microseconds=1)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation("$find", find_slots, types=["Schedule"], instance=True)


def find_slots(request: OperationRequest) -> Json:
    """``$find``: GET answers a Bundle of free Slots, POST the same inside Parameters.

    Parameters: ``start`` and ``end`` (instants, at most 31 days apart), ``service-type`` (tokens), ``service-type-reference``
    (HealthcareService), ``_count`` (20, at most 1000).

    Raises:
        FhirError: 400 for invalid parameters, a Schedule that cannot be asked, or one without the service; 404, 410.
    """
    assert request.id is not None
    given = read_input(request)
    window = _window(given)
    count = given.whole_number("_count", 20, lowest=1, highest=1000)
    schedule = resource_json(request, request.repository.read("Schedule", request.id))
    if len(schedule.get("actor", ())) != 1:
        raise bad_request("$find only supported on schedules with exactly one actor")
    slots = _stored_slots(request.repository, request.id, window)
    found = _find(request.repository, schedule, slots, window, given, count)
    by_time = {(slot.start, slot.end, str(slot.service_type)): slot for slot in found}
    entries = [{"resource": slot.resource(schedule)} for _, slot in sorted(by_time.items())[:count]]
    bundle: Json = {"resourceType": "Bundle", "type": "searchset"}
    if entries:
        bundle["entry"] = entries
    return bundle if request.method == "GET" else output({"name": "return", "resource": bundle})


# --- intervals ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """A time from `start` up to `end`, both in UTC."""

    start: datetime
    end: datetime

    def meet(self, other: Interval) -> Interval | None:
        """The time both have in common, None without any."""
        common = Interval(max(self.start, other.start), min(self.end, other.end))
        return common if common.start < common.end else None


def unite(intervals: Iterable[Interval]) -> list[Interval]:
    """Join intervals that overlap or touch; in order of time."""
    joined: list[Interval] = []
    for interval in sorted(intervals):
        if joined and interval.start <= joined[-1].end:
            joined[-1] = Interval(joined[-1].start, max(joined[-1].end, interval.end))
        else:
            joined.append(interval)
    return joined


def subtract(intervals: Iterable[Interval], taken: Iterable[Interval]) -> list[Interval]:
    """What is left of intervals, in order of time, when others are taken away."""
    left: list[Interval] = []
    blocks = unite(taken)
    for interval in unite(intervals):
        start = interval.start
        for block in blocks:
            if block.end <= start:
                continue
            if block.start >= interval.end:
                break
            if block.start > start:
                left.append(Interval(start, block.start))
            start = block.end
        if start < interval.end:
            left.append(Interval(start, interval.end))
    return left


# --- scheduling parameters -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weekly:
    """Availability on certain days of the week.

    Attributes:
        days: 0 for Monday.
        start: local time at which it begins.
        end: local time at which it ends, on the next day if not later than `start`; None with a `length`.
        length: how long it lasts.
    """

    days: frozenset[int]
    start: time
    end: time | None = None
    length: timedelta = timedelta()

    def on(self, day: date, zone: ZoneInfo) -> Interval:
        """The interval that begins on a local day."""
        start = datetime.combine(day, self.start, zone).astimezone(UTC)
        if self.end is None:
            return Interval(start, start + self.length)
        last = day if self.end > self.start else day + DAY
        return Interval(start, datetime.combine(last, self.end, zone).astimezone(UTC))


@dataclass(frozen=True, slots=True)
class Group:
    """One SchedulingParameters extension; None, or nothing, for what it does not say."""

    duration: timedelta | None = None
    before: timedelta | None = None
    after: timedelta | None = None
    interval: timedelta | None = None
    offset: timedelta | None = None
    alignment_zone: ZoneInfo | None = None
    zone: ZoneInfo | None = None
    service_types: tuple[Json, ...] = ()
    service: str | None = None
    availability: tuple[Weekly, ...] = ()

    def over(self, other: Group) -> Group:
        """This group with what it does not say taken from another."""
        said = {name: getattr(self, name) for name in Group.__dataclass_fields__}
        return replace(other, **{name: value for name, value in said.items() if value not in (None, ())})

    def available(self, window: Interval, zone: ZoneInfo | None) -> Iterator[Interval]:
        """The availability inside a window; all of it where no availability is given."""
        if not self.availability:
            yield window
            return
        if zone is None:
            raise bad_request("No timezone specified")
        reach = max((1 + math.ceil(weekly.length / DAY) for weekly in self.availability), default=1)
        day = window.start.astimezone(zone).date() - reach * DAY
        last = window.end.astimezone(zone).date()
        while day <= last:
            for weekly in self.availability:
                if day.weekday() in weekly.days and (inside := weekly.on(day, zone).meet(window)):
                    yield inside
            day += DAY

    def cut(self, gap: Interval) -> Iterator[Interval]:
        """The slots in a gap of free time.

        With an alignment they start on its grid, and may overlap where the grid is finer than the duration. Without one
        they follow each other from the beginning of the gap: who asks about "now" shall not be told of the next full hour.
        """
        if self.duration is None or self.duration <= timedelta():
            raise bad_request("SchedulingParameters need a duration above zero", "Schedule.extension")
        start, end = gap.start + (self.before or timedelta()), gap.end - (self.after or timedelta())
        aligned = self.interval is not None or self.offset is not None
        if aligned:
            start = self._aligned(start)
        while start + self.duration <= end:
            yield Interval(start, start + self.duration)
            start = self._aligned(start + MINUTE) if aligned else start + self.duration

    def _aligned(self, start: datetime) -> datetime:
        """The first point of the grid at or after `start`; the grid begins anew each hour, each day if it is wider."""
        step = self.interval or HOUR
        period = DAY if step > HOUR else HOUR
        whole = start.replace(second=0, microsecond=0)
        if whole < start:
            whole += MINUTE
        local = whole.astimezone(self.alignment_zone or UTC)
        minute = timedelta(hours=local.hour, minutes=local.minute) % period
        offset = (self.offset or timedelta()) % step
        wait = (offset - minute) % step
        return whole + (wait if minute + wait < period else period - minute + offset)


def read_group(extension: Json) -> Group:
    """Read a SchedulingParameters extension, in either of the forms Medplum has had.

    Raises:
        FhirError: 400 for values it cannot have.
    """
    values: dict[str, Any] = {}
    for part in _parts(extension):
        name, read = _READERS.get(part["url"], (None, None))
        if name and read:
            value = read(part)
            values[name] = (*values.get(name, ()), *value) if name in _LISTS else value
    group = Group(**values)
    if group.interval == timedelta():
        raise _invalid("alignmentInterval")
    return group


def _parts(extension: Json) -> list[Json]:
    return extension.get("extension") or []


def _length(part: Json) -> timedelta:
    value = part.get("valueDuration") or {}
    return _span(part["url"], value.get("value"), value.get("code") or value.get("unit"))


def _span(name: str, value: Any, unit: Any) -> timedelta:
    if not isinstance(value, (int, float)) or unit not in UNITS or not 0 <= value <= LONGEST / UNITS[unit]:
        raise _invalid(name)
    return UNITS[unit] * value


def _zone(name: Any) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise bad_request(f"Unknown timezone: {name}") from None


def _availability(part: Json) -> Iterator[Weekly]:
    if repeat := (part.get("valueTiming") or {}).get("repeat"):
        length = _span("availability", repeat.get("duration"), repeat.get("durationUnit"))
        days = _days(repeat.get("dayOfWeek", DAYS))
        for start in repeat.get("timeOfDay", ()):
            yield Weekly(days, _time(start), length=length)
    for available in _parts(part):
        if available.get("url") != "availableTime":
            continue
        values = [
            (each.get("url"), next((value for key, value in each.items() if key.startswith("value")), None))
            for each in _parts(available)
        ]
        days = _days([value for name, value in values if name == "daysOfWeek"])
        simple = dict(values)
        if simple.get("allDay"):
            yield Weekly(days, time(), time())
        else:
            yield Weekly(days, _time(simple.get("availableStartTime")), _time(simple.get("availableEndTime")))


_READERS: Final[dict[str, tuple[str, Callable[[Json], Any]]]] = {
    "duration": ("duration", _length),
    "bufferBefore": ("before", _length),
    "bufferAfter": ("after", _length),
    "alignmentInterval": ("interval", _length),
    "alignmentOffset": ("offset", _length),
    "alignmentTimezone": ("alignment_zone", lambda part: _zone(part.get("valueCode"))),
    "timezone": ("zone", lambda part: _zone(part.get("valueCode"))),
    "serviceType": ("service_types", lambda part: [part.get("valueCodeableConcept") or {}]),
    "service": ("service", lambda part: (part.get("valueReference") or {}).get("reference")),
    "availability": ("availability", _availability),
}
"""For each sub-extension: the attribute of Group, and how its value is read."""

_LISTS: Final = ("service_types", "availability")
"""The attributes that collect the values of several sub-extensions."""


def _days(names: Iterable[Any]) -> frozenset[int]:
    try:
        return frozenset(DAYS.index(name) for name in names)
    except ValueError:
        raise _invalid("availability") from None


def _time(text: Any) -> time:
    try:
        return time.fromisoformat(text).replace(tzinfo=None)
    except (ValueError, TypeError):
        raise _invalid("availability") from None


def _invalid(name: str) -> FhirError:
    return bad_request(f"Invalid scheduling parameter: {name}", "Schedule.extension")


# --- finding -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FreeSlot:
    """A Slot to offer."""

    start: datetime
    end: datetime
    service_type: Sequence[Json]

    def resource(self, schedule: Json) -> Json:
        """The Slot as JSON; it has no id, as nothing is stored."""
        reference = {"reference": f"Schedule/{schedule['id']}"}
        if display := schedule["actor"][0].get("display"):
            reference["display"] = display
        slot: Json = {
            "resourceType": "Slot",
            "schedule": reference,
            "start": _text(self.start),
            "end": _text(self.end),
            "status": "free",
        }
        if self.service_type:
            slot["serviceType"] = list(self.service_type)
        return slot


@dataclass(frozen=True, slots=True)
class StoredSlot:
    """A Slot of the Schedule, as far as it lies in the window."""

    free: bool
    interval: Interval
    service_type: Sequence[Json]


def _find(
    repository: Repository,
    schedule: Json,
    slots: Sequence[StoredSlot],
    window: Interval,
    given: Input,
    count: int,
) -> Iterator[FreeSlot]:
    """The free slots of each group, the first `count` of each."""
    busy = [slot.interval for slot in slots if not slot.free]
    tokens = [token for text in given.texts("service-type") for token in text.split(",") if token]
    own = [read_group(each) for each in schedule.get("extension", ()) if each["url"] == PARAMETERS]
    groups = _wanted_groups(repository, own, tokens, given.text("service-type-reference"))
    if not own and not groups:
        for slot in slots:
            if slot.free and _serves(slot.service_type, tokens):
                for piece in subtract([slot.interval], busy):
                    yield FreeSlot(piece.start, piece.end, slot.service_type)
        return
    if not groups:
        raise bad_request("No scheduling parameters found for the requested service type(s)")
    actor_zone = None
    if any(group.zone is None and group.availability for group in groups):
        actor_zone = _actor_zone(repository, schedule)
    for group in groups:
        offered = [slot.interval for slot in slots if slot.free and _fits(slot, group)]
        available = [*group.available(window, group.zone or actor_zone), *offered]
        cut = (interval for gap in subtract(available, busy) for interval in group.cut(gap))
        for interval in islice(cut, count):
            yield FreeSlot(interval.start, interval.end, group.service_types)


def _wanted_groups(
    repository: Repository, own: Sequence[Group], tokens: Sequence[str], service: str | None
) -> list[Group]:
    """The groups of the services asked for, of all if none was; completed by those of their HealthcareServices."""
    if service is not None and not service.startswith("HealthcareService/"):
        raise bad_request("service-type-reference must be the reference of a HealthcareService")
    groups = [
        group.over(base)
        for group in own
        if service is None or group.service == service
        for base in (_service_groups(repository, group.service) if group.service else [Group()])
    ]
    if service is not None and not groups:
        groups = [group for group in _service_groups(repository, service) if group.duration]
    return [group for group in groups if not tokens or _serves(group.service_types, tokens)]


def _service_groups(repository: Repository, reference: str) -> list[Group]:
    """The SchedulingParameters of a HealthcareService, with its types; one empty group if it has none."""
    service = _read(repository, reference) if reference.startswith("HealthcareService/") else None
    if service is None:
        raise bad_request(f"The HealthcareService of the scheduling parameters is not there: {reference}")
    types = tuple(service.get("type", ()))
    found = [read_group(each) for each in service.get("extension", ()) if each["url"] == PARAMETERS]
    return [
        replace(group, service=reference, service_types=group.service_types or types)
        for group in found or [Group()]
    ]


def _serves(types: Sequence[Json], tokens: Sequence[str]) -> bool:
    """True if one of the service types is asked for; without types, or without tokens, everything fits."""
    if not types or not tokens:
        return True
    codings = [coding for concept in types for coding in concept.get("coding", ())]
    for token in tokens:
        system, separator, code = token.rpartition("|")
        for coding in codings:
            same_system = not separator or coding.get("system", "") == system
            if same_system and (not code or coding.get("code") == code):
                return True
    return False


def _fits(slot: StoredSlot, group: Group) -> bool:
    """True if a stored free Slot is for the services of a group."""
    tokens = [
        f"{coding['system']}|{coding['code']}" if "system" in coding else coding["code"]
        for concept in group.service_types
        for coding in concept.get("coding", ())
        if "code" in coding
    ]
    return _serves(slot.service_type, tokens)


def _actor_zone(repository: Repository, schedule: Json) -> ZoneInfo | None:
    """The time zone the Schedule's actor has as an extension."""
    actor = _read(repository, schedule["actor"][0].get("reference", "")) or {}
    for extension in actor.get("extension", ()):
        if extension["url"] == TIMEZONE:
            return _zone(extension.get("valueCode"))
    return None


def _read(repository: Repository, reference: str) -> Json | None:
    """The resource a reference points to, None if it is not there for the caller."""
    try:
        return repository.read_reference(reference).resource
    except FhirError as error:
        if error.status >= 500:
            raise
        return None


def _stored_slots(repository: Repository, schedule_id: str, window: Interval) -> list[StoredSlot]:
    query = [
        ("schedule", f"Schedule/{schedule_id}"),
        ("start", f"lt{_text(window.end)}"),
        ("end", f"gt{_text(window.start)}"),
        ("status", "free,busy,busy-unavailable,busy-tentative"),
    ]
    return [slot for stored in repository.search_all("Slot", query) if (slot := _stored_slot(stored, window))]


def _stored_slot(stored: Stored, window: Interval) -> StoredSlot | None:
    """The part of a stored Slot that lies in the window, None if there is none."""
    slot = stored.resource
    if not slot.keys() >= {"status", "start", "end"}:
        raise forbidden("The access policy hides what $find has to know of Slots")
    bounds = [(moment - EPOCH) // MICROSECOND for moment in (window.start, window.end)]
    start, end = (min(max(date_range(slot[name])[0], bounds[0]), bounds[1]) for name in ("start", "end"))
    if start >= end:
        return None
    interval = Interval(EPOCH + start * MICROSECOND, EPOCH + end * MICROSECOND)
    return StoredSlot(slot["status"] == "free", interval, slot.get("serviceType", ()))


def _window(given: Input) -> Interval:
    try:
        start, end = (given.instant(name).astimezone(UTC) for name in ("start", "end"))
    except OverflowError:
        raise bad_request("Invalid search time range") from None
    if start >= end or start.year < 1900 or end.year > 2200:
        raise bad_request("Invalid search time range")
    if end - start > MAX_RANGE:
        raise bad_request("Search range cannot exceed 31 days")
    return Interval(start, end)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
