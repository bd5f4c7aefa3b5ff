"""The archive of runs: what the AuditEvent of a run has no room for (docs/running-bots.md).

One row for each run, written in the statement that stores its AuditEvent; the two have the same id. A row holds the outcome in
columns, the log as it was written, and the request, from which the run can be repeated. The request is encrypted: it is the one
copy of what came in from outside that no AccessPolicy speaks about. ``Project.setting`` decides what is kept, and for how long.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final
from uuid import UUID

import orjson
from cryptography.fernet import InvalidToken, MultiFernet

from bots.request import ExecutionRequest, ExecutionResult
from fhirstore.api import (
    FhirError,
    Repository,
    bad_request,
    connection,
    encryption,
    not_found,
    system_identity,
    transaction,
)

DATA_SETTING: Final = "botRunData"
"""``Project.setting`` (valueString): what is kept of a run beside its outcome, one of :data:`DATA`."""
DATA: Final = ("all", "log", "none")
DAYS_SETTING: Final = "botRunDays"
"""``Project.setting`` (valueInteger): days until a run is forgotten."""
DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 3650

MAX_REQUEST: Final = 1024 * 1024
"""Bytes of a request that is kept."""
COMPRESSED: Final = 4096
"""Bytes from which on it is compressed: below, that takes longer than all the rest."""
MAX_WRITES: Final = 500
MAX_COUNT: Final = 200
"""Runs in one answer."""
CLEANING: Final = 3600.0
"""Seconds between two looks for what is too old."""

Json = dict[str, Any]


@dataclass(slots=True)
class Trail:
    """What a run leaves beside its result.

    Attributes:
        writes: ``{"interaction", "reference", "versionId"}`` of each version it has written, as far as they are committed.
        memory_bytes: the most its process has used.
        is_warm: its process had run the program before.
    """

    writes: list[dict[str, str]] = field(default_factory=list)
    memory_bytes: int | None = None
    is_warm: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A row of the archive.

    Attributes:
        kind: of failure: None, ``code``, ``timeout``, ``memory``, ``startup``, ``crash``, ``input``, ``output``, ``cancelled``,
            ``outcome`` (it returned one that is not ok), ``access`` (its AccessPolicy kept it from something), or why it was not run:
            ``not-deployed``, ``no-membership``, ``not-enabled``, ``loop``, ``refused``.
        details: the smaller things, as :func:`_details` makes them.
        log: ``[level, milliseconds since the beginning, text]`` of each line; None if it was not kept.
        request: encrypted; None if it was not kept.
    """

    id: UUID
    project: str
    bot_id: str
    ended: datetime
    trigger: str
    kind: str | None
    status: int
    duration_ms: float
    deployment: int | None
    attempt: int
    trace_id: str
    details: str
    log: str | None
    request: bytes | None

    @property
    def started(self) -> datetime:
        """When the sandbox began."""
        return self.ended - timedelta(milliseconds=self.duration_ms)


_COLUMNS: Final = tuple(column.name for column in fields(Run))
STORE: Final = f"bots_store_run({', '.join(f'%(run_{name})s' for name in _COLUMNS)})"
"""Expression that stores a run; its parameters are those of :func:`parameters`."""

_SELECT: Final = (
    f"SELECT {', '.join(_COLUMNS)} FROM bots_run WHERE project = %(project)s AND bot_id = %(bot_id)s"  # noqa: S608  (our own columns)
)


# --- writing ---------------------------------------------------------------------------------------------------------


def make_run(
    id: str,
    request: ExecutionRequest,
    result: ExecutionResult,
    trail: Trail,
    *,
    project: Mapping[str, Any] | None,
    run_as: str | None,
) -> Run:
    """Build the row of a run.

    Args:
        id: the same as its AuditEvent's.
        project: the Project resource; None if it is not known, then only the outcome is kept.
        run_as: reference of the profile the Bot acted as.
    """
    kept = _data(project)
    return Run(
        id=UUID(id),
        project=request.project,
        bot_id=request.bot_id,
        ended=datetime.now(UTC),
        trigger=request.trigger,
        kind=result.kind or result.failure,
        status=result.status,
        duration_ms=round(result.duration_ms, 3),
        deployment=result.deployment_number,
        attempt=request.attempt,
        trace_id=request.trace_id,
        details=orjson.dumps(_details(request, result, trail, run_as)).decode(),
        log=None if kept == "none" else orjson.dumps(_lines(result)).decode(),
        request=_encrypted(request) if kept == "all" else None,
    )


def parameters(run: Run) -> dict[str, Any]:
    """Parameters of :data:`STORE`."""
    return {f"run_{name}": getattr(run, name) for name in _COLUMNS}


def store(run: Run) -> None:
    """Store a run, in the current transaction if there is one."""
    with connection() as session:
        session.execute(f"SELECT {STORE}", parameters(run), prepare=True)


def _details(request: ExecutionRequest, result: ExecutionResult, trail: Trail, run_as: str | None) -> Json:
    found = {
        "received": request.received,
        "requester": (request.requester or {}).get("reference"),
        "runAs": run_as,
        "contentType": request.content_type,
        "subscription": request.subscription_id,
        "interaction": request.interaction,
        "resource": request.resource,
        "versionId": request.version_id,
        "job": request.job_id,
        "replayOf": request.replay_of,
        "depth": request.depth or None,
        "memory": trail.memory_bytes,
        "warm": trail.is_warm,
        "writes": trail.writes or None,
        "requests": [asdict(exchange) for exchange in result.exchanges] or None,
        "auditEvent": result.audit_event_id,
    }
    return {name: value for name, value in found.items() if value is not None}


def _lines(result: ExecutionResult) -> list[tuple[str, float, str]]:
    lines = [(line.level, line.offset_ms, line.text) for line in result.log]
    ending = result.log_text.removeprefix("\n".join(line.text for line in result.log)).removeprefix("\n")
    if ending and not result.ok:
        lines.append(("error", round(result.duration_ms, 3), ending))
    return lines


def _encrypted(request: ExecutionRequest) -> bytes | None:
    kept = request.without_credentials()
    encoded = replace(kept, fresh=None, job_id=None, answer_number=None).encode()
    if len(encoded) > MAX_REQUEST:
        return None
    return _encryption().encrypt(encoded if len(encoded) < COMPRESSED else zlib.compress(encoded, 1))


@cache
def _encryption() -> MultiFernet:
    return encryption("bot run")


# --- settings --------------------------------------------------------------------------------------------------------


def check_project(_repository: Repository, project: Json, _previous: Any) -> None:
    """Hook before a Project is written; raises FhirError (400) for a setting that means nothing."""
    data, days = _setting(project, DATA_SETTING), _setting(project, DAYS_SETTING)
    if data is not None and data not in DATA:
        raise bad_request(f"{DATA_SETTING} must be one of {', '.join(DATA)}", "Project.setting")
    if days is not None and not (isinstance(days, int) and 1 <= days <= MAX_DAYS):
        raise bad_request(f"{DAYS_SETTING} must be a valueInteger from 1 to {MAX_DAYS}", "Project.setting")


def _setting(project: Mapping[str, Any], name: str) -> Any:
    for setting in project.get("setting") or ():
        if setting.get("name") == name:
            return next((value for key, value in setting.items() if key.startswith("value")), None)
    return None


def _data(project: Mapping[str, Any] | None) -> str:
    if project is None:
        return "none"
    data = _setting(project, DATA_SETTING)
    return data if data in DATA else DATA[0]


# --- reading ---------------------------------------------------------------------------------------------------------


def runs(
    repository: Repository,
    bot_id: str,
    *,
    count: int = 20,
    before: str | None = None,
    after: str | None = None,
    kind: str | None = None,
    trigger: str | None = None,
    trace_id: str | None = None,
) -> list[Run]:
    """Return runs of a Bot, newest first.

    Args:
        repository: of the caller, who must be allowed to change the Bot: its log and input may hold anything it could see.
        before, after: id of a run.
        kind: of failure; ``any`` for all failures, ``none`` for runs that went well.
        trigger, trace_id: of the run.

    Raises FhirError: as for changing the Bot, 400 for an id that is none.
    """
    repository.check_update("Bot", bot_id)
    conditions = [_SELECT]
    values: Json = {
        "project": repository.identity.project,
        "bot_id": bot_id,
        "count": max(1, min(count, MAX_COUNT)),
    }
    if before:
        conditions.append("id < %(before)s")
        values["before"] = _uuid(before)
    if after:
        conditions.append("id > %(after)s")
        values["after"] = _uuid(after)
    if kind == "none":
        conditions.append("kind IS NULL")
    elif kind == "any":
        conditions.append("kind IS NOT NULL")
    elif kind:
        conditions.append("kind = %(kind)s")
        values["kind"] = kind
    for name, value in (("trigger", trigger), ("trace_id", trace_id)):
        if value:
            conditions.append(f"{name} = %({name})s")
            values[name] = value
    # A page behind a known run goes on from there; all others begin at the newest.
    order = "ASC" if after else "DESC"
    with connection() as session:
        statement = f"{' AND '.join(conditions)} ORDER BY id {order} LIMIT %(count)s"
        rows = [Run(*row) for row in session.execute(statement, values)]
    return rows[::-1] if after else rows


def run_of(repository: Repository, bot_id: str, run_id: str) -> Run:
    """Return one run; raises FhirError: as :func:`runs`, 404 for an unknown one."""
    repository.check_update("Bot", bot_id)
    values = {"project": repository.identity.project, "bot_id": bot_id, "id": _uuid(run_id)}
    with connection() as session:
        row = session.execute(f"{_SELECT} AND id = %(id)s", values).fetchone()
    if row is None:
        raise not_found("There is no such run (any more)")
    return Run(*row)


def request_of(run: Run) -> ExecutionRequest | None:
    """The request of a run; None if it was not kept, or was encrypted with a key that is gone."""
    if run.request is None:
        return None
    try:
        encoded = _encryption().decrypt(bytes(run.request))
    except InvalidToken:
        return None
    return ExecutionRequest.decode(encoded if encoded.startswith(b"{") else zlib.decompress(encoded))


def replay_request(repository: Repository, bot_id: str, run_id: str) -> ExecutionRequest:
    """The request that repeats a run with the code deployed now.

    Where the Bot acts as its caller, or as whom its Cron names, it acts as who repeats the run: a replay gives nobody another
    one's rights. Where a schedule or a write made it act as itself, it does again.

    Raises FhirError: as :func:`run_of`, 400 when the input was not kept.
    """
    request = request_of(run_of(repository, bot_id, run_id))
    if request is None:
        raise bad_request("The input of this run was not kept")
    acts_as_itself = request.trigger in ("cron", "pre-commit") and request.caller is None
    return replace(
        request,
        received=datetime.now(UTC),
        caller=None if acts_as_itself else repository.identity.membership,
        depth=repository.depth,
        attempt=1,
        replay_of=run_id,
    )


def summary(run: Run) -> Json:
    """A run as the API shows it in lists."""
    found = {
        "id": str(run.id),
        "bot": f"Bot/{run.bot_id}",
        "started": run.started,
        "ended": run.ended,
        "trigger": run.trigger,
        "ok": run.kind is None,
        "failure": run.kind,
        "status": run.status,
        "durationMs": run.duration_ms,
        "deployment": run.deployment,
        "attempt": run.attempt,
        "traceId": run.trace_id,
        **orjson.loads(run.details),
    }
    return {name: value for name, value in found.items() if value is not None}


def full(run: Run) -> Json:
    """A run as the API shows it alone: with its log, and its input where that was kept."""
    found = summary(run) | {"log": lines(run)}
    request = request_of(run)
    if request is not None:
        found |= {"input": request.input, "inputKind": request.input_kind, "headers": request.headers or {}}
    return found


def lines(run: Run) -> list[Json]:
    """The log of a run, in order."""
    started = run.started
    return [
        {"time": started + timedelta(milliseconds=offset), "level": level, "text": text}
        for level, offset, text in orjson.loads(run.log or "[]")
    ]


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise bad_request("Not the id of a run") from None


# --- forgetting ------------------------------------------------------------------------------------------------------

_next_cleaning = 0.0

_BOTS: Final = """
WITH RECURSIVE bot(project, bot_id) AS (
    (SELECT project, bot_id FROM bots_run ORDER BY project, bot_id LIMIT 1)
    UNION ALL
    SELECT next.project, next.bot_id FROM bot, LATERAL (
        SELECT project, bot_id FROM bots_run WHERE (project, bot_id) > (bot.project, bot.bot_id)
        ORDER BY project, bot_id LIMIT 1) AS next
)
SELECT project, bot_id FROM bot
"""


def forget_old_sometimes() -> None:
    """:func:`forget_old` now and then: the sweep calls this every few seconds."""
    global _next_cleaning
    if time.monotonic() >= _next_cleaning:
        _next_cleaning = time.monotonic() + CLEANING
        forget_old()


def forget_old() -> None:
    """Drop the runs that are older than their Project keeps them."""
    with connection() as session:
        bots: Sequence[tuple[str, str]] = session.execute(_BOTS).fetchall()
    days: dict[str, int] = {}
    for project, bot_id in bots:
        if project not in days:
            days[project] = _days(project)
        oldest = datetime.now(UTC) - timedelta(days=days[project])
        # ids begin with the time
        limit = UUID(int=int(oldest.timestamp() * 1000) << 80)
        with transaction() as session:
            session.execute(
                "DELETE FROM bots_run WHERE project = %s AND bot_id = %s AND id < %s",
                (project, bot_id, limit),
            )


def _days(project: str) -> int:
    try:
        resource = Repository(system_identity(project)).read("Project", project).resource
    except FhirError as error:
        if error.status >= 500:
            raise
        return DEFAULT_DAYS
    days = _setting(resource, DAYS_SETTING)
    return days if isinstance(days, int) else DEFAULT_DAYS
