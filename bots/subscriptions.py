"""From changes to deliveries: which Subscriptions want to hear about what (shared/medplum/subscriptions-and-cron.md §1-3).

Criteria are FHIR searches, matched in memory with the same meaning as in the database. What cannot be evaluated is refused when
the Subscription is written, with the reason; nothing is dropped silently later.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

import orjson

from bots.audit import ALARM, is_alarming
from bots.context import author_of
from bots.websockets import Event, announce, is_websocket
from fhirstore.api import (
    Change,
    FhirError,
    Repository,
    SearchRequest,
    Stored,
    bad_request,
    claim_changes,
    compile_expression,
    connection,
    delete_changes,
    evaluate,
    forbidden,
    is_resource_type,
    log_failure,
    new_change_id,
    system_identity,
    transaction,
)

INTERACTIONS: Final = frozenset({"create", "update", "delete"})
FAILURES: Final = frozenset({"4", "8", "12"})
"""The outcomes of AuditEvents that are a reason for a run: every run makes one, so those of all would never end."""

BATCH: Final = 200

EXTENSION: Final = "https://medplum.com/fhir/StructureDefinition/"
INTERACTION_URL: Final = EXTENSION + "subscription-supported-interaction"
FHIRPATH_URL: Final = EXTENSION + "fhir-path-criteria-expression"
ATTEMPTS_URL: Final = EXTENSION + "subscription-max-attempts"
SUCCESS_URL: Final = EXTENSION + "subscription-success-codes"
DESTINATION_URL: Final = EXTENSION + "subscription-audit-event-destination"
PRE_COMMIT_URL: Final = EXTENSION + "pre-commit-bot"
PREVIOUS_URL: Final = "urn:fhirbots:previous-version"
"""With ``valueBoolean`` true the Bot gets the version before the change as well: ``event.previous``."""

MOST_ATTEMPTS: Final = 18
DESTINATIONS: Final = ("resource", "log")
_ASKS_STORE = re.compile(r"[?&](_has|_filter|_list|[^=]*[.:])")
"""Criteria that may look at other resources: chains, ``_has``, modifiers; rather too many than too few."""

PAUSED: Final = "The Subscription was switched off when this happened"
"""Why a delivery was skipped that can be made up for by ``$replay``."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A Subscription, ready to be compared with changes.

    Attributes:
        type: of the resources it hears about.
        bot_id: the Bot of its endpoint; empty for a URL or an address of e-mail.
        search: its criteria; None if they cannot be evaluated (any more).
        interactions: what it wants to hear about.
        accounts: references of which a resource must share one; empty for no such limit.
        expressions: FHIRPath conditions, all of which must hold.
        end: when it stops to hear.
        author: who has written it.
        asks_store: the criteria are about other resources too.
        is_websocket: it is for whoever is connected: nothing is stored of what it would hear.
        is_off: it is switched off: what it would have heard is noted, not delivered.
        problem: why it cannot be evaluated, as a sentence; empty when it can.
    """

    subscription_id: str
    type: str
    bot_id: str
    search: SearchRequest | None
    interactions: frozenset[str]
    accounts: frozenset[str]
    expressions: tuple[str, ...] = ()
    end: datetime | None = None
    author: str = "system"
    asks_store: bool = False
    is_websocket: bool = False
    is_off: bool = False
    problem: str = ""

    def wants(self, change: Change, fits: Callable[[SearchRequest], bool], accounts: frozenset[str]) -> bool:
        """True if the Subscription is to hear about a change of a resource that ``fits`` compares.

        Raises FhirError if the criteria cannot be evaluated.
        """
        if self.search is None:
            raise bad_request(self.problem)
        return (
            change.interaction in self.interactions
            and (self.end is None or change.created <= self.end)
            and not (self.accounts and self.accounts.isdisjoint(accounts))
            and fits(self.search)
            and self._holds(change)
        )

    def _holds(self, change: Change) -> bool:
        """The FHIRPath conditions; ``%previous`` is empty on create, and with ``%current`` what was deleted on delete."""
        if not self.expressions:
            return True
        previous = orjson.loads(change.previous or b"{}")
        current = previous if change.interaction == "delete" else orjson.loads(change.content)
        variables = {"current": current, "previous": previous}
        return all(evaluate(each, current, variables) == [True] for each in self.expressions)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A change that a Subscription wants to hear about, or (with a problem) may want: nobody could find out."""

    change: Change
    watch: Watch
    problem: str = ""


def watch_of(project: str, subscription: dict[str, Any]) -> Watch:
    """Compile a Subscription; its criteria may use the project's own SearchParameters.

    Raises FhirError: 400 with the reason and expression of what cannot be evaluated.
    """
    extensions = subscription.get("extension") or []
    search = _search(project, subscription.get("criteria") or "")
    _check_delivery(extensions)
    return Watch(
        subscription_id=subscription.get("id", ""),
        type=search.type,
        bot_id=_bot_id(subscription),
        search=search,
        interactions=_interactions(extensions),
        accounts=_accounts(subscription),
        expressions=_expressions(extensions),
        end=_end(subscription),
        author=str(((subscription.get("meta") or {}).get("author") or {}).get("reference") or "system"),
        asks_store=_ASKS_STORE.search(subscription.get("criteria") or "") is not None,
        is_websocket=is_websocket(subscription),
        is_off=subscription.get("status") == "off",
    )


def is_pre_commit(subscription: dict[str, Any]) -> bool:
    """True for a Subscription whose Bot is asked before something is written, and not afterwards."""
    return any(
        each.get("url") == PRE_COMMIT_URL and each.get("valueBoolean") is True
        for each in subscription.get("extension") or ()
    )


def wants_previous(subscription: dict[str, Any]) -> bool:
    """True for a Subscription whose Bot is to get the version before a change as well."""
    return any(
        each.get("url") == PREVIOUS_URL and each.get("valueBoolean") is True
        for each in subscription.get("extension") or ()
    )


def endpoint_problem(subscription: dict[str, Any]) -> str:
    """Why nothing can be delivered, as a sentence; empty if something can."""
    if is_pre_commit(subscription) and str(subscription.get("criteria")).startswith("AuditEvent"):
        return "Nothing is delivered: no Bot is asked before an AuditEvent is written."
    channel = subscription.get("channel") or {}
    kind, endpoint = channel.get("type"), str(channel.get("endpoint") or "")
    if kind == "rest-hook":
        if endpoint.startswith(("Bot/", "https://", "http://")):
            return ""
        return "Nothing is delivered: the endpoint must be Bot/{id} or an address beginning with https://."
    if kind == "email":
        if re.fullmatch(r"(mailto:)?[^@\s]+@[^@\s]+", endpoint):
            return ""
        return "Nothing is delivered: the endpoint must be an address such as mailto:someone@example.com."
    if kind == "websocket":
        return ""
    return f"Nothing is delivered: channel type {kind} is not supported, rest-hook, websocket and email are."


def _check_delivery(extensions: Iterable[dict[str, Any]]) -> None:
    """Raise FhirError for settings of the delivery that mean nothing."""
    for extension in extensions:
        url = extension.get("url")
        if url == ATTEMPTS_URL:
            attempts = extension.get("valueInteger")
            if not isinstance(attempts, int) or not 1 <= attempts <= MOST_ATTEMPTS:
                raise bad_request(
                    f"The number of attempts must be from 1 to {MOST_ATTEMPTS}", "Subscription.extension"
                )
        if url == DESTINATION_URL and extension.get("valueCode") not in DESTINATIONS:
            raise bad_request("AuditEvents go to resource or log", "Subscription.extension")
        if url == PREVIOUS_URL and not isinstance(extension.get("valueBoolean"), bool):
            raise bad_request(
                "Whether the Bot gets event.previous is a valueBoolean", "Subscription.extension"
            )


def _expressions(extensions: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    found = []
    for extension in extensions:
        if extension.get("url") == FHIRPATH_URL:
            expression = extension.get("valueString")
            if not isinstance(expression, str):
                raise bad_request("FHIRPath criteria need a valueString", "Subscription.extension")
            try:
                compile_expression(expression)
            except FhirError as error:
                raise bad_request(
                    f"Criteria cannot be evaluated: {error}", "Subscription.extension"
                ) from None
            found.append(expression)
    return tuple(found)


def _end(subscription: dict[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(subscription["end"])
    except (KeyError, TypeError, ValueError):  # of another shape: the validation refuses it
        return None


def _bot_id(subscription: dict[str, Any]) -> str:
    endpoint = (subscription.get("channel") or {}).get("endpoint") or ""
    return endpoint.removeprefix("Bot/") if endpoint.startswith("Bot/") else ""


def _search(project: str, criteria: str) -> SearchRequest:
    resource_type, _, query = criteria.partition("?")
    if not is_resource_type(resource_type):
        raise bad_request(
            f"Criteria must begin with a resource type, as in Patient?active=true; found {resource_type!r}",
            "Subscription.criteria",
        )
    try:
        return Repository(system_identity(project)).parse(resource_type, query)
    except FhirError as error:
        raise bad_request(f"Criteria cannot be evaluated: {error}", "Subscription.criteria") from None


def _interactions(extensions: Iterable[dict[str, Any]]) -> frozenset[str]:
    named = frozenset(
        extension.get("valueCode", "") for extension in extensions if extension.get("url") == INTERACTION_URL
    )
    if unknown := named - INTERACTIONS:
        raise bad_request(
            f"Unknown interaction {sorted(unknown)[0]!r}: one of create, update, delete is supported",
            "Subscription.extension",
        )
    return named or INTERACTIONS


def _accounts(resource: dict[str, Any]) -> frozenset[str]:
    meta = resource.get("meta") or {}
    found = [meta.get("account"), *(meta.get("accounts") or ())]
    return frozenset(account["reference"] for account in found if account and account.get("reference"))


def check_subscription(repository: Repository, resource: dict[str, Any], _previous: Any) -> None:
    """Hook before a Subscription is written: refuse what could never be evaluated, warn of what can never be delivered."""
    watch_of(repository.identity.project, resource)
    if problem := endpoint_problem(resource):
        repository.warn(problem)
    if _hopes_for_success(str(resource.get("criteria") or "")):
        repository.warn(
            "Of AuditEvents only those of runs and deliveries that failed are delivered. Write AuditEvent?outcome=4,8,12"
        )
    if wants_previous(resource) and (not _bot_id(resource) or is_pre_commit(resource)):
        repository.warn("The version before the change is given only to a Bot that runs after the change")
    for extension in resource.get("extension") or ():
        if extension.get("url") == SUCCESS_URL and parse_codes(extension.get("valueString")) is None:
            repository.warn(
                "subscription-success-codes cannot be read; 200-399 counts. Write for example 200-399,404"
            )


def _hopes_for_success(criteria: str) -> bool:
    """True for criteria on AuditEvents that are not limited to failures."""
    type_, _, query = criteria.partition("?")
    conditions = parse_qsl(query, keep_blank_values=True)
    return type_ == "AuditEvent" and not any(
        name == "outcome" and {code.rpartition("|")[2] for code in value.split(",")} <= FAILURES
        for name, value in conditions
    )


def parse_codes(text: Any) -> tuple[range, ...] | None:
    """Read success codes such as ``200-399,404``; None if that is not what they are."""
    if not isinstance(text, str):
        return None
    ranges = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{3})\s*(?:-\s*(\d{3})\s*)?", part, re.ASCII)
        if found is None:
            return None
        ranges.append(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(ranges)


@lru_cache(maxsize=2000)
def _compiled(project: str, _version_id: str, content: bytes) -> Watch | None:
    """The Watch of a stored version; None for one that hears of nothing afterwards: neither active nor off, nothing to
    deliver to, or asked before the write. Raises FhirError as :func:`watch_of` does."""
    subscription = orjson.loads(content)
    if (
        subscription.get("status") not in ("active", "off")
        or endpoint_problem(subscription)
        or is_pre_commit(subscription)
    ):
        return None
    return watch_of(project, subscription)


def _watch_of_version(project: str, version_id: str, content: bytes) -> Watch | None:
    """The Watch of a stored version, with a problem for one that cannot be evaluated (any more).

    That is looked at again each time: a search parameter of the project may have come back.
    """
    try:
        return _compiled(project, version_id, content)
    except FhirError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001  one version our engines trip over must not hold up all later changes
        log_failure(f"reading version {version_id} of a Subscription", error)
        problem = type(error).__name__
    subscription = orjson.loads(content)
    return Watch(
        subscription["id"],
        (subscription.get("criteria") or "").partition("?")[0],
        _bot_id(subscription),
        None,
        INTERACTIONS,
        frozenset(),
        is_websocket=is_websocket(subscription),
        is_off=subscription.get("status") == "off",
        problem=f"The Subscription cannot be evaluated: {problem}",
    )


# --- dispatch --------------------------------------------------------------------------------------------------------

_INSERT = """
INSERT INTO bots_delivery (project, subscription_id, change_id, bot_id, resource_type, resource_id, version_id,
    previous_version_id, interaction, author, changed, trace_id, depth, state, outcome, finished, attempts, due)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 0, now())
ON CONFLICT (subscription_id, change_id) DO NOTHING
"""
_HURRY = """
UPDATE bots_delivery AS earlier SET state = 'waiting', due = now()
FROM (SELECT DISTINCT * FROM unnest(%s::text[], %s::text[])) AS later(subscription_id, resource_id)
WHERE earlier.state = 'retrying' AND earlier.subscription_id = later.subscription_id AND earlier.resource_id = later.resource_id
"""
"""What waits for its next attempt does not hold up what has just happened: it is superseded."""

_ONE_AT_A_TIME = 5_270_001
"""Advisory lock of the dispatcher: deliveries must appear in the order of their changes."""


_dispatching = threading.Lock()
_is_dispatch_wanted = threading.Event()


def dispatch_changes() -> int:
    """Turn waiting changes into deliveries; returns how many deliveries were made.

    One thread of a process at a time: others make it look again, and need not wait with a connection in their hands.
    """
    made = 0
    _is_dispatch_wanted.set()
    while _is_dispatch_wanted.is_set() and _dispatching.acquire(blocking=False):
        try:
            _is_dispatch_wanted.clear()
            made += _dispatch()
        finally:
            _dispatching.release()
    return made


def _dispatch() -> int:
    """Dispatch what waits now.

    One transaction per batch: deliveries in, changes out. Dispatchers take turns, so that the deliveries of a resource come
    into being in the order of its changes. The changes of a project whose Subscriptions cannot be read wait for the next time.
    """
    made = 0
    broken: set[str] = set()
    while True:
        try:
            with transaction() as session:
                session.execute("SELECT pg_advisory_xact_lock(%s)", (_ONE_AT_A_TIME,))
                changes = claim_changes(BATCH, besides=broken)
                rows = _insert(_wanted(changes))
                if rows:
                    session.execute(_HURRY, ([row[1] for row in rows], [row[5] for row in rows]))
                if changes:
                    delete_changes([change.id for change in changes])
        except _UnreadableError as error:  # if it is the database that is away, the next round says so
            log_failure(f"reading the Subscriptions of Project/{error.project}", error.reason)
            broken.add(error.project)
            continue
        made += len(rows)
        if len(changes) < BATCH:
            return made


class _UnreadableError(Exception):
    """The Subscriptions of a project cannot be read."""

    def __init__(self, project: str, reason: Exception) -> None:
        super().__init__(f"The Subscriptions of Project/{project} cannot be read")
        self.project, self.reason = project, reason


def _insert(wanted: Iterable[Wanted]) -> list[tuple[Any, ...]]:
    """Store the deliveries and tell those who are connected, with the commit; returns the rows of the deliveries."""
    rows = []
    for each in wanted:
        if not each.watch.is_websocket:
            rows.append(_row(each))
        elif not (each.watch.is_off or each.problem):
            announce(_event(each))
    if rows:
        with connection() as session:
            session.cursor().executemany(_INSERT, rows)
    return rows


def _event(wanted: Wanted) -> Event:
    change = wanted.change
    is_delete = change.interaction == "delete"
    version = (change.previous_version_id or change.version_id) if is_delete else change.version_id
    return Event(wanted.watch.subscription_id, change.type, change.resource_id, version, change.interaction)


def _wanted(changes: Sequence[Change]) -> Iterable[Wanted]:
    """Pair each change with the Subscriptions that want to hear about it, in the order of the changes."""
    subscriptions: dict[str, list[Stored]] = {}
    for change in changes:
        if change.type == "AuditEvent" and not is_alarming(_state_of(change), change.trace_id):
            continue
        try:
            if change.project not in subscriptions:
                subscriptions[change.project] = _active_subscriptions(change.project)
            candidates = [
                watch
                for stored in subscriptions[change.project]
                if (watch := _watch_at(stored, change)) is not None and watch.type == change.type
            ]
        except Exception as error:  # a statement may have failed: the transaction is of no more use
            raise _UnreadableError(change.project, error) from error
        if candidates:
            yield from _listeners(change, candidates)


def _listeners(change: Change, candidates: Sequence[Watch]) -> Iterable[Wanted]:
    """The candidates that want the change; those of which that cannot be told get it as a failed delivery to look at."""
    try:
        resource = _state_of(change)
        accounts = _accounts(resource)
        fits = cache(lambda author: _matcher(change.project, author, resource))
        fits("system")
    except Exception as error:  # noqa: BLE001  one resource our engines trip over must not hold up all later changes
        log_failure(f"reading change {change.id}", error)
        problem = f"The resource could not be compared with the criteria: {type(error).__name__}"
        yield from (Wanted(change, watch, problem) for watch in candidates)
        return
    for watch in candidates:
        try:
            # What asks the store may be stopped there: the transaction must outlive that.
            with _savepoint() if watch.asks_store else nullcontext():
                wants = watch.wants(change, fits(watch.author if watch.asks_store else "system"), accounts)
            if wants:
                yield Wanted(change, watch)
        except FhirError as error:
            if error.status == 503:  # the database is away: all of it comes again
                raise
            yield Wanted(change, watch, str(error))
        except Exception as error:  # noqa: BLE001  as above
            log_failure(f"matching change {change.id}", error)
            problem = f"The criteria could not be compared with the resource: {type(error).__name__}"
            yield Wanted(change, watch, problem)


def _matcher(project: str, author: str, resource: dict[str, Any]) -> Callable[[SearchRequest], bool]:
    """Compares with what the author of a Subscription may search: chains must not tell of what it cannot see."""
    identity = author_of(project, {"meta": {"author": {"reference": author}}})
    return Repository(identity).matcher(resource)


@contextmanager
def _savepoint() -> Iterator[None]:
    with transaction() as session, session.transaction():
        yield


def _active_subscriptions(project: str) -> list[Stored]:
    """The Subscriptions that changes are compared with: also those that are off, whose events are noted."""
    repository = Repository(system_identity(project))
    return repository.search_all(
        "Subscription", [("status", "active,off"), ("type", "rest-hook,websocket,email")]
    )


def _watch_at(stored: Stored, change: Change) -> Watch | None:
    """The Subscription as it was when the change happened; None if it was not there or neither active nor off."""
    if stored.last_updated > change.created:
        repository = Repository(system_identity(change.project))
        versions, _ = repository.history("Subscription", stored.id)
        earlier = [version for version in versions if version.last_updated <= change.created]
        if not earlier or earlier[0].deleted:
            return None
        stored = earlier[0]
    return _watch_of_version(change.project, stored.version_id, stored.content)


def _state_of(change: Change) -> dict[str, Any]:
    """The resource as the criteria see it: the new version, or what was deleted."""
    content = change.previous if change.interaction == "delete" else change.content
    return orjson.loads(content or b"{}")  # type: ignore[no-any-return]


def _row(wanted: Wanted) -> tuple[Any, ...]:
    change, watch = wanted.change, wanted.watch
    # Without a request behind it, the change itself begins the trace. So does an alarm: nothing in its trace raises another,
    # and it has all its steps even where what failed had taken too many.
    is_alarm = change.type == "AuditEvent"
    trace = ALARM + change.resource_id if is_alarm else change.trace_id or change.version_id
    return (
        change.project,
        watch.subscription_id,
        change.id,
        watch.bot_id,
        change.type,
        change.resource_id,
        change.version_id,
        change.previous_version_id,
        change.interaction,
        change.author,
        change.created,
        trace,
        0 if is_alarm else change.depth,
        *_state(wanted),
    )


def _state(wanted: Wanted) -> tuple[str, str, datetime | None]:
    """State, outcome and end of a new delivery."""
    if wanted.watch.is_off:
        return "skipped", PAUSED, datetime.now(UTC)
    if wanted.problem:
        return "failed", wanted.problem, datetime.now(UTC)
    return "waiting", "", None


# --- by hand ---------------------------------------------------------------------------------------------------------


def resend(
    repository: Repository,
    type_: str,
    id_: str,
    *,
    interaction: Literal["create", "update", "delete"] = "update",
    subscription_id: str | None = None,
) -> list[str]:
    """Let Subscriptions hear of the current version of a resource as if it had just been written.

    Args:
        repository: of a project admin.
        interaction: what is said to have happened.
        subscription_id: only this one; None for all active ones.

    Returns the ids of the Subscriptions that want to hear. Raises FhirError: 403 for others than admins, and as read().
    """
    if not repository.identity.is_admin:
        raise forbidden()
    current = repository.read(type_, id_)
    system = Repository(system_identity(repository.identity.project))
    versions, _ = system.history(type_, id_, count=2)
    before = (
        versions[1] if len(versions) > 1 and not versions[1].deleted and interaction == "update" else None
    )
    previous = current if interaction == "delete" else before
    with transaction():
        change = Change(
            id=new_change_id(),
            project=repository.identity.project,
            type=type_,
            resource_id=id_,
            version_id=current.version_id,
            previous_version_id=previous.version_id if previous else None,
            interaction=interaction,
            author=repository.identity.profile,
            trace_id=repository.trace_id,
            depth=repository.depth,
            created=datetime.now(UTC),
            content=current.content,
            previous=previous.content if previous else None,
        )
        wanted = [
            each
            for each in _wanted([change])
            if not each.watch.is_off and subscription_id in (None, each.watch.subscription_id)
        ]
        _insert(wanted)
    return [each.watch.subscription_id for each in wanted]
