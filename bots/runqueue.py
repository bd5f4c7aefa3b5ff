"""Runs in the background: asynchronous ``$execute`` (shared/medplum/execute.md §7).

The AsyncJob, its row among the store's jobs and the run's row here are written in one transaction; so are the AuditEvent, the
job's output and the end of both rows. A worker that dies gives its runs back (:func:`reclaim`), and another one begins them
again: what the Bot had written by then stays written, and the attempt is counted in the AuditEvent.

Workers take the oldest run of the project that has the fewest in work, so a project that asks for thousands of runs delays its
own and nobody else's. Cancelling a job deletes the row and ends the process that runs it.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, Literal

import psycopg
from django.conf import settings

from bots import execution
from bots.operation_output import answer_of, as_parameters
from bots.request import ExecutionRequest, ExecutionResult
from bots.results import outcome_output, refusal_of
from bots.workers import LEASES
from bots.workers import lease as _lease
from fhirstore.api import (
    Doorbell,
    FhirError,
    Repository,
    begin_job,
    connection,
    finish_job,
    log_failure,
    on_commit,
    register_job,
    start_job,
    transaction,
    validate,
)

KIND: Final = "bot"
"""Of the AsyncJobs, as :func:`fhirstore.api.register_job` knows them."""

MAX_ATTEMPTS: Final = 5
"""Attempts when the worker dies or no sandbox starts; what the Bot does is final."""

PAUSE: Final = timedelta(seconds=5)
"""Before the second attempt; doubles with each one."""

_CLAIM: Final = """
WITH RECURSIVE waiting(project) AS (
    (SELECT project FROM bots_queuedrun WHERE lease IS NULL ORDER BY project LIMIT 1)
    UNION ALL
    SELECT (SELECT project FROM bots_queuedrun WHERE lease IS NULL AND project > waiting.project ORDER BY project LIMIT 1)
    FROM waiting WHERE project IS NOT NULL
), oldest AS (
    SELECT (SELECT id FROM bots_queuedrun AS run
            WHERE run.project = waiting.project AND lease IS NULL AND due <= clock_timestamp() ORDER BY id LIMIT 1) AS id,
        (SELECT count(*) FROM bots_queuedrun AS run WHERE run.project = waiting.project AND lease IS NOT NULL) AS running
    FROM waiting WHERE project IS NOT NULL
)
SELECT id FROM oldest WHERE id IS NOT NULL ORDER BY running, id LIMIT 5
"""
_TAKE: Final = """
UPDATE bots_queuedrun SET lease = %(lease)s, attempts = attempts + 1 WHERE id = (
    SELECT id FROM bots_queuedrun WHERE id = ANY(%(ids)s) AND lease IS NULL AND due <= clock_timestamp()
    ORDER BY array_position(%(ids)s, id) LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id::text, request, attempts
"""
_RECLAIM: Final = """
UPDATE bots_queuedrun SET lease = NULL WHERE lease IS NOT NULL AND lease NOT IN (
    SELECT objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND classid = %s::int AND objsubid = 2 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""

bell: Final = Doorbell("runs")
"""Rings when this process has committed a run that waits."""


_slots: Final = threading.BoundedSemaphore(max(1, int(settings.WORKER_THREADS) // 2))
"""Threads of this process that may run them at the same time: deliveries and callers who wait need some too."""


class TakenOverError(Exception):
    """Another worker has the run, because this one seemed dead: the result does not count."""


def register() -> None:
    """Make runs a kind of job; called once at start-up."""
    register_job(KIND, None, on_cancel=_cancel)


def enqueue(repository: Repository, request: ExecutionRequest, request_url: str) -> str:
    """Store a run to do in the background; returns the id of its AsyncJob.

    Args:
        repository: of the caller, who becomes the author of the AsyncJob.
        request: the run.
        request_url: whole address of the HTTP request.
    """
    with transaction() as session:
        job = start_job(repository, KIND, {}, request_url)
        stored = replace(request.without_credentials(), fresh=None, job_id=job.id)
        session.execute(
            "INSERT INTO bots_queuedrun (id, project, bot_id, request, attempts) VALUES (%s, %s, %s, %s, 0)",
            (job.id, request.project, request.bot_id, stored.encode().decode()),
        )
        on_commit(bell.ring)
    return job.id


def run_next(lease: int) -> bool:
    """Take the next run that is due and carry it out; False if there is none, or enough threads of this process are at it."""
    if not _slots.acquire(blocking=False):
        return False
    try:
        return _run_next(lease)
    finally:
        _slots.release()


def _run_next(lease: int) -> bool:
    with connection() as session:
        ids = [row[0] for row in session.execute(_CLAIM).fetchall()]
        row = session.execute(_TAKE, {"lease": lease, "ids": ids}).fetchone() if ids else None
    if row is None:
        return bool(ids)  # others were faster; there may be more
    job_id, encoded, attempt = row
    try:  # from the very next statement on: what is claimed and neither done nor given back would wait as long as we live
        if attempt > 1 or len(ids) > 1 or waiting_count():
            bell.ring()  # there is work for another thread too
        request = replace(ExecutionRequest.decode(encoded), attempt=attempt)
        # From here on a cancel finds something to end; one that came earlier is seen by begin_job().
        with execution.stoppable(job_id):
            if begin_job(request.project, job_id):
                _carry_out(request, job_id, lease)
    except TakenOverError:
        pass
    except Exception as error:  # noqa: BLE001  the database away, a fault of ours: the run must not stay behind
        log_failure(f"job {job_id}", error)
        _give_back(job_id, lease, attempt)
    return True


def _carry_out(request: ExecutionRequest, job_id: str, lease: int) -> None:
    def conclude(result: ExecutionResult) -> None:
        if not _is_mine(job_id, lease):
            return  # cancelled: the AuditEvent tells of what was done until then
        if result.failure == "startup" and request.attempt < MAX_ATTEMPTS:
            _give_back(job_id, lease, request.attempt)
        else:
            _finish(request, job_id, result)

    if request.attempt > MAX_ATTEMPTS:
        execution.refuse(
            request, f"Given up: {MAX_ATTEMPTS} times the worker stopped while the Bot ran", conclude
        )
    else:
        execution.execute(request, conclude)


def _is_mine(job_id: str, lease: int) -> bool:
    """True while the row is this process's, False if it is gone; raises TakenOverError if it is somebody else's."""
    with connection() as session:
        row = session.execute(
            "SELECT lease FROM bots_queuedrun WHERE id = %s FOR UPDATE", (job_id,)
        ).fetchone()
    if row is not None and row[0] != lease:
        raise TakenOverError
    return row is not None


def _finish(request: ExecutionRequest, job_id: str, result: ExecutionResult) -> None:
    """End the job and the row, in the current transaction."""
    with connection() as session:
        session.execute("DELETE FROM bots_queuedrun WHERE id = %s", (job_id,))
    status: Literal["completed", "error"] = "completed" if result.ok else "error"
    if request.definition is not None:
        try:
            output = as_parameters(answer_of(request.definition, result))
        except FhirError as error:  # as the Bot or its definition says
            status, output = "error", outcome_output(error.outcome)
    elif result.output is None:  # refused before it began
        output = outcome_output(refusal_of(result.log_text, code="invalid"))
    else:
        output = result.output
    if output and (issues := validate({"resourceType": "Parameters", "parameter": output})):
        text = f"The result cannot be kept as FHIR: {issues[0]['details']['text']}"
        status, output = "error", outcome_output(refusal_of(text, code="invalid"))
    finish_job(request.project, job_id, status, output)


def _cancel(project: str, job_id: str, parameters: dict[str, Any]) -> None:
    """Called in the transaction that cancels a job."""
    with connection() as session:
        session.execute("DELETE FROM bots_queuedrun WHERE id = %s", (job_id,))
    execution.stop_run(job_id)


def _give_back(job_id: str, lease: int, attempt: int) -> None:
    pause = PAUSE * (1 << (attempt - 1))
    try:
        with connection() as session:
            session.execute(
                "UPDATE bots_queuedrun SET lease = NULL, due = clock_timestamp() + %s WHERE id = %s AND lease = %s",
                (pause, job_id, lease),
            )
    except (FhirError, psycopg.Error) as error:
        log_failure(f"job {job_id}", error)
        _lease.drop()  # the sweep gives it back, since the lease is gone


# --- after a death or a lost message ---------------------------------------------------------------------------------


def reclaim() -> None:
    """Give back the runs of workers that have died."""
    with connection() as session:
        session.execute(_RECLAIM, (LEASES,))


def waiting_count() -> int:
    """How many runs are due and not taken; more than 20 count as 20."""
    with connection() as session:
        return session.execute(
            "SELECT FROM bots_queuedrun WHERE lease IS NULL AND due <= clock_timestamp() LIMIT 20"
        ).rowcount
