"""What happened: AuditEvents, versions and deployments as items of one story, newest first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final

from console.navigation import page_of

RUN_EXTENSION: Final = "urn:fhirbots:bot-run"
"""Extension of a Bot run's AuditEvent (bots/audit.py)."""

FAILURES: Final = {
    "code": "the code threw an error",
    "timeout": "time-out",
    "memory": "memory limit",
    "startup": "did not start",
    "crash": "crashed",
    "input": "input could not be read",
    "output": "output could not be sent",
    "outcome": "returned an OperationOutcome",
    "refused": "not run",
}
"""Kinds of failure in words."""


@dataclass(frozen=True, slots=True)
class Change:
    """The version of a resource that made a Bot run."""

    reference: str
    version_id: str | None = None
    interaction: str | None = None

    @property
    def url(self) -> str:
        """Page of the version, else of the resource."""
        return f"/{self.reference}/history/{self.version_id}" if self.version_id else f"/{self.reference}"


@dataclass(frozen=True, slots=True)
class Run:
    """An AuditEvent as a person reads it. Of an AuditEvent that is no Bot run only the common fields are set."""

    id: str
    moment: datetime
    outcome: str
    text: str
    kind: str
    bot: Mapping[str, Any] | None = None
    change: Change | None = None
    subscription: str | None = None
    requester: Mapping[str, Any] | None = None
    trigger: str = ""
    duration_ms: float | None = None
    deployment: int | None = None
    failure: str = ""
    attempt: int = 1
    project_id: str = ""

    @property
    def is_bot_run(self) -> bool:
        """The AuditEvent of a Bot run."""
        return self.bot is not None and self.kind == "execute"

    @property
    def ok(self) -> bool:
        """The outcome is a success."""
        return self.outcome == "0"

    @property
    def position(self) -> Position:
        """Where it stands among others."""
        return Position(self.moment, self.id)

    @property
    def tone(self) -> str:
        """Colour of the dot; the word stands beside it."""
        return "good" if self.ok else "bad"

    @property
    def lines(self) -> list[dict[str, str]]:
        """The log text line by line."""
        return [{"text": line} for line in self.text.splitlines()]

    @property
    def first_line(self) -> str:
        """The first line of the log that is not empty."""
        return next((line for line in self.text.splitlines() if line.strip()), "")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a story: the time, and the id where several things happened in the same millisecond."""

    moment: datetime
    id: str

    @classmethod
    def parse(cls, text: str | None) -> Position | None:
        """Read what `str` has made; None for anything else."""
        moment, _comma, id_ = (text or "").partition(",")
        found = instant(moment)
        return cls(found, id_) if found else None

    @property
    def instant(self) -> str:
        """The time as a FHIR instant."""
        return self.moment.astimezone(UTC).isoformat().replace("+00:00", "Z")

    def __str__(self) -> str:
        return f"{self.instant},{self.id}"


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a timeline: a run, a saved version, or a deployment."""

    kind: str
    """`run`, `version` or `deployment`."""
    moment: datetime
    run: Run | None = None
    deployment: Any = None
    version_id: str = ""
    previous_version_id: str = ""
    author: Mapping[str, Any] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    title: str = ""

    @property
    def position(self) -> Position:
        """Where it stands in the story."""
        if self.run is not None:
            return self.run.position
        return Position(self.moment, self.version_id or str(getattr(self.deployment, "number", "")))

    @property
    def day(self) -> date:
        """The (UTC) day, for grouping."""
        return self.moment.astimezone(UTC).date()

    @property
    def tone(self) -> str:
        """Colour of the dot."""
        if self.run is not None:
            return self.run.tone
        return "info" if self.kind == "deployment" else ""


def instant(text: object) -> datetime | None:
    """A FHIR instant in UTC; None for what is less exact, and for what Python has no time for: a leap second, the year 0."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        return moment.astimezone(UTC) if moment and moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def run_of(event: Mapping[str, Any]) -> Run:
    """Read an AuditEvent. Anybody may have written it: what is not as Bot runs have it is left out."""
    entities = [e.get("what") or {} for e in event.get("entity") or []]
    bots = [what for what in entities if page_of(what.get("reference")).startswith("/Bot/")]
    subscriptions = [r for what in entities if (r := what.get("reference") or "").startswith("Subscription/")]
    requesters = [a.get("who") for a in event.get("agent") or [] if a.get("requestor")]
    extras = _extras(event)
    period = event.get("period") or {}
    start, end = instant(period.get("start")), instant(period.get("end"))
    duration = _number(extras.get("duration"))
    if duration is None and start and end:
        duration = (end - start).total_seconds() * 1000
    failure = str(extras.get("failure") or "")
    return Run(
        id=event.get("id", ""),
        # The order of the store, so that a page can begin where the one before has ended.
        moment=instant((event.get("meta") or {}).get("lastUpdated") or event.get("recorded")) or _BEGINNING,
        outcome=event.get("outcome") or "0",
        text=event.get("outcomeDesc") or "",
        kind=(event.get("type") or {}).get("code") or "",
        bot=bots[0] if bots else None,
        change=_change(event),
        subscription=subscriptions[0] if subscriptions else None,
        requester=requesters[0] if requesters else None,
        trigger=str(extras.get("trigger") or ""),
        duration_ms=duration,
        deployment=int(_number(extras.get("deployment")) or 0) or None,
        failure=FAILURES.get(failure, failure),
        attempt=int(_number(extras.get("attempt")) or 1),
        project_id=(event.get("meta") or {}).get("project") or "",
    )


def versions(history: Sequence[Any], *, has_deployments: bool) -> list[Item]:
    """Read the history of a resource (newest first) as items.

    Args:
        history: `Stored` versions; the oldest one has no predecessor to compare with.
        has_deployments: deployments are shown on their own, so versions that only moved `executableCode` are left out.
    """
    items = []
    for newer, older in zip(history, [*history[1:], None], strict=True):
        resource = {} if newer.deleted else newer.resource
        changed = changed_elements(older.resource if older and not older.deleted else {}, resource)
        if has_deployments and older is not None and changed == ("executableCode",):
            continue
        items.append(
            Item(
                "version",
                newer.last_updated,
                version_id=newer.version_id,
                previous_version_id=older.version_id if older else "",
                author=(newer.resource.get("meta") or {}).get("author") or {},
                changed=changed if older is not None else (),
                title=_version_title(newer, older, changed),
            )
        )
    return items


def changed_elements(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the top-level elements that differ, `meta` left out."""
    names = sorted((set(before) | set(after)) - {"meta", "id", "resourceType"})
    return tuple(name for name in names if before.get(name) != after.get(name))


def story(*parts: Iterable[Item], limit: int, before: Position | None = None) -> tuple[list[Item], bool]:
    """Merge items, newest first.

    Args:
        parts: items of each kind.
        limit: how many at most.
        before: only items older than this.

    Returns:
        The items, and whether older ones are left.
    """
    everything = [item for part in parts for item in part if before is None or item.position < before]
    everything.sort(key=lambda item: item.position, reverse=True)
    return everything[:limit], len(everything) > limit


def _version_title(newer: Any, older: Any, changed: tuple[str, ...]) -> str:
    if newer.deleted:
        return "Deleted"
    if older is None:
        return "Created"
    if older.deleted:
        return "Restored"
    return "Code saved" if changed == ("sourceCode",) else "Changed"


def _extras(event: Mapping[str, Any]) -> dict[str, Any]:
    for extension in event.get("extension") or []:
        if extension.get("url") == RUN_EXTENSION:
            return {part["url"]: _value(part) for part in extension.get("extension") or []}
    return {}


def _value(part: Mapping[str, Any]) -> Any:
    return next((value for name, value in part.items() if name.startswith("value")), None)


def _change(event: Mapping[str, Any]) -> Change | None:
    """The entity of this site that is neither Bot nor Subscription, with version and interaction from its details."""
    for entity in event.get("entity") or []:
        reference = (entity.get("what") or {}).get("reference") or ""
        if page_of(reference) and not reference.startswith(("Bot/", "Subscription/")):
            details = {d.get("type"): d.get("valueString") for d in entity.get("detail") or []}
            return Change(reference, details.get("versionId"), details.get("interaction"))
    return None


_BEGINNING: Final = datetime.fromtimestamp(0, UTC)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
