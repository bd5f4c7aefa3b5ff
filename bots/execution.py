"""One run of a Bot, of any kind: who it acts as, the sandbox, the answer, the AuditEvent.

Runs in a worker process, which owns one pool of sandboxes. A Bot that executes another Bot runs it here as well, in the same
thread: a second message through the broker could wait for the very thread that waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import orjson
from django.conf import settings

from bots import audit, idempotency, results, runs
from bots.calls import Parts, Reply
from bots.context import Context, RefusedError, context_of, run_as
from bots.egress import Outlet, policy_of
from bots.request import ExecutionRequest, ExecutionResult
from bots.runs import MAX_WRITES, Run, Trail
from bots.sandbox.api import (
    HostRequest,
    HostResponse,
    HostStream,
    Invocation,
    OnPart,
    Program,
    Result,
    SandboxPool,
    Stop,
    StreamPart,
    deno_path,
)
from fhirstore.api import (
    FhirError,
    Identity,
    Repository,
    Stored,
    handle_site_request,
    listen,
    new_id,
    notify,
    outcome_text,
    presign_urls,
    reviewing,
    system_identity,
    transaction,
)

MAX_DEPTH: Final = 16
"""Runs that may cause each other, by Subscriptions or by executing each other: the next one is refused."""

MAX_NESTING: Final = 4
"""Bots that may wait for each other inside one thread; each of them keeps a sandbox process busy."""

LOGIN: Final = "oauth2/token"
"""Where clients log in."""

NO_LOGIN: Final = {
    "error": "unauthorized_client",
    "error_description": "A Bot does not log in to its own server: the medplum it is given acts as the Bot, or as its caller (runAsUser). "
    "To let it log in as another client, a project admin adds this server to the Bot's allowed hosts (docs/network.md)",
}
"""Answer to a Bot that tries (https://datatracker.ietf.org/doc/html/rfc6749#section-5.2)."""

Conclude = Callable[[ExecutionResult], None]

_log = logging.getLogger(__name__)
_audit_log = logging.getLogger("bots.audit")
_nesting: ContextVar[int] = ContextVar("nesting", default=0)

STOPS: Final = "bots_stop"
"""Channel of requests to end a run; the payload is its name."""

_stops: dict[str, Stop] = {}
"""The runs of this process that can be ended, by name."""
_stop: ContextVar[Stop | None] = ContextVar("stop", default=None)


def is_inside_run() -> bool:
    """True while this thread runs a Bot: what the Bot asks for is answered here."""
    return _nesting.get() > 0


def execute(request: ExecutionRequest, conclude: Conclude | None = None) -> ExecutionResult:
    """Run a Bot and write its AuditEvent.

    Args:
        request: what to run.
        conclude: called with the result inside the transaction that stores the AuditEvent, so that both happen or neither.

    Returns the result; what goes wrong inside or around the Bot is part of it. Raises only what the database raises.
    """
    return _conclude(request, *_attempt(request), conclude)


def refuse(request: ExecutionRequest, text: str, conclude: Conclude) -> ExecutionResult:
    """Write the AuditEvent of a run that cannot even be tried; otherwise as :func:`execute`."""
    context: Context | None = None
    with contextlib.suppress(RefusedError):
        context = context_of(request)
    return _conclude(request, *_recorded(request, _refused(text), context, None, Trail()), conclude)


def execute_call(body: bytes, reply: Reply) -> None:
    """Run a Bot for a process that waits: :func:`execute` on encoded values.

    The reply goes out with the commit of the AuditEvent, in the same statement if it is short enough.
    """
    request = ExecutionRequest.decode(body)
    if request.streaming and request.replay_of is not None:
        result, event, run = _attempt(
            request, lambda _part, _is_over: None
        )  # nobody takes the parts of a replay
    elif request.streaming:
        with Parts(reply) as parts, stoppable(reply.call_id):
            result, event, run = _attempt(request, partial(_send_part, parts))
    else:
        result, event, run = _attempt(request)
    encoded = result.encode()
    notice = reply.notice(encoded)
    if event is not None and notice is not None and request.answer_number is None:
        _store(request, event, run, notice)
        return
    with transaction():
        _store(request, event, run)
        if request.answer_number is not None:
            idempotency.store(request.answer_number, encoded)
        reply.send(encoded)


def _send_part(parts: Parts, part: StreamPart, is_over: Callable[[], bool]) -> None:
    body = part.body
    if part.kind == "start":
        body = orjson.dumps([part.status, results.allowed_headers(part.headers)])
    parts.send(part.kind[0], body, is_over)


def _attempt(request: ExecutionRequest, on_part: OnPart | None = None) -> Recorded:
    context: Context | None = None
    identity: Identity | None = None
    trail = Trail()
    try:
        context = context_of(request)
        identity = run_as(request, context)
        result = _run(request, context, identity, trail, on_part)
    except RefusedError as refusal:
        result = _refused(str(refusal), refusal.kind)
    return _recorded(request, result, context, identity, trail)


def _refused(text: str, kind: str | None = None) -> ExecutionResult:
    answer = results.refusal(text)
    return ExecutionResult(
        False, answer.status, answer.content_type, answer.body, log_text=text, failure="refused", kind=kind
    )


def _conclude(
    request: ExecutionRequest,
    result: ExecutionResult,
    event: dict[str, Any] | None,
    run: Run,
    conclude: Conclude | None,
) -> ExecutionResult:
    with transaction():
        _store(request, event, run)
        if request.answer_number is not None:
            idempotency.store(request.answer_number, result.encode())
        if conclude:
            conclude(result)
    return result


# --- the run itself --------------------------------------------------------------------------------------------------


def _run(
    request: ExecutionRequest,
    context: Context,
    identity: Identity,
    trail: Trail,
    on_part: OnPart | None,
) -> ExecutionResult:
    program = _program(request, context, identity)
    repository = Repository(identity, trace_id=request.trace_id, depth=request.depth + 1)
    repository.on_write = partial(_note_write, trail)
    invocation = Invocation(
        program=program,
        event=_event(request, context),
        input_kind=request.input_kind,
        base_url=settings.BASE_URL,
        timeout=context.timeout,
        memory_mb=context.memory_mb,
        profile=_profile(identity, context),
        client_headers=_client_headers(request, context),
        on_part=on_part if context.bot.get("streamingEnabled") is True else None,
        environment=context.environment(),
    )
    outlet = Outlet(policy_of(context.project, context.bot), context.timeout)
    try:
        with _nested(), _asked_about(request):
            run = pool().run(invocation, lambda asked: _respond(asked, repository, outlet), _stop.get())
    finally:
        exchanges = outlet.close()
    trail.memory_bytes, trail.is_warm = run.peak_memory_bytes, run.warm
    masker = context.masker()
    run = masker.result(results.bounded(run), is_kept=request.job_id is not None)
    text = masker.text(log_text(run))
    answer = _answer(request, run, text, repository)
    return ExecutionResult(
        ok=results.failure_of(run) is None,
        status=answer.status,
        content_type=answer.content_type,
        body=answer.body,
        headers=answer.headers,
        log=run.log,
        log_text=text,
        failure=results.failure_of(run),
        kind="access" if results.is_forbidden(run) else None,
        duration_ms=run.duration_ms,
        deployment_number=context.code.number if context.code else None,
        exchanges=exchanges,
        output=results.job_output(run, answer) if request.job_id else None,
    )


def _asked_about(request: ExecutionRequest) -> contextlib.AbstractContextManager[None]:
    """A Bot that is asked before a write must not write the same resource: it would wait for who waits for it."""
    if request.trigger == "pre-commit" and request.resource is not None:
        return reviewing(request.project, request.resource)
    return contextlib.nullcontext()


def _note_write(trail: Trail, stored: Stored) -> None:
    if len(trail.writes) < MAX_WRITES:
        reference = f"{stored.type}/{stored.id}"
        trail.writes.append(
            {"interaction": stored.interaction, "reference": reference, "versionId": stored.version_id}
        )


def _program(request: ExecutionRequest, context: Context, identity: Identity) -> Program:
    """Check that the Bot may run at all; raises RefusedError."""
    if not context.is_enabled:
        raise RefusedError("Bots not enabled", "not-enabled")
    if request.depth >= MAX_DEPTH:
        raise RefusedError(
            f"Stopped: this would be run {request.depth + 1} in a chain of Bots that set each other off. Most often a Bot "
            "changes the resource its own Subscription listens to: let it write only when something differs.",
            "loop",
        )
    if _nesting.get() >= MAX_NESTING:
        raise RefusedError(f"Stopped: Bots may execute each other {MAX_NESTING} levels deep", "loop")
    if context.bot.get("streamingEnabled") is True and request.trigger == "execute" and not request.streaming:
        raise RefusedError("Streaming bot requires Accept: text/event-stream header")
    code = context.code
    if code is None:
        raise RefusedError("No executable code: the Bot has not been deployed", "not-deployed")
    return Program(
        key=(request.project, request.bot_id, str(code.number), identity.membership or identity.profile),
        code=code.code,
        filename=code.filename,
        language=code.language,
        module=code.module,
        native=code.language == "python" and context.is_native,
        wheels=code.wheels,
    )


def _event(request: ExecutionRequest, context: Context) -> dict[str, Any]:
    """The handler's second argument (shared/medplum/execute.md §4)."""
    event: dict[str, Any] = {
        "bot": audit.bot_reference(context.bot),
        "input": request.input,
        "secrets": context.secrets(),
        "traceId": request.trace_id,
    }
    optional = {
        "contentType": request.content_type,
        "requester": request.requester,
        "headers": request.headers,
        "previous": request.previous,
    }
    return event | {name: value for name, value in optional.items() if value is not None}


def _client_headers(request: ExecutionRequest, context: Context) -> dict[str, str]:
    """What the Bot's client sends with every request to this server: a Bot that runs as its user speaks with the user's cookies."""
    cookie = (request.headers or {}).get("cookie")
    return {"Cookie": cookie} if cookie and context.bot.get("runAsUser") is True else {}


def _profile(identity: Identity, context: Context) -> dict[str, Any]:
    """What the client's ``getProfile()`` returns; the whole resource where it is at hand."""
    resource_type, _, resource_id = identity.profile.partition("/")
    if identity.profile == f"Bot/{context.bot['id']}":
        return {name: value for name, value in context.bot.items() if name != "code"}
    return {"resourceType": resource_type, "id": resource_id}


def _respond(asked: HostRequest, repository: Repository, outlet: Outlet) -> HostResponse | HostStream:
    """Answer what the Bot asks of this server or of another. The identity comes from the run, never from the request."""
    if not asked.url.startswith(settings.BASE_URL):
        return outlet.fetch(asked)
    is_login = asked.url.removeprefix(settings.BASE_URL).partition("?")[0] == LOGIN
    if (is_login or "authorization" in asked.headers) and outlet.names(asked.url):
        return outlet.fetch(asked)  # as somebody else, who has to show it like anybody from outside
    if is_login:
        return HostResponse(400, {"content-type": "application/json"}, orjson.dumps(NO_LOGIN))
    answer = handle_site_request(asked.method, asked.url, asked.headers, asked.body, repository)
    return HostResponse(answer.status, answer.headers, answer.body)


def _answer(request: ExecutionRequest, run: Result, text: str, repository: Repository) -> results.Answer:
    """Map the run to its HTTP answer; a Binary is read as the Bot may read it."""

    def binary(id: str) -> tuple[str, bytes]:
        stored, content = repository.open_binary(id)
        with content:
            return stored.resource.get("contentType", "application/octet-stream"), content.read()

    try:
        if request.value_only and run.ok and results.returned_outcome(run) is None:
            return results.value_as_json(run, presign=lambda content: presign_urls(content, repository))
        return results.answer_to(
            run,
            content_type=request.content_type,
            log_text=text,
            binary=binary,
            presign=lambda content: presign_urls(content, repository),
        )
    except FhirError as error:
        return results.outcome_answer(error.outcome)


def log_text(run: Result) -> str:
    """The console as text, one line per call, and what ended the run if it did not end well."""
    lines = [line.text for line in run.log]
    if run.failure == "code":
        lines.append(f"Unhandled error: {run.error}" + (f"\n{run.stack}" if run.stack else ""))
    elif run.error:
        lines.append(run.error)
    elif (run.response_status or 200) >= 400:
        lines.append(f"The Bot answered with status {run.response_status}")
    elif results.failure_of(run) == "outcome":
        lines.append(outcome_text(results.returned_outcome(run) or {}))
    return "\n".join(lines)


# --- ending a run from outside ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def stoppable(name: str) -> Iterator[Stop]:
    """Whatever this thread runs inside the block, and what that runs, ends when :func:`stop_run` is called with the name."""
    stop = _stops[name] = Stop()
    token = _stop.set(stop)
    try:
        yield stop
    finally:
        _stop.reset(token)
        del _stops[name]


def stop_run(name: str) -> None:
    """End a run wherever it is, with the commit of the current transaction, at once outside of one."""
    notify(STOPS, name)


def listen_for_stops() -> None:
    """Let the runs of this process be ended from now on; every worker calls it once."""
    listen(STOPS, _request_stop)


def _request_stop(name: str) -> None:
    stop = _stops.get(name)
    if stop is not None:
        stop.request()


@contextlib.contextmanager
def _nested() -> Iterator[None]:
    token = _nesting.set(_nesting.get() + 1)
    try:
        yield
    finally:
        _nesting.reset(token)


# --- the AuditEvent --------------------------------------------------------------------------------------------------

Recorded = tuple[ExecutionResult, dict[str, Any] | None, Run]
"""A result, and the AuditEvent and the row of the archive to store with it."""


def _recorded(
    request: ExecutionRequest,
    result: ExecutionResult,
    context: Context | None,
    identity: Identity | None,
    trail: Trail,
) -> Recorded:
    """Build the row, and the AuditEvent if the Bot's settings ask for one; the two have the same id."""
    id_ = new_id()
    event = _event_of(request, result, context, identity, id_)
    if event is not None:
        result = replace(result, audit_event_id=id_)
    run = runs.make_run(
        id_,
        request,
        result,
        trail,
        project=context.project if context else None,
        run_as=identity.profile if identity else None,
    )
    return result, event, run


def _event_of(
    request: ExecutionRequest,
    result: ExecutionResult,
    context: Context | None,
    identity: Identity | None,
    id_: str,
) -> dict[str, Any] | None:
    bot = context.bot if context else {"resourceType": "Bot", "id": request.bot_id}
    conclusion = audit.Conclusion(
        datetime.now(UTC),
        result.failure,
        result.log_text,
        result.duration_ms,
        result.deployment_number,
        result.exchanges,
    )
    if not audit.is_wanted(bot, conclusion):
        return None
    event = audit.audit_event(request, conclusion, bot=bot, run_as=_reference(identity))
    where = audit.destinations(bot)
    if "log" in where and _audit_log.isEnabledFor(logging.INFO):
        _audit_log.info("%s", orjson.dumps(audit.log_line(event, id_, request, result)).decode())
    if "resource" not in where:
        return None
    event["id"] = id_
    return event


def _store(
    request: ExecutionRequest, event: dict[str, Any] | None, run: Run, notice: tuple[str, str] | None = None
) -> None:
    """Store the row and the AuditEvent, and send the notice, in one statement."""
    if event is None:
        runs.store(run)
        return
    expression, parameters = runs.STORE, runs.parameters(run)
    if notice is not None:
        expression += ", pg_notify(%(channel)s, %(payload)s)"
        parameters["channel"], parameters["payload"] = notice
    system = Repository(
        system_identity(request.project),
        trace_id=request.trace_id,
        depth=request.depth,
        is_watched=audit.is_alarming(event, request.trace_id),
    )
    system.create(event, id=event["id"], effect=(expression, parameters))


def _reference(identity: Identity | None) -> dict[str, Any] | None:
    if identity is None:
        return None
    reference = {"reference": identity.profile}
    return reference | ({"display": identity.profile_display} if identity.profile_display else {})


# --- the sandboxes of this process -----------------------------------------------------------------------------------

_pool: SandboxPool | None = None
_pool_lock = threading.Lock()


def pool() -> SandboxPool:
    """The pool of this process, started at first use; Celery's start-up calls this before the first task comes."""
    global _pool
    with _pool_lock:
        if _pool is None:
            assets = settings.ASSETS_DIR
            _pool = SandboxPool(deno=deno_path(), runtime=assets / "runtime", python=assets / "python")
        return _pool


def close_pool() -> None:
    """Stop the sandboxes of this process."""
    global _pool
    with _pool_lock:
        if _pool is not None:
            _pool.close()
            _pool = None
