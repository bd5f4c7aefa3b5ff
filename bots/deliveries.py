"""Deliveries: runs for Subscriptions and schedules that must happen, whatever dies in between.

A worker thread claims the oldest delivery it may run, runs the Bot, and stores the AuditEvent, the delivery's end and the claim
of its next one in one transaction. Deliveries of one Subscription about one resource run in the order of the changes.

A claim is good as long as the claimer lives: each worker process holds a PostgreSQL advisory lock of its own on a connection of
its own, its *lease*, and the server lets go of it the moment the process dies. :func:`reclaim` gives such deliveries back at once;
no timeout has to be guessed. What the Bot wrote before its worker died stays written, so a Bot may see a change twice; the
delivery's AuditEvent is written once.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
import psycopg

from bots import endpoints, execution, runqueue
from bots.audit import is_alarming
from bots.context import author_of, project_of, subscription_of
from bots.models import Delivery
from bots.request import ExecutionRequest, ExecutionResult
from bots.subscriptions import PAUSED, wants_previous
from bots.workers import LEASES, Underway
from bots.workers import deliverers as _deliverers
from bots.workers import lease as _lease
from fhirstore.api import (
    FhirError,
    Repository,
    connection,
    log_failure,
    plain_array,
    presign_urls,
    system_identity,
    transaction,
)

MAX_ATTEMPTS: Final = 5
"""Attempts at least when something outside the Bot fails, and those the worker may die of."""

OUTSIDE_PAUSE: Final = timedelta(seconds=5)
"""Before the second attempt when something outside the Bot failed; doubles with each one."""

FIRST_PAUSE: Final = timedelta(seconds=20)
"""Before the second attempt when the Bot or endpoint failed; doubles with each one, give or take a tenth."""

LONGEST_PAUSE: Final = timedelta(hours=8)

KEEP: Final = timedelta(days=30)
"""How long deliveries that have ended are kept."""

OUTSIDE: Final = frozenset({"startup"})
"""Failures of a run that are not the Bot's doing."""

TURN: Final = 0.5
"""Seconds a task works before it lets other tasks have the thread."""

_log = logging.getLogger(__name__)
_audit_log = logging.getLogger("bots.audit")
_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery this process has claimed, as far as running it needs."""

    id: int
    project: str
    trigger: str
    subscription_id: str
    bot_id: str
    resource_type: str
    resource_id: str
    version_id: str
    previous_version_id: str | None
    interaction: str
    author: str
    changed: datetime
    trace_id: str
    depth: int
    attempts: int
    failures: int
    forgiven: int

    @property
    def deaths(self) -> int:
        """Attempts its worker has not survived, this one included until it ends."""
        return self.attempts - self.failures - self.forgiven


_COLUMNS: Final = ", ".join(field.name for field in fields(Claim))

_CLAIM = f"SELECT {_COLUMNS} FROM bots_claim_delivery(%s, %s, %s, %s)"  # noqa: S608  (names of our own columns)
_CLAIM_FIRST = f"{_CLAIM}, set_config('synchronous_commit', 'off', true)"
"""The same in a transaction of its own, which need not wait for the disk: what is claimed and lost with a crash is claimed again."""

_FINISH = """
UPDATE bots_delivery SET state = %(state)s::text, lease = NULL, outcome = %(outcome)s,
    finished = CASE WHEN %(state)s::text <> 'retrying' THEN clock_timestamp() END,
    due = clock_timestamp() + %(pause)s, failures = failures + %(failed)s, audit_event_id = coalesce(%(audit_event_id)s, audit_event_id)
WHERE id = %(id)s AND state = 'running' AND lease = %(lease)s AND attempts = %(attempts)s
"""


class LostClaimError(Exception):
    """Somebody else has taken the delivery over, because this process seemed dead: its result does not count."""


# --- delivering ------------------------------------------------------------------------------------------------------


_underway = Underway()


def deliverers_missing(count: int) -> int:
    """Say that there are `count` new deliveries; returns how many deliverers have to be called for them."""
    return _deliverers.missing(count)


def deliver_due() -> bool:
    """Run due deliveries, one after the other, for about :data:`TURN` seconds; returns True if there may be more."""
    if not _deliverers.join():
        return False
    has_left = False
    try:
        end = time.monotonic() + TURN
        while not has_left:
            announced = _deliverers.announced
            if _deliver_until(end):
                return True
            has_left = _deliverers.leave(announced)
        return False
    finally:
        if not has_left:
            _deliverers.leave()


def _deliver_until(end: float) -> bool:
    """Run deliveries until there are no more (False) or the time is over (True)."""
    lease = _lease.number()
    claim = _claim(lease)
    while claim is not None:
        is_last = time.monotonic() > end
        following = _deliver(claim, lease, claim_next=not is_last)
        if is_last:
            runqueue.run_next(lease)  # however many changes there are, runs of the other kind get their turn
            return True
        # Nothing found inside the transaction may mean: not visible yet. The look afterwards is the one that counts.
        claim = following or _claim(lease)
    while runqueue.run_next(lease):
        if time.monotonic() > end:
            return True
    return False


def _claim(lease: int, ending: Claim | None = None) -> Claim | None:
    """Claim the next delivery: of the project that has the fewest under way here, and there the oldest.

    `ending`: the one of this thread, which does not count any more.
    """
    only_bots, busy, share = _underway.state(
        ending.project if ending else None, is_call=bool(ending and not ending.bot_id)
    )
    with connection() as session:
        row = session.execute(
            _CLAIM if ending else _CLAIM_FIRST, (lease, only_bots, plain_array(busy), share), prepare=True
        ).fetchone()
    return Claim(*row) if row else None


def _deliver(claim: Claim, lease: int, *, claim_next: bool) -> Claim | None:
    """Run one delivery, store how it ended, and return the next one claimed in the same transaction."""
    following: Claim | None = None

    def conclude(result: ExecutionResult) -> None:
        nonlocal following
        state, outcome, pause = verdict(claim, result, limit)
        _finish(claim, lease, state, outcome, pause, audit_event_id=result.audit_event_id)
        if (
            state is Delivery.State.FAILED
            and result.failure != "skipped"
            and claim.trigger != Delivery.Trigger.CRON
        ):
            switch_off_if_hopeless(claim)
        following = _claim(lease, claim) if claim_next else None

    try:
        limit = _limit(claim)
        with _underway.counted(claim.project, is_call=not claim.bot_id):
            _run(claim, conclude)
        return following
    except LostClaimError:
        _log.warning("Delivery %s was taken over by another worker", claim.id)
    except Exception as error:  # noqa: BLE001  the database away, a fault of ours: the claim must not stay behind
        log_failure(f"delivery {claim.id}", error)
        is_away = isinstance(error, FhirError | psycopg.OperationalError | psycopg.InterfaceError)
        if not _give_back(claim, lease, is_hopeless=not is_away) and following is not None:
            # It was committed although the commit failed here: with it the claim of the next one, which nobody else knows of.
            _give_back(following, lease)
    return None


def _run(claim: Claim, conclude: execution.Conclude) -> None:
    if claim.trigger == Delivery.Trigger.CRON:
        _run_scheduled(claim, conclude)
    else:
        _run_subscribed(claim, conclude)


def _run_scheduled(claim: Claim, conclude: execution.Conclude) -> None:
    """Run what a schedule asks for: the resource it belongs to as it is now is the input."""
    try:
        owner = Repository(system_identity(claim.project)).read(claim.resource_type, claim.resource_id)
    except FhirError as error:
        if error.status >= 500:
            raise
        with transaction():
            conclude(ExecutionResult.skipped(f"The {claim.resource_type} is gone"))
        return
    resource = owner.resource
    behalf = (resource.get("onBehalfOf") or {}).get("reference") if claim.resource_type == "Cron" else None
    request = replace(
        _bare_request(claim),
        input=resource,
        content_type="application/fhir+json",
        caller=behalf.partition("/")[2] if behalf else None,
    )
    _execute(claim, request, conclude)


def _execute(claim: Claim, request: ExecutionRequest, conclude: execution.Conclude) -> None:
    if claim.deaths > MAX_ATTEMPTS:
        text = f"Given up: {MAX_ATTEMPTS} times the worker stopped while the Bot ran"
        execution.refuse(request, text, conclude)
    else:
        execution.execute(request, conclude)


def _limit(claim: Claim) -> int:
    """How many attempts a delivery has."""
    if claim.trigger == Delivery.Trigger.CRON:
        return 1
    subscription = subscription_of(claim.project, claim.subscription_id)
    return endpoints.max_attempts(subscription or {}, project_of(claim.project))


def _run_subscribed(claim: Claim, conclude: execution.Conclude) -> None:
    subscription = subscription_of(claim.project, claim.subscription_id)
    if subscription is None or subscription.get("status") != "active":
        # What waited when it was switched off can be made up for like what happens while it is.
        is_off = subscription is not None and subscription.get("status") == "off"
        with transaction():
            conclude(ExecutionResult.skipped(PAUSED if is_off else "The Subscription is no longer active"))
        return
    if reason := _superseded(claim):
        with transaction():
            conclude(ExecutionResult.skipped(reason))
        return
    try:
        content = _content(claim, subscription)
        previous = _previous(claim, subscription)
    except FhirError as error:
        if error.status >= 500:
            raise
        if claim.bot_id:
            execution.refuse(_bare_request(claim), f"The change could not be read: {error}", conclude)
        else:
            _conclude_sent(claim, subscription, endpoints.Sent(False, str(error)), conclude, "refused")
        return
    if content is None:
        text = "The author of the Subscription may not read this resource"
        with transaction():
            conclude(ExecutionResult.skipped(text))
    elif claim.bot_id:
        _execute(claim, replace(_request(claim, subscription, content), previous=previous), conclude)
    else:
        _send(claim, subscription, content, conclude)


def _superseded(claim: Claim) -> str:
    """Why an event that could not be delivered at once need not be any more; empty if it must."""
    if not claim.failures:
        return ""
    try:
        current = Repository(system_identity(claim.project)).read(claim.resource_type, claim.resource_id)
    except FhirError as error:
        if error.status >= 500:
            raise
        return "" if claim.interaction == "delete" else "The resource was deleted meanwhile"
    return "" if current.version_id == claim.version_id else "There is a newer version meanwhile"


def _send(claim: Claim, subscription: dict[str, Any], content: bytes, conclude: execution.Conclude) -> None:
    """Deliver to a URL or an address of e-mail."""
    failure = "endpoint"
    if claim.depth >= execution.MAX_DEPTH:
        sent = endpoints.Sent(False, f"Stopped: this would be step {claim.depth + 1} in a chain of Bots")
        failure = "refused"
    elif claim.deaths > MAX_ATTEMPTS:
        sent = endpoints.Sent(False, f"Given up: {MAX_ATTEMPTS} times the worker stopped while it was sent")
        failure = "refused"
    elif subscription["channel"].get("type") == "email":
        sent = endpoints.mail(_event(claim), subscription, content)
    else:
        sent = endpoints.post(_event(claim), subscription, content)
    _conclude_sent(claim, subscription, sent, conclude, failure)


def _conclude_sent(
    claim: Claim,
    subscription: dict[str, Any],
    sent: endpoints.Sent,
    conclude: execution.Conclude,
    failure: str,
) -> None:
    event = endpoints.audit_event(_event(claim), subscription, "0" if sent.ok else "4", sent.text)
    where = endpoints.destinations(subscription)
    if "log" in where:
        _audit_log.debug("%s", orjson.dumps(event).decode())
    result = ExecutionResult(
        sent.ok, 200, "text/plain", b"", log_text=sent.text, failure=None if sent.ok else failure
    )
    with transaction():
        if "resource" in where:
            result = replace(result, audit_event_id=_store(claim, event))
        conclude(result)


def _store(claim: Claim, event: dict[str, Any]) -> str:
    system = Repository(
        system_identity(claim.project),
        trace_id=claim.trace_id,
        depth=claim.depth,
        is_watched=is_alarming(event, claim.trace_id),
    )
    return system.create(event).id


def _event(claim: Claim) -> endpoints.Event:
    return endpoints.Event(
        delivery_id=claim.id,
        attempt=claim.attempts,
        subscription_id=claim.subscription_id,
        interaction=claim.interaction,
        resource=f"{claim.resource_type}/{claim.resource_id}",
        version_id=claim.version_id,
        trace_id=claim.trace_id,
        changed=claim.changed,
    )


def verdict(claim: Claim, result: ExecutionResult, limit: int) -> tuple[Delivery.State, str, timedelta]:
    """State, sentence and pause that follow from a result, if there are `limit` attempts."""
    if result.ok:
        return Delivery.State.DONE, "", timedelta()
    if result.failure == "skipped":
        return Delivery.State.SKIPPED, result.log_text, timedelta()
    if (
        result.failure == "refused"
    ):  # the sentence is ours; what a Bot says may be patient data: AuditEvent only
        return Delivery.State.FAILED, result.log_text, timedelta()
    sentence = result.log_text if result.failure == "endpoint" else f"The Bot failed: {result.failure}"
    is_outside = result.failure in OUTSIDE
    if claim.failures + 1 < (max(limit, MAX_ATTEMPTS) if is_outside else limit):
        pause = OUTSIDE_PAUSE * (1 << min(claim.failures, 20)) if is_outside else _pause(claim.failures)
        return Delivery.State.RETRYING, sentence, pause
    return Delivery.State.FAILED, sentence, timedelta()


def _pause(failures: int) -> timedelta:
    """How long to wait after so many failures before the last one; not exactly, or all would come at the same time."""
    return min(FIRST_PAUSE * (1 << min(failures, 20)) * _random.uniform(0.9, 1.1), LONGEST_PAUSE)


def _finish(
    claim: Claim,
    lease: int,
    state: Delivery.State,
    outcome: str,
    pause: timedelta,
    *,
    audit_event_id: str | None = None,
    has_failed: bool = True,
) -> None:
    """Store how a delivery ended; raises LostClaimError, so that the transaction is rolled back, if it is not ours any more."""
    with connection() as session:
        done = session.execute(
            _FINISH,
            {
                "id": claim.id,
                "lease": lease,
                "attempts": claim.attempts,
                "state": state.value,
                "outcome": outcome,
                "pause": pause,
                "audit_event_id": audit_event_id,
                "failed": int(has_failed and state in (Delivery.State.RETRYING, Delivery.State.FAILED)),
            },
        )
    if done.rowcount != 1:
        raise LostClaimError


def _give_back(claim: Claim, lease: int, *, is_hopeless: bool = False) -> bool:
    """Let a delivery be tried again; False if it is not ours any more.

    Args:
        is_hopeless: nothing says that it ever goes better: after :data:`MAX_ATTEMPTS` such attempts it has failed.
    """
    state, sentence = Delivery.State.RETRYING, "The attempt was cut off by a fault of the server"
    if is_hopeless and claim.deaths > MAX_ATTEMPTS:
        state = Delivery.State.FAILED
        sentence = f"Given up: {claim.deaths} times cut off by a fault of the server, whose log tells more"
    try:
        pause = OUTSIDE_PAUSE * (1 << min(claim.attempts - 1, 10))
        _finish(claim, lease, state, sentence, pause, has_failed=False)
    except LostClaimError:
        return False
    except (FhirError, psycopg.Error):
        _lease.drop()  # not even that can be stored now: reclaim() does it when the database is back
    return True


# --- what the Bot receives -------------------------------------------------------------------------------------------


def _bare_request(claim: Claim) -> ExecutionRequest:
    if claim.trigger == Delivery.Trigger.CRON:
        return ExecutionRequest(
            project=claim.project,
            bot_id=claim.bot_id,
            trigger="cron",
            received=claim.changed,
            trace_id=claim.trace_id,
            resource=f"{claim.resource_type}/{claim.resource_id}",
            attempt=claim.attempts,
        )
    return ExecutionRequest(
        project=claim.project,
        bot_id=claim.bot_id,
        trigger="subscription",
        received=claim.changed,
        trace_id=claim.trace_id,
        requester={"reference": claim.author},
        depth=claim.depth,
        subscription_id=claim.subscription_id,
        interaction=claim.interaction,
        resource=f"{claim.resource_type}/{claim.resource_id}",
        version_id=claim.version_id,
        attempt=claim.attempts,
    )


def _content(claim: Claim, subscription: dict[str, Any]) -> bytes | None:
    """The version that triggered the delivery, attachments presigned; None if the Subscription's author may not see it.

    Raises FhirError.
    """
    is_delete = claim.interaction == "delete"
    version = (claim.previous_version_id or claim.version_id) if is_delete else claim.version_id
    return _seen(claim, subscription, version)


def _previous(claim: Claim, subscription: dict[str, Any]) -> dict[str, Any] | None:
    """The version before, if the Bot is to have it, there is one, and the Subscription's author may see it.

    Raises FhirError.
    """
    if not claim.bot_id or claim.previous_version_id is None or not wants_previous(subscription):
        return None
    try:
        content = _seen(claim, subscription, claim.previous_version_id)
    except FhirError as error:
        if error.status != 410:
            raise
        return None  # the change has brought back a deleted resource
    return orjson.loads(content) if content else None


def _seen(claim: Claim, subscription: dict[str, Any], version: str) -> bytes | None:
    """A version as the Subscription's author may see it, attachments presigned; None if it may not. Raises FhirError."""
    stored = Repository(system_identity(claim.project)).read_version(
        claim.resource_type, claim.resource_id, version
    )
    author = author_of(claim.project, subscription)
    if author.policy is None:
        return presign_urls(stored.content)
    repository = Repository(author)
    seen = repository.as_seen(stored)
    return None if seen is None else presign_urls(seen.content, repository)


def _request(claim: Claim, subscription: dict[str, Any], content: bytes) -> ExecutionRequest:
    """The run of a delivery, with the version that triggered it as input."""
    is_delete = claim.interaction == "delete"
    resource = orjson.loads(content)
    author = (resource.get("meta") or {}).get("author") or {}
    bare = _bare_request(claim)
    signed = b'{"deletedResource":%b}' % content if is_delete else content
    return replace(
        bare,
        input={"deletedResource": resource} if is_delete else resource,
        content_type="application/fhir+json",
        headers=endpoints.headers(_event(claim), subscription, signed),
        requester=author if author.get("reference") == claim.author else bare.requester,
    )


# --- dead letters ----------------------------------------------------------------------------------------------------

_REPLAY = """
UPDATE bots_delivery SET state = 'waiting', due = clock_timestamp(), finished = NULL, outcome = '', failures = 0,
    forgiven = attempts
WHERE project = %(project)s AND (%(owner)s::text IS NULL OR subscription_id = %(owner)s)
  AND CASE WHEN %(ids)s::bigint[] IS NOT NULL THEN id = ANY(%(ids)s) AND state IN ('failed', 'skipped', 'done')
           WHEN %(paused)s THEN state = 'skipped' AND outcome = %(reason)s
           ELSE state = 'failed' END
"""


def replay(
    project: str, *, owner_id: str | None = None, ids: list[int] | None = None, paused: bool = False
) -> int:
    """Let deliveries that have ended be carried out again, in their order; returns how many.

    Args:
        owner_id: only those of a Subscription, Bot or Cron.
        ids: these, however they ended; None for all that failed.
        paused: instead of those that failed, what was skipped while the Subscription was off.
    """
    values = {"project": project, "owner": owner_id, "ids": ids, "paused": paused, "reason": PAUSED}
    with connection() as session:
        return session.execute(_REPLAY, values).rowcount


# --- giving up on a Subscription -------------------------------------------------------------------------------------

AUTO_DISABLE: Final = "subscriptionAutoDisable"
"""``Project.systemSetting`` or ``setting``: JSON, ``[{"maxConsecutiveFailures": 10, "timeWindowSeconds": 3600}]``."""

_IN_A_ROW = """
SELECT count(*) FROM bots_delivery AS failed
WHERE subscription_id = %(id)s AND state = 'failed' AND finished > clock_timestamp() - %(window)s
  AND finished > coalesce((SELECT max(finished) FROM bots_delivery WHERE subscription_id = %(id)s AND state = 'done'), '-infinity')
"""


def switch_off_if_hopeless(claim: Claim) -> None:
    """Switch a Subscription off, in the transaction that ends its delivery, if too many in a row have failed for good."""
    for rule in _auto_disable_rules(project_of(claim.project)):
        most, seconds = rule["maxConsecutiveFailures"], rule["timeWindowSeconds"]
        with connection() as session:
            row = session.execute(
                _IN_A_ROW, {"id": claim.subscription_id, "window": timedelta(seconds=seconds)}
            ).fetchone()
        if row and row[0] >= most:
            _switch_off(claim, row[0], seconds)
            return


def _switch_off(claim: Claim, count: int, seconds: float) -> None:
    text = f"Automatically disabled after {count} consecutive failed events in the last {seconds:g} seconds"
    system = Repository(system_identity(claim.project), trace_id=claim.trace_id, depth=claim.depth)
    try:
        subscription = system.read("Subscription", claim.subscription_id).resource
        if subscription.get("status") != "active":
            return
        with system.transaction():
            system.update(subscription | {"status": "off", "error": text})
            _store(claim, endpoints.audit_event(_event(claim), subscription, "8", text))
    except FhirError as error:  # it is gone, or was stored before it would have been refused
        if error.status >= 500:
            raise
        _log.warning("Subscription/%s could not be switched off", claim.subscription_id)


def _auto_disable_rules(project: dict[str, Any]) -> list[dict[str, float]]:
    for setting in (*(project.get("systemSetting") or ()), *(project.get("setting") or ())):
        if setting.get("name") == AUTO_DISABLE:
            try:
                rules = orjson.loads(setting.get("valueString") or "[]")
                return [
                    {name: float(rule[name]) for name in ("maxConsecutiveFailures", "timeWindowSeconds")}
                    for rule in rules
                ]
            except (orjson.JSONDecodeError, TypeError, KeyError, ValueError):
                _log.warning("Project/%s: setting %s cannot be read", project.get("id"), AUTO_DISABLE)
    return []


# --- after a death or a lost message ---------------------------------------------------------------------------------

_RECLAIM = """
UPDATE bots_delivery SET state = 'waiting', lease = NULL, due = clock_timestamp()
WHERE state = 'running' AND lease NOT IN (
    SELECT objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND classid = %s::int AND objsubid = 2 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
RETURNING id
"""
_FORGET = """
DELETE FROM bots_delivery WHERE id IN (
    SELECT id FROM (SELECT id, finished FROM bots_delivery ORDER BY id LIMIT 500) AS oldest
    WHERE finished < now() - %s)
"""
_WAKE = "UPDATE bots_delivery SET state = 'waiting' WHERE state = 'retrying' AND due <= clock_timestamp()"
_WAITING = "SELECT count(*) FROM (SELECT FROM bots_delivery WHERE state = 'waiting' LIMIT 100) AS waiting"


def reclaim() -> int:
    """Give back the deliveries of workers that have died; returns how many."""
    with connection() as session:
        count = session.execute(_RECLAIM, (LEASES,)).rowcount
    if count:
        _log.warning("%s deliveries of a worker that has died run again", count)
    return count


def forget_old() -> None:
    """Drop a few of the oldest deliveries if they ended more than :data:`KEEP` ago; their AuditEvents stay."""
    with connection() as session:
        session.execute(_FORGET, (KEEP,))


def due_count() -> int:
    """Let those wait whose next attempt is due; returns how many deliveries wait, more than 100 counted as 100."""
    with connection() as session:
        session.execute(_WAKE)
        row = session.execute(_WAITING).fetchone()
    return row[0] if row else 0
