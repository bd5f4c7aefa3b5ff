"""The operations of Bots in the FHIR API: ``$execute``, ``$deploy`` and ``$init``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson

from bots import idempotency, runs
from bots.bot import (
    EVENT_STREAM,
    StreamedAnswer,
    bot_create,
    bot_enqueue,
    bot_replay,
    bot_request,
    bot_run,
    bot_run_once,
    bot_stream,
)
from bots.deployment import (
    Via,
    bot_deploy,
    deployment_diff,
    deployment_roll_back,
    deployment_warnings,
    deployments,
)
from bots.models import Deployment
from bots.request import ExecutionResult
from bots.results import FHIR_JSON, unrepeated
from fhirstore.api import (
    FhirResponse,
    OperationRequest,
    Outcome,
    Repository,
    Stored,
    all_ok,
    bad_request,
    not_found,
    parse_json,
    register_operation,
    request_url,
    respond_accepted,
    respond_resource,
    wants_async,
)

_COMMANDS = ("medplum-cli", "fhirbots-cli")
"""Words in the User-Agent of commands that deploy."""


def register() -> None:
    """Register the operations; called once at start-up."""
    register_operation(
        "$execute", execute, types={"Bot"}, type=True, instance=True, extra_path=True, atomic=False
    )
    register_operation("$deploy", deploy, types={"Bot"}, instance=True, methods=("POST",), atomic=False)
    register_operation("$rollback", roll_back, types={"Bot"}, instance=True, methods=("POST",))
    register_operation(
        "$deployments", show_deployments, types={"Bot"}, instance=True, methods=("GET",), extra_path=True
    )
    register_operation("$runs", show_runs, types={"Bot"}, instance=True, methods=("GET",), extra_path=True)
    register_operation("$logs", show_logs, types={"Bot"}, instance=True, methods=("GET",))
    register_operation("$replay", replay, types={"Bot"}, instance=True, methods=("POST",), atomic=False)
    register_operation("$init", init, types={"Bot"}, type=True, methods=("POST",))


def execute(request: OperationRequest) -> FhirResponse:
    """``Bot/{id}/$execute`` and ``Bot/$execute?identifier=``, GET and POST (shared/medplum/execute.md §1-7)."""
    asked = bot_request(
        request.repository,
        _bot_id(request),
        content_type=request.headers.get("content-type"),
        body=request.body,
        method=request.method,
        query=request.query,
        headers=request.headers,
    )
    key = request.headers.get(idempotency.HEADER) if request.method == "POST" else None
    if wants_async(request):
        url = request_url(request)
        job_id = bot_enqueue(request.repository, asked, url, key, _fingerprint(request, "async"))
        return respond_accepted(request, f"job/{job_id}/status")
    if request.streams and EVENT_STREAM in request.headers.get("accept", ""):
        answer = bot_stream(asked)
        if isinstance(answer, StreamedAnswer):
            return FhirResponse(answer.status, headers=answer.headers, stream=answer.chunks)
        result, is_old = answer, False
    elif key is None:
        result, is_old = bot_run(asked), False
    else:
        result, is_old = bot_run_once(asked, key, _fingerprint(request))
    headers = {"content-type": result.content_type, **unrepeated(result.status, result.headers)}
    if is_old:
        headers[idempotency.REPLAYED] = "true"
    return FhirResponse(result.status, _body(request, result), headers)


def _fingerprint(request: OperationRequest, kind: str = "") -> bytes:
    content_type = request.headers.get("content-type")
    return idempotency.fingerprint_of(
        kind or request.method, request.path, content_type, request.query, request.body
    )


def show_runs(request: OperationRequest) -> FhirResponse:
    """``Bot/{id}/$runs`` and ``Bot/{id}/$runs/{run}``: the archive of runs (docs/running-bots.md)."""
    bot_id = request.id or ""
    if request.extra_path:
        return _json(runs.full(runs.run_of(request.repository, bot_id, request.extra_path)))
    asked = dict(parse_qsl(request.query))
    count = _count(asked, 20)
    found = runs.runs(
        request.repository,
        bot_id,
        count=count,
        before=asked.get("before"),
        after=asked.get("after"),
        kind=asked.get("failure"),
        trigger=asked.get("trigger"),
        trace_id=asked.get("trace"),
    )
    answer: dict[str, Any] = {"runs": [runs.summary(run) for run in found]}
    if len(found) == count:
        asked.pop("after", None)
        query = urlencode(asked | {"before": str(found[-1].id)})
        answer["next"] = f"{request.root}Bot/{bot_id}/$runs?{query}"
    return _json(answer)


def show_logs(request: OperationRequest) -> FhirResponse:
    """``Bot/{id}/$logs``: the lines of the newest runs, or of those after a known one, oldest first."""
    asked = dict(parse_qsl(request.query))
    found = runs.runs(
        request.repository,
        request.id or "",
        count=_count(asked, 20),
        after=asked.get("after"),
        kind=asked.get("failure"),
        trigger=asked.get("trigger"),
        trace_id=asked.get("trace"),
    )
    lines = [line | {"run": str(run.id)} for run in reversed(found) for line in runs.lines(run)]
    return _json({"lines": lines, "last": str(found[0].id) if found else asked.get("after")})


def replay(request: OperationRequest) -> FhirResponse:
    """``Bot/{id}/$replay`` with ``{"run": id}``: repeat a run with the code deployed now."""
    run_id = _parameters(_object(request)).get("run")
    if not isinstance(run_id, str):
        raise bad_request("Must specify the run to repeat", "run")
    result = bot_replay(request.repository, request.id or "", run_id)
    return FhirResponse(
        result.status,
        _body(request, result),
        {"content-type": result.content_type, **unrepeated(result.status, result.headers)},
    )


def _count(asked: Mapping[str, str], default: int) -> int:
    text = asked.get("count", str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= runs.MAX_COUNT):
        raise bad_request(f"count must be a number from 1 to {runs.MAX_COUNT}")
    return int(text)


def _json(value: Any) -> FhirResponse:
    return FhirResponse(200, orjson.dumps(value), {"content-type": "application/json"})


def deploy(request: OperationRequest) -> Outcome:
    """``Bot/{id}/$deploy`` (shared/medplum/deploy-and-cli.md §3)."""
    bot_id = request.id or ""
    body = _object(request)
    code, filename, note = (_text(body, name) for name in ("code", "filename", "note"))
    bot_deploy(
        request.repository,
        bot_id=bot_id,
        code=code,
        filename=filename,
        note=note or "",
        via=_via(request),
    )
    return all_ok(*deployment_warnings(request.repository, bot_id))


def roll_back(request: OperationRequest) -> Outcome:
    """``Bot/{id}/$rollback`` with ``{"deployment": n}``: deploy the code of an earlier deployment again."""
    bot_id = request.id or ""
    body = _parameters(_object(request))
    number = body.get("deployment")
    if not isinstance(number, int) or isinstance(number, bool):
        raise bad_request("Must specify the number of the deployment to go back to", "deployment")
    deployment_roll_back(
        request.repository, bot_id=bot_id, number=number, note=_text(body, "note") or "", via=_via(request)
    )
    return all_ok(*deployment_warnings(request.repository, bot_id))


def show_deployments(request: OperationRequest) -> FhirResponse:
    """``Bot/{id}/$deployments``, newest first; ``/{n}`` one with its code, and with ``?compare={m}`` what differs from that."""
    found = deployments(request.repository, request.id or "")
    current = found[0].number if found else 0
    if not request.extra_path:
        return _json({"deployments": [_deployment(each, current) for each in found]})
    by_number = {str(each.number): each for each in found}
    other = dict(parse_qsl(request.query)).get("compare")
    for number in (request.extra_path, other):
        if number is not None and number not in by_number:
            raise not_found(f"The Bot has no deployment v{number}")
    one = by_number[request.extra_path]
    answer = _deployment(one, current) | {"source": one.source, "code": one.code}
    if other is not None:
        answer["diff"] = deployment_diff(by_number[other], one)
    return _json(answer)


def _deployment(deployment: Deployment, current: int) -> dict[str, Any]:
    return {
        "number": deployment.number,
        "isCurrent": deployment.number == current,
        "created": deployment.created,
        "author": {"reference": deployment.author, "display": deployment.author_display},
        "via": deployment.via,
        "note": deployment.note,
        "filename": deployment.source_filename,
        "language": deployment.language,
        "wheels": [wheel["filename"] for wheel in deployment.wheels],
        "binary": f"Binary/{deployment.binary_id}",
    }


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"{name} must be a string", name)
    return value


def _via(request: OperationRequest) -> Via:
    return "cli" if any(name in request.headers.get("user-agent", "") for name in _COMMANDS) else "api"


def init(request: OperationRequest) -> FhirResponse:
    """``Bot/$init``: create a Bot with its membership (shared/medplum/deploy-and-cli.md §2)."""
    stored = bot_init(request.repository, _parameters(_object(request)))
    return respond_resource(request, stored, 201)


def bot_init(repository: Repository, values: Mapping[str, Any]) -> Stored:
    """Create a Bot from the values of a request body; raises FhirError, also 400 for a value of the wrong shape."""
    for name in ("name", "description", "runtimeVersion"):
        if not isinstance(values.get(name, ""), str | None):
            raise bad_request(f"{name} must be a string", name)
    for name in ("accessPolicy", "sourceCode", "executableCode"):
        if not isinstance(values.get(name, {}), dict | None):
            raise bad_request(f"{name} must be an object", name)
    policy = values.get("accessPolicy")
    return bot_create(
        repository,
        name=values.get("name") or "",
        description=values.get("description"),
        access_policy=str(policy.get("reference") or "") if policy else None,
        runtime_version=values.get("runtimeVersion"),
        source_code=values.get("sourceCode"),
        executable_code=values.get("executableCode"),
    )


def _bot_id(request: OperationRequest) -> str:
    """The Bot a request names by its id or identifier."""
    if request.id is not None:
        return request.id
    identifier = dict(parse_qsl(request.query)).get("identifier")
    if not identifier:
        raise bad_request("Must specify bot ID or identifier.")
    # A token ends at the first comma or bar of a search value; an identifier may hold both.
    system, bar, value = identifier.partition("|")
    parts = [part.replace("\\", "\\\\").replace(",", "\\,").replace("|", "\\|") for part in (system, value)]
    found = request.repository.search_one("Bot", [("identifier", bar.join(parts) if bar else parts[0])])
    if found is None:
        raise not_found()
    return found.id


def json_or_parameters(request: OperationRequest) -> dict[str, Any]:
    """The body as a plain object, whether it was one or Parameters; empty when there is none."""
    return _parameters(_object(request))


def _object(request: OperationRequest) -> dict[str, Any]:
    """The body as a JSON object, empty when there is none."""
    if not request.body.strip():
        return {}
    body = parse_json(request.body)
    if not isinstance(body, dict):
        raise bad_request("The request body must be a JSON object")
    return body


def _parameters(body: dict[str, Any]) -> dict[str, Any]:
    """A Parameters resource as a plain object; a plain object as it is."""
    if body.get("resourceType") != "Parameters":
        return body
    values: dict[str, Any] = {}
    for parameter in body.get("parameter") or ():
        if isinstance(parameter, dict) and isinstance(parameter.get("name"), str):
            value = next((each for key, each in parameter.items() if key.startswith("value")), None)
            values[parameter["name"]] = parameter.get("resource", value)
    return values


def _body(request: OperationRequest, result: ExecutionResult) -> bytes:
    """The body as the caller prefers it: without resources (``return=minimal``), or indented (``_pretty``)."""
    if result.content_type != FHIR_JSON:
        return result.body
    if result.status == 200 and "return=minimal" in request.headers.get("prefer", ""):
        return b""
    if "_pretty=true" in request.query:
        with contextlib.suppress(ValueError, TypeError):  # an answer the Bot has made itself may be no JSON
            return orjson.dumps(orjson.loads(result.body), option=orjson.OPT_INDENT_2)
    return result.body
