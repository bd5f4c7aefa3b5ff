"""Bots as people handle them: create, save code, execute."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import orjson
from django.conf import settings

from bots import calls, execution, idempotency, inputs, runqueue, runs, tasks
from bots.context import MAX_TIMEOUT, context_for
from bots.deployment import PYTHON_TYPE, bot_deploy
from bots.request import ExecutionRequest, ExecutionResult
from bots.results import refusal, unrepeated
from bots.turns import admission
from fhirstore.api import FhirError, Repository, Stored, bad_request, forbidden, membership_create

EVENT_STREAM: Final = "text/event-stream"

DEFAULT_RUNTIME: Final = "vmcontext"

_TYPESCRIPT: Final = """\
import { BotEvent, MedplumClient } from '@medplum/core';

export async function handler(medplum: MedplumClient, event: BotEvent): Promise<any> {
  // Your code here
}
"""
_JAVASCRIPT: Final = """\
export async function handler(medplum, event) {
  // Your code here
}
"""
_PYTHON: Final = """\
from fhirbots import BotEvent, MedplumClient


async def handler(medplum: MedplumClient, event: BotEvent):
    # Your code here
    return None
"""
DEFAULT_SOURCE: Final = {
    "typescript": ("index.ts", _TYPESCRIPT),
    "javascript": ("index.js", _JAVASCRIPT),
    "python": ("index.py", _PYTHON),
}
"""File name and text of a new Bot's code, by language."""
_CONTENT_TYPES: Final = {
    ".ts": "text/typescript",
    ".mts": "text/typescript",
    ".cts": "text/typescript",
    ".py": PYTHON_TYPE,
}


def bot_create(
    repository: Repository,
    *,
    name: str,
    description: str | None = None,
    access_policy: str | None = None,
    language: Literal["typescript", "javascript", "python"] = "typescript",
    runtime_version: str | None = None,
    source_code: dict[str, Any] | None = None,
    executable_code: dict[str, Any] | None = None,
) -> Stored:
    """Create a Bot with its ProjectMembership, in one transaction; returns the Bot.

    Args:
        repository: of a project admin.
        access_policy: reference of an AccessPolicy of the project; None gives the Bot full access inside it.
        language: of the empty handler that is saved unless `source_code` is given.
        source_code, executable_code: Attachments; an executable one is deployed at once.

    Raises FhirError: 403 for others than admins, 400 for a missing name or a policy that is not of the project.
    """
    if not repository.identity.is_admin:
        raise forbidden()
    if not name.strip():
        raise bad_request("Bot name is required", "name")
    if access_policy is not None:
        _check_policy(repository, access_policy)
    with repository.transaction():
        bot = {
            "resourceType": "Bot",
            "name": name.strip(),
            "description": description or None,
            "runtimeVersion": runtime_version or DEFAULT_RUNTIME,
            "sourceCode": source_code or _store_source(repository, *DEFAULT_SOURCE[language]),
            "executableCode": executable_code,
        }
        stored = repository.create({key: value for key, value in bot.items() if value is not None})
        reference = {"reference": f"Bot/{stored.id}", "display": name.strip()}
        policy = {"reference": access_policy} if access_policy is not None else None
        membership_create(repository, user=reference, profile=reference, accessPolicy=policy)
    if executable_code is not None:
        bot_deploy(repository, bot_id=stored.id)
    return stored


def bot_save_code(
    repository: Repository, *, bot_id: str, source: str, filename: str, if_match: str | None = None
) -> Stored:
    """Save code without deploying it: a new Binary, and ``Bot.sourceCode`` pointing to it; returns the Bot.

    Args:
        if_match: version of the Bot the caller has seen.

    Raises FhirError: 412 when somebody has changed the Bot since, and what the Repository raises.
    """
    with repository.transaction():
        attachment = _store_source(repository, filename, source, security_context=f"Bot/{bot_id}")
        operations = [{"op": "add", "path": "/sourceCode", "value": attachment}]
        return repository.patch("Bot", bot_id, operations, if_match=if_match)


def bot_execute(
    repository: Repository,
    bot_id: str,
    *,
    content_type: str | None,
    body: bytes = b"",
    method: str = "POST",
    query: str = "",
    headers: Mapping[str, str] | None = None,
) -> ExecutionResult:
    """Run a Bot for a caller and wait for the result.

    A worker does it; in a run of another Bot it happens right here. What goes wrong is part of the result.

    Args:
        repository: of the caller.
        bot_id: of the Bot.
        content_type, body, method, query, headers: of the HTTP request that asks for it.

    Raises FhirError: 404, 410 or 403 when the caller may not read the Bot, 400 when the body is not what its type says.
    """
    return bot_run(
        bot_request(
            repository,
            bot_id,
            content_type=content_type,
            body=body,
            method=method,
            query=query,
            headers=headers,
        )
    )


def bot_run(request: ExecutionRequest) -> ExecutionResult:
    """Run a Bot and wait for the result, which says what went wrong if something did.

    Raises FhirError: 429 while too many Bots of the project run; this one has not then.
    """
    try:
        return _run(request)
    except calls.NoAnswerError as error:
        return _no_answer(error)


def bot_replay(repository: Repository, bot_id: str, run_id: str) -> ExecutionResult:
    """Repeat a run with the code deployed now, and wait for the result.

    Raises FhirError: when the caller may not update the Bot, 404 for an unknown run, 400 when its input was not kept.
    """
    asked = runs.replay_request(repository, bot_id, run_id)
    return bot_run(replace(asked, trace_id=repository.trace_id or asked.trace_id))


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """An answer the Bot sends while it runs: status, headers and the body in chunks. Closing the chunks stops the Bot."""

    status: int
    headers: dict[str, str]
    chunks: Iterator[bytes]


def bot_stream(request: ExecutionRequest) -> StreamedAnswer | ExecutionResult:
    """Run a Bot whose answer may come in parts; returns when it begins to answer, or has ended without.

    Raises FhirError as :func:`bot_run`.
    """
    chunks = _stream(replace(request, streaming=True))
    first = next(chunks)
    if isinstance(first, ExecutionResult):
        chunks.close()
        return first
    assert first is not None  # silences are told from the start on
    status, headers = orjson.loads(first)
    is_events = headers.setdefault("content-type", EVENT_STREAM).startswith(EVENT_STREAM)
    return StreamedAnswer(status, unrepeated(status, headers), _chunks(chunks, is_events))


def _chunks(parts: Generator[bytes | ExecutionResult | None], is_events: bool) -> Iterator[bytes]:
    """The chunks of a body; of events with a comment in long silences, which shows whether anybody still listens."""
    between_events = True
    try:
        for part in parts:
            if part is None:
                if is_events and between_events:
                    yield b": still running\n\n"
            elif isinstance(part, bytes) and part:
                yield part
                between_events = part.endswith((b"\n\n", b"\r\n\r\n"))
    finally:
        parts.close()


def _stream(request: ExecutionRequest) -> Generator[bytes | ExecutionResult | None]:
    """What the start of a streamed answer says, then its chunks, None in silences; or just the result, without a start."""
    call_id, is_open, has_started = uuid.uuid4().hex, True, False
    with admission.of(request.project):
        parts = calls.ask_in_parts(
            tasks.execute_bot,
            request.encode(),
            what="The Bot was not run",
            project=request.project,
            call_id=call_id,
        )
        try:
            for part in parts:
                if isinstance(part, bytes):
                    is_open = False
                    if not has_started:
                        yield ExecutionResult.decode(part)
                    return
                if part is None:
                    if has_started:
                        yield None
                    continue
                kind, body = part
                if kind == "e":  # what the Bot does from here on is its own affair
                    is_open = False
                    return
                has_started = True
                yield body
        except calls.NoAnswerError as error:
            is_open = False
            if not has_started:
                yield _no_answer(error)
        finally:
            parts.close()
            if is_open:
                execution.stop_run(call_id)


def bot_run_once(request: ExecutionRequest, key: str, fingerprint: bytes) -> tuple[ExecutionResult, bool]:
    """The same for a request with an ``Idempotency-Key``; returns also whether the answer was given before.

    Args:
        key, fingerprint: as for :func:`bots.idempotency.run_once`.

    Raises FhirError: 400 or 422 for a key that cannot be used.
    """

    def run(number: int) -> bytes:
        return _run(replace(request, answer_number=number)).encode()

    try:
        answer, is_old = idempotency.run_once(key, request, fingerprint, MAX_TIMEOUT, run)
    except calls.NoAnswerError as error:
        return _no_answer(error), False
    return ExecutionResult.decode(answer), is_old


def bot_enqueue(
    repository: Repository, request: ExecutionRequest, request_url: str, key: str | None, fingerprint: bytes
) -> str:
    """Have a Bot run in the background; returns the id of the AsyncJob, for the same `key` the same one.

    Raises FhirError: 400 or 422 for a key that cannot be used.
    """
    if key is None:
        return runqueue.enqueue(repository, request, request_url)

    def run(number: int) -> bytes:
        with repository.transaction():
            job_id = runqueue.enqueue(repository, request, request_url).encode()
            idempotency.store(number, job_id)
        return job_id

    return idempotency.run_once(key, request, fingerprint, 0, run)[0].decode()


def _run(request: ExecutionRequest) -> ExecutionResult:
    """Run a Bot here, inside the run of another one, else in a worker; raises NoAnswerError."""
    if execution.is_inside_run():
        return execution.execute(request)
    with admission.of(request.project):
        return ExecutionResult.decode(
            calls.ask(
                tasks.execute_bot, request.encode(), what="The Bot was not run", project=request.project
            )
        )


def _no_answer(error: calls.NoAnswerError) -> ExecutionResult:
    answer = refusal(str(error))
    return ExecutionResult(
        False, answer.status, answer.content_type, answer.body, log_text=str(error), failure="refused"
    )


def bot_request(
    repository: Repository,
    bot_id: str,
    *,
    content_type: str | None,
    body: bytes = b"",
    method: str = "POST",
    query: str = "",
    headers: Mapping[str, str] | None = None,
    value_only: bool = False,
) -> ExecutionRequest:
    """Make the run that a caller asks for; arguments and errors as for :func:`bot_execute`.

    Args:
        value_only: as in ExecutionRequest.
    """
    context = context_for(repository, bot_id)
    identity = repository.identity
    raw_body = context.bot.get("rawBody") is True
    kind, value = inputs.parse_input(
        method=method, content_type=content_type, body=body, query=query, raw_body=raw_body
    )
    requester = {"reference": identity.profile}
    if identity.profile_display:
        requester["display"] = identity.profile_display
    return ExecutionRequest(
        project=identity.project,
        bot_id=context.bot["id"],
        trigger="execute",
        received=datetime.now(UTC),
        trace_id=repository.trace_id or str(uuid.uuid4()),
        input=value,
        input_kind=kind,
        content_type=content_type if method != "GET" else None,
        headers=None if headers is None else _headers(headers),
        requester=requester,
        caller=identity.membership,
        depth=repository.depth,
        fresh=context.state,
        value_only=value_only,
    )


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The request's headers for the event, all of them; of its cookies those that are not this site's own."""
    passed = dict(headers)
    if cookies := passed.pop("cookie", None):
        # the session of the console is no Bot's business
        own = {settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME}
        kept = [pair.strip() for pair in cookies.split(";") if pair.partition("=")[0].strip() not in own]
        if any(kept):
            passed["cookie"] = "; ".join(pair for pair in kept if pair)
    return passed


def _store_source(
    repository: Repository, filename: str, source: str, *, security_context: str | None = None
) -> dict[str, Any]:
    """Store code as a Binary; returns the Attachment that points to it."""
    suffix = PurePosixPath(filename).suffix.lower()
    content_type = _CONTENT_TYPES.get(suffix, "text/javascript")
    binary = repository.store_binary(
        source.encode(), content_type, filename=filename, security_context=security_context
    )
    return {"contentType": content_type, "url": f"Binary/{binary.id}", "title": filename}


def _check_policy(repository: Repository, reference: str) -> None:
    try:
        if not reference.startswith("AccessPolicy/"):
            raise bad_request("not an AccessPolicy")
        repository.read_reference(reference)
    except FhirError:
        raise bad_request("The access policy is not one of this project", "accessPolicy") from None
