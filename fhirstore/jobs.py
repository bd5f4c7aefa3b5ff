"""Asynchronous jobs: what takes too long for an answer runs in the background, survives a crash, and can be stopped.

An open job is an AsyncJob and a row of the table ``job``, written in one transaction; the row goes when the job ends. Whoever runs
a job holds an advisory lock on a connection of its own: it goes away the moment the process dies, and the next one to look
takes the job over. No timeout has to be guessed. A message (:func:`on_job`) only says that it is worth looking now.

A job asks :meth:`Job.check` between its batches. There it learns that it was cancelled, that its process shall stop, or that its lock
is lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import IO, Any, Final, Literal, Protocol

import orjson
import psycopg

from fhirstore import database, errors, hooks
from fhirstore.auth.identities import identity_of_membership
from fhirstore.changes import Doorbell
from fhirstore.identity import Identity, system_identity
from fhirstore.repository import Repository, Stored
from fhirstore.scopes import Scope
from fhirstore.tables import Moment, new_id

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Output = list[Json]
"""The ``parameter`` list of ``AsyncJob.output``."""

LOCKS: Final = 5_270_003
"""First key of the advisory locks; the second is the row's number."""

MAX_ATTEMPTS: Final = 5
"""Attempts when the process dies or the database goes away."""

PAUSE: Final = timedelta(seconds=5)
"""Before a job runs again after the database went away."""

MAX_RUNNING: Final = 2
"""Jobs one process runs at the same time: Bots need its threads."""

MAX_OPEN: Final = 200
"""Jobs of a project that wait or run."""

KEPT: Final = timedelta(days=7)
"""How long the files of a job are there for its caller."""

OPEN: Final = frozenset({"accepted", "active"})


class JobStoppedError(Exception):
    """The job must not go on: it was cancelled, its process stops, or somebody else has taken it over."""


class Run(Protocol):
    """Carries out a job and returns its output.

    A FhirError ends the job as ``error`` with its outcome; any other failure does too, without telling what broke.
    """

    def __call__(self, job: Job) -> Iterable[Json]: ...


class OnCancel(Protocol):
    """Called inside the transaction that cancels a job."""

    def __call__(self, project: str, job_id: str, parameters: Json) -> None: ...


@dataclass(frozen=True, slots=True)
class _Kind:
    run: Run | None
    on_cancel: OnCancel | None


_kinds: dict[str, _Kind] = {}
_doorbell = Doorbell("jobs")
_stopping = threading.Event()
_running = threading.Semaphore(MAX_RUNNING)


def register_job(kind: str, run: Run | None, *, on_cancel: OnCancel | None = None) -> None:
    """Register a kind of job at start-up.

    Args:
        kind: its name.
        run: carries it out in a worker; None if somebody else does, who then calls :func:`begin_job` and :func:`finish_job`.
        on_cancel: stops what runs elsewhere. Without it a running job learns of its end in :meth:`Job.check`.
    """
    _kinds[kind] = _Kind(run, on_cancel)


def on_job(callback: Callable[[], None]) -> None:
    """Call ``callback()`` in a background thread soon after this process has committed a new job."""
    _doorbell.add(callback)


# --- from start to end -----------------------------------------------------------------------------------------------


def start_job(repository: Repository, kind: str, parameters: Json, request_url: str) -> Stored:
    """Store a job that runs as the caller, in the caller's transaction if there is one.

    Args:
        repository: of the caller.
        kind: as registered.
        parameters: what to do, as JSON.
        request_url: the whole address of the request that asks for it.

    Returns:
        the AsyncJob.

    Raises:
        FhirError: 429 when the project has too many open jobs.
    """
    if kind not in _kinds:
        raise ValueError(f"No such kind of job: {kind}")
    moment = Moment.now()
    resource = {
        "resourceType": "AsyncJob",
        "status": "accepted",
        "requestTime": moment.text,
        "request": request_url,
    }
    with database.transaction() as connection:
        open_jobs = connection.execute(
            "SELECT FROM job WHERE project = %s AND kind = ANY(%s) LIMIT %s",
            [repository.identity.project, _runnable(), MAX_OPEN],
        )
        if _kinds[kind].run is not None and open_jobs.rowcount >= MAX_OPEN:
            text = f"The project has {MAX_OPEN} open jobs; wait until one has ended"
            raise errors.FhirError(
                errors.outcome("too-many-requests", [errors.issue(text, code="throttled")]),
                {"Retry-After": "10"},
            )
        stored = _writer(repository.identity).create(resource, id=new_id())
        connection.execute(
            "INSERT INTO job (id, project, kind, parameters, actor) VALUES (%s, %s, %s, %s, %s)",
            [
                stored.id,
                repository.identity.project,
                kind,
                orjson.dumps(parameters).decode(),
                orjson.dumps(_actor(repository)).decode(),
            ],
        )
        if _kinds[kind].run is not None:
            database.on_commit(_doorbell.ring)
    return stored


def begin_job(project: str, job_id: str) -> bool:
    """Make the AsyncJob ``active``; False if it has ended, by a cancel for example."""
    return _end(project, job_id, "active", None)


def finish_job(project: str, job_id: str, status: Literal["completed", "error"], output: Output) -> bool:
    """End a job: its row goes, its AsyncJob gets its status and output. False if it has ended before, then nothing changes."""
    return _end(project, job_id, status, output)


def find_job(repository: Repository, job_id: str) -> Stored:
    """The AsyncJob, for whoever started it and whoever may read it; raises FhirError (404) for all others."""
    system = Repository(system_identity(repository.identity.project))
    try:
        stored = system.read("AsyncJob", job_id)
    except errors.FhirError as error:
        if error.status == 410:
            raise errors.not_found() from None
        raise
    return stored if _is_author(repository, stored) else repository.read("AsyncJob", job_id)


def progress(job_id: str) -> Json | None:
    """What an open job last said of its progress; None without such a job."""
    with database.connection() as connection:
        row = connection.execute("SELECT progress FROM job WHERE id = %s", [job_id]).fetchone()
    return orjson.loads(row[0]) if row else None


def cancel_job(repository: Repository, job_id: str) -> None:
    """Stop a job; doing so again changes nothing.

    Raises:
        FhirError: 404 as :func:`find_job`, 403 for who has not started it and is no admin, 400 for a job that has ended.
    """
    identity = repository.identity
    with database.transaction() as connection:
        stored = find_job(repository, job_id)
        if not _is_author(repository, stored) and not (identity.is_admin or identity.policy is None):
            raise errors.forbidden()
        connection.execute("SELECT FROM job WHERE id = %s FOR UPDATE", [stored.id])
        # Read behind the lock: the job may have ended meanwhile.
        resource = Repository(system_identity(identity.project)).read("AsyncJob", stored.id).resource
        if resource["status"] == "cancelled":
            return
        if resource["status"] not in OPEN:
            raise errors.bad_request(
                "AsyncJob cannot be cancelled if status is not 'accepted',"
                f" job had status '{resource['status']}'"
            )
        _update(identity.project, resource, "cancelled", None)
        _forget(repository, resource)


def _end(project: str, job_id: str, status: str, output: Output | None) -> bool:
    statement = (
        "SELECT FROM job WHERE id = %s AND project = %s FOR UPDATE"
        if status == "active"
        else "DELETE FROM job WHERE id = %s AND project = %s"
    )
    with database.transaction() as connection:
        if not connection.execute(statement, [job_id, project]).rowcount:
            return False
        resource = Repository(system_identity(project)).read("AsyncJob", job_id).resource
        if resource["status"] in OPEN and resource["status"] != status:
            _update(project, resource, status, output)
    return True


def register() -> None:
    """A deleted AsyncJob ends its job; called once at start-up."""
    hooks.before_delete(["AsyncJob"], _forget)


def _forget(repository: Repository, resource: Json) -> None:
    """Remove the row of a job, and tell whoever runs it."""
    project, job_id = repository.identity.project, resource["id"]
    with database.connection() as connection:
        row = connection.execute(
            "DELETE FROM job WHERE id = %s AND project = %s RETURNING kind, parameters", [job_id, project]
        ).fetchone()
    kind = _kinds.get(row[0]) if row else None
    if row and kind and kind.on_cancel:
        kind.on_cancel(project, job_id, orjson.loads(row[1]))


def _update(project: str, resource: Json, status: str, output: Output | None) -> None:
    resource["status"] = status
    if status != "active":
        resource["transactionTime"] = Moment.now().text
    if output:
        resource["output"] = {"resourceType": "Parameters", "parameter": output}
    author = resource["meta"]["author"]
    _writer(Identity(project, author["reference"], author.get("display"))).update(resource)


def _writer(identity: Identity) -> Repository:
    """Writes AsyncJobs, which a caller's AccessPolicy need not name; they stay the caller's."""
    return Repository(
        Identity(identity.project, identity.profile, identity.profile_display, is_admin=True, system=True)
    )


def _is_author(repository: Repository, stored: Stored) -> bool:
    author = stored.resource["meta"]["author"]["reference"]
    return repository.identity.system or author == repository.identity.profile


# --- files -----------------------------------------------------------------------------------------------------------


def store_file(job: Job, content: bytes | IO[bytes], content_type: str) -> Stored:
    """Store a file a job has made as a Binary that only its caller may read, and that :func:`expire_files` removes.

    The caller's AccessPolicy need not allow it.
    """
    writer = _writer(job.repository.identity)
    with database.transaction() as connection:
        stored = writer.store_binary(content, content_type, security_context=f"AsyncJob/{job.id}")
        connection.execute(
            "INSERT INTO job_file (binary_id, project, expires) VALUES (%s, %s, clock_timestamp() + %s)",
            [stored.id, job.project, KEPT],
        )
    return stored


def remove_file(project: str, id: str) -> None:
    """Remove a file of a job for good; one that is gone already is fine."""
    try:
        _writer(system_identity(project)).expunge("Binary", id)
    except errors.FhirError as error:
        if error.status != 404:
            raise


def expire_files() -> int:
    """Remove files of jobs whose time is over; returns how many."""
    with database.transaction() as connection:
        expired = connection.execute(
            "DELETE FROM job_file WHERE binary_id IN (SELECT binary_id FROM job_file"
            " WHERE expires < clock_timestamp() LIMIT 100 FOR UPDATE SKIP LOCKED)"
            " RETURNING project::text, binary_id::text"
        ).fetchall()
        for project, id in expired:
            remove_file(project, id)
    return len(expired)


# --- who a job runs as -----------------------------------------------------------------------------------------------


def _actor(repository: Repository) -> Json:
    identity = repository.identity
    if identity.membership is None and not identity.system:
        raise ValueError("A job needs the identity of a ProjectMembership")
    return {
        "membership": identity.membership,
        "profile": identity.profile,
        "display": identity.profile_display,
        "on_behalf_of": identity.on_behalf_of,
        "scopes": None if identity.scopes is None else [_scope_json(scope) for scope in identity.scopes],
        "trace_id": repository.trace_id,
        "depth": repository.depth,
    }


def _scope_json(scope: Scope) -> Json:
    return {
        "type": scope.type,
        "interactions": sorted(scope.interactions),
        "patient": scope.patient,
        "criteria": scope.criteria,
    }


def _scopes(given: list[Json] | None) -> tuple[Scope, ...] | None:
    if given is None:
        return None
    return tuple(Scope(**{**each, "interactions": frozenset(each["interactions"])}) for each in given)


def _repository(project: str, actor: Json) -> Repository:
    """The caller as he is now: what was taken from him since is not given to his job. Raises FhirError (401)."""
    if actor["membership"] is None:
        identity = system_identity(project)
    else:
        identity = replace(
            identity_of_membership(actor["membership"]),
            profile=actor["profile"],
            profile_display=actor["display"],
            on_behalf_of=actor["on_behalf_of"],
            scopes=_scopes(actor.get("scopes")),  # a token's limits hold for what it starts
        )
    return Repository(identity, trace_id=actor["trace_id"], depth=actor["depth"])


# --- running ---------------------------------------------------------------------------------------------------------


class Job:
    """A job while it runs.

    Attributes:
        id: of its AsyncJob.
        project, kind, parameters: as started.
        actor: who started it.
        request_url: the request that asked for it.
        repository: acts as the caller.
        progress: what an earlier attempt has saved, empty at first.
        attempt: 1 for the first one.
    """

    id: str
    project: str
    kind: str
    attempt: int
    repository: Repository

    def __init__(self, lock: psycopg.Connection[Any], row: tuple[Any, ...]) -> None:
        self._lock = lock
        self.id, self.project, self.kind, parameters, actor, progress, self.attempt = row
        self.actor: Json = orjson.loads(actor)
        self.parameters: Json = orjson.loads(parameters)
        self.progress: Json = orjson.loads(progress)
        self.request_url = ""

    def check(self, progress: Json | None = None) -> None:
        """Call it between batches, where nothing is half done.

        Args:
            progress: what others may see of it meanwhile (:func:`progress`); kept whatever becomes of a transaction.

        Raises:
            JobStoppedError: leave at once, without a trace of the batch.
        """
        if _stopping.is_set():
            raise JobStoppedError
        statement = "SELECT FROM job WHERE id = %(id)s"
        if progress is not None:
            statement = "UPDATE job SET progress = %(progress)s WHERE id = %(id)s"
        values = {"id": self.id, "progress": orjson.dumps(progress).decode()}
        try:
            # On the lock's own connection: that it answers says that the lock is still held.
            found = self._lock.execute(statement, values)
        except psycopg.OperationalError:
            raise JobStoppedError from None
        if not found.rowcount:
            raise JobStoppedError

    def save(self, progress: Json) -> None:
        """Remember how far it is: a later attempt finds it in :attr:`progress`. Joins a transaction."""
        self.progress = progress
        with database.connection() as connection:
            connection.execute(
                "UPDATE job SET progress = %s WHERE id = %s", [orjson.dumps(progress).decode(), self.id]
            )


def run_due_jobs() -> None:
    """Run jobs that are due, one after the other, until there are none; leaves if enough threads of this process do so."""
    while not _stopping.is_set() and _running.acquire(blocking=False):
        try:
            if not _run_one():
                return
        except psycopg.OperationalError as error:
            logger.warning("Jobs wait for the database: %s", type(error).__name__)
            return
        finally:
            _running.release()


def due_jobs() -> int:
    """How many jobs nobody runs and could be run now; more than 20 count as 20."""
    with database.connection() as connection:
        return connection.execute(_CANDIDATES, _question()).rowcount


def stop_jobs() -> None:
    """Have all jobs of this process leave at their next check; another process goes on with them."""
    _stopping.set()


_CANDIDATES: Final = """
SELECT number FROM (
    SELECT number, project, created, row_number() OVER (PARTITION BY project ORDER BY created) AS turn
    FROM job WHERE kind = ANY(%(kinds)s) AND due <= clock_timestamp()) j
WHERE number NOT IN (
    SELECT objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND classid = %(locks)s::int AND objsubid = 2 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
ORDER BY turn, project IS NOT DISTINCT FROM %(last)s::uuid, created LIMIT 20
"""
"""Free jobs: one of each project in turn, those of the project that was served last behind the others."""

_CLAIM: Final = """
UPDATE job SET attempts = attempts + 1 WHERE number = %s AND due <= clock_timestamp()
RETURNING id::text, project::text, kind, parameters, actor, progress, attempts
"""


_served: list[str | None] = [None]
"""The project whose job this process took last."""


def _runnable() -> list[str]:
    return [kind for kind, registered in _kinds.items() if registered.run is not None]


def _question() -> Json:
    return {"kinds": _runnable(), "locks": LOCKS, "last": _served[0]}


def _run_one() -> bool:
    """Take a job and run it; False if there is none to take."""
    with psycopg.connect(**database.connection_parameters()) as lock:
        job = _take(lock)
        if job is None:
            return False
        try:
            _carry_out(job)
        except JobStoppedError:
            logger.info("Job %s was stopped.", job.id)
            if _stopping.is_set():  # whoever goes on with it starts no new attempt
                lock.execute("UPDATE job SET attempts = attempts - 1 WHERE id = %s", [job.id])
        except errors.FhirError as error:
            _postpone(job, error)
    return True


def _take(lock: psycopg.Connection[Any]) -> Job | None:
    for (number,) in lock.execute(_CANDIDATES, _question()).fetchall():
        got = lock.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCKS, number]).fetchone()
        if got and got[0]:
            row = lock.execute(_CLAIM, [number]).fetchone()
            if row is not None:
                job = Job(lock, row)
                _served[0] = job.project
                return job
            lock.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCKS, number])
    return None


def _carry_out(job: Job) -> None:
    """Run a job to its end; raises JobStoppedError, and FhirError when the database is away."""
    if job.attempt > MAX_ATTEMPTS:
        text = f"Given up: {MAX_ATTEMPTS} times the server stopped while the job ran"
        finish_job(
            job.project,
            job.id,
            "error",
            [_outcome(errors.outcome(None, [errors.issue(text, code="exception")]))],
        )
        return
    if not begin_job(job.project, job.id):
        return
    run = _kinds[job.kind].run
    assert run is not None
    try:
        resource = Repository(system_identity(job.project)).read("AsyncJob", job.id).resource
        job.request_url = resource["request"]
        job.repository = _repository(job.project, job.actor)
        output = list(run(job))
        job.check()
    except (JobStoppedError, database.DatabaseUnavailableError):
        raise
    except errors.FhirError as error:
        finish_job(job.project, job.id, "error", [_outcome(error.outcome)])
    except Exception as error:  # noqa: BLE001  (the border of a job: it ends, whatever breaks in it)
        from fhirstore.rest.router import log_failure  # it imports the operations that start jobs

        log_failure(f"job {job.id}", error)
        finish_job(job.project, job.id, "error", [_outcome(errors.server_error(f"job {job.id}").outcome)])
    else:
        finish_job(job.project, job.id, "completed", output)


def _postpone(job: Job, error: errors.FhirError) -> None:
    logger.warning("Job %s was cut off (%s) and runs again.", job.id, error.status)
    try:
        with database.connection() as connection:
            connection.execute("UPDATE job SET due = clock_timestamp() + %s WHERE id = %s", [PAUSE, job.id])
    except (errors.FhirError, psycopg.Error):
        pass  # it is due already: whoever reaches the database first takes it


def _outcome(outcome: Json) -> Json:
    return {"name": "outcome", "resource": outcome}
