"""Bots that are asked before something is written (shared/medplum/subscriptions-and-cron.md §6).

In a Project whose setting :data:`SETTING` is true, an active Subscription with the extension ``pre-commit-bot`` and a Bot as endpoint is
not told of a change afterwards: its Bot runs before, inside the request that writes, and may refuse or replace the version. What
it throws or returns as an OperationOutcome refuses the write; a resource it returns is written instead; nothing, null or true
lets it pass. Only the first Subscription that matches is asked.

The Bot runs in a worker, or in this process if the write is a Bot's, on a connection of its own: it does not see the write it is
asked about. The very resource it cannot write: it would wait for the writer, who waits for it, so that is refused at once.
"""

from __future__ import annotations

import contextvars
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import orjson
from django.db import connections

from bots.bot import bot_run
from bots.context import project_of, remembered
from bots.execution import MAX_DEPTH
from bots.request import ExecutionRequest, ExecutionResult
from bots.results import FHIR_JSON
from bots.subscriptions import Watch, is_pre_commit, watch_of
from fhirstore.api import Change, FhirError, Repository, bad_request, log_failure, system_identity

Json = dict[str, Any]
T = TypeVar("T")

SETTING: Final = "preCommitSubscriptionsEnabled"
UNASKED: Final = frozenset({"AuditEvent", "Binary"})


def review(repository: Repository, resource: Json, previous: Json | None, interaction: str) -> Json | None:
    """Ask the Bot that wants to be asked about a write; returns what is to be written instead, None for nothing else.

    Raises FhirError to refuse the write.
    """
    identity = repository.identity
    if identity.system or resource["resourceType"] in UNASKED:
        return None
    watches: tuple[Watch, ...] = remembered(
        identity.project, "pre-commit", lambda: _outside(lambda: _watches(identity.project))
    )
    if not watches:
        return None
    change = _change(repository, resource, previous, interaction)
    watch = _first(watches, change, resource)
    if watch is None:
        return None
    if repository.depth >= MAX_DEPTH:
        raise bad_request("Stopped: too many Bots that are asked before a write have set each other off")
    return _answer(_run(_request(repository, watch, change, resource)), resource, interaction)


def _watches(project: str) -> tuple[Watch, ...]:
    """The Subscriptions of a project that are asked, the oldest first."""
    try:
        settings = project_of(project).get("setting") or ()
    except FhirError as error:
        if error.status == 404:  # it is being made right now
            return ()
        raise
    if not any(each.get("name") == SETTING and each.get("valueBoolean") is True for each in settings):
        return ()
    found = Repository(system_identity(project)).search_all(
        "Subscription", [("status", "active"), ("type", "rest-hook"), ("_sort", "_lastUpdated")]
    )
    watches = []
    for stored in found:
        subscription = stored.resource
        if is_pre_commit(subscription):
            try:
                watch = watch_of(project, subscription)
            except FhirError:
                continue  # stored before it would have been refused; its state tells
            if watch.bot_id:
                watches.append(watch)
    return tuple(watches)


def _first(watches: tuple[Watch, ...], change: Change, resource: Json) -> Watch | None:
    meta = resource.get("meta") or {}
    accounts = frozenset(
        each["reference"]
        for each in (meta.get("account"), *(meta.get("accounts") or ()))
        if each and each.get("reference")
    )
    fits = Repository(system_identity(change.project)).matcher(resource)
    for watch in watches:
        if watch.type == change.type and watch.wants(change, fits, accounts):
            return watch
    return None


def _change(repository: Repository, resource: Json, previous: Json | None, interaction: str) -> Change:
    """The write as the Change it will be."""
    return Change(
        id=0,
        project=repository.identity.project,
        type=resource["resourceType"],
        resource_id=resource["id"],
        version_id=resource["meta"]["versionId"],
        previous_version_id=None,
        interaction=interaction,  # type: ignore[arg-type]  # one of the three, as the store says
        author=repository.identity.profile,
        trace_id=repository.trace_id,
        depth=repository.depth,
        created=datetime.now(UTC),
        content=orjson.dumps(resource),
        previous=None if previous is None else orjson.dumps(previous),
    )


def _request(repository: Repository, watch: Watch, change: Change, resource: Json) -> ExecutionRequest:
    reference = f"{change.type}/{change.resource_id}"
    headers = {"X-Medplum-Deleted-Resource": reference} if change.interaction == "delete" else {}
    return ExecutionRequest(
        project=change.project,
        bot_id=watch.bot_id,
        trigger="pre-commit",
        received=change.created,
        trace_id=repository.trace_id or str(uuid.uuid4()),
        input=resource,
        content_type=FHIR_JSON,
        headers=headers,
        requester={"reference": repository.identity.profile},
        depth=repository.depth,
        subscription_id=watch.subscription_id,
        interaction=change.interaction,
        resource=reference,
        value_only=True,
    )


def _run(request: ExecutionRequest) -> ExecutionResult:
    """Run the Bot; raises FhirError where a fault of ours keeps it from being run: the write must not pass unasked."""
    try:
        return _outside(lambda: bot_run(request))
    except FhirError:
        raise
    except Exception as error:  # noqa: BLE001  the border of what a Bot's run can do to a write
        log_failure(f"pre-commit of Subscription/{request.subscription_id}", error)
        raise bad_request("The Bot that is asked before this write could not be run") from None


def _outside(work: Callable[[], T]) -> T:
    """Do work outside of the transaction of this thread, by another one; raises what the work raises."""
    done: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            done.set_result(context.run(work))
        except BaseException as error:  # noqa: BLE001  it goes to who waits
            done.set_exception(error)
        finally:
            connections.close_all()  # Django's connections belong to their thread

    threading.Thread(target=run, name="pre-commit").start()
    return done.result()


def _answer(result: ExecutionResult, resource: Json, interaction: str) -> Json | None:
    """What follows from the Bot's answer; raises FhirError to refuse the write."""
    if not result.ok:
        if result.content_type == FHIR_JSON:
            raise FhirError(orjson.loads(result.body))
        raise bad_request(result.log_text)
    value = orjson.loads(result.body) if result.body else None
    if value is None or value is True or interaction == "delete":
        return None
    if not isinstance(value, dict) or value.get("resourceType") != resource["resourceType"]:
        raise bad_request(
            f"The Bot that is asked before this write must return a {resource['resourceType']}, true or nothing"
        )
    if value.get("id") not in (None, resource["id"]):
        raise bad_request("The Bot that is asked before this write has returned another resource")
    return value
