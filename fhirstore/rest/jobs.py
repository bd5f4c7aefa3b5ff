"""Asynchronous requests over HTTP: the answer 202, the job's status, and its cancellation (shared/medplum/execute.md §7)."""

from __future__ import annotations

import re
from typing import Any

import orjson

from fhirstore import jobs
from fhirstore.errors import accepted, all_ok
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.repository import Stored
from fhirstore.rest.messages import FHIR_JSON, FhirRequest, FhirResponse
from fhirstore.rest.response import respond_outcome, respond_resource


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation("$cancel", cancel, types=["AsyncJob"], instance=True, methods=["POST"])


def wants_async(request: FhirRequest) -> bool:
    """True if ``Prefer`` holds ``respond-async``."""
    tokens = re.split(r"[,;]", request.headers.get("prefer", ""))
    return any(token.strip().lower() == "respond-async" for token in tokens)


def request_url(request: FhirRequest) -> str:
    """The whole address of a request."""
    return f"{request.root}{request.path.strip('/')}" + (f"?{request.query}" if request.query else "")


def start(request: FhirRequest, kind: str, parameters: dict[str, Any]) -> FhirResponse:
    """Start a job for a request and answer 202; raises as :func:`fhirstore.jobs.start_job`."""
    job = jobs.start_job(request.repository, kind, parameters, request_url(request))
    return respond_accepted(request, f"job/{job.id}/status")


def respond_accepted(request: FhirRequest, path: str) -> FhirResponse:
    """Answer 202 with the address of the status, which begins as the request's did.

    Args:
        path: of the status below the FHIR root, such as ``job/{id}/status``.
    """
    location = request.root + path
    return respond_outcome(request, accepted(location), {"content-location": location})


def status(request: FhirRequest, id: str) -> FhirResponse:
    """``GET job/{id}/status``: 202 while the job is open, then 200; the body is the AsyncJob."""
    job = jobs.find_job(request.repository, id)
    if not is_open(job):
        return respond_resource(request, job)
    answer = respond_resource(
        request, job, headers={"content-location": f"{request.root}job/{job.id}/status"}
    )
    answer.status = 202
    return answer


def delete(request: FhirRequest, id: str) -> FhirResponse:
    """``DELETE job/{id}/status``: cancel; answered with 202."""
    jobs.cancel_job(request.repository, id)
    return respond_outcome(request, accepted(f"{request.root}job/{id}/status"))


def cancel(request: OperationRequest) -> dict[str, Any]:
    """``POST AsyncJob/{id}/$cancel``: the same, answered with 200."""
    assert request.id is not None
    jobs.cancel_job(request.repository, request.id)
    return all_ok()


def is_open(job: Stored) -> bool:
    """True until the job has ended."""
    return job.resource["status"] in jobs.OPEN


def output_resource(job: Stored, name: str) -> Any:
    """The ``resource`` of an output parameter, None without it."""
    for parameter in job.resource.get("output", {}).get("parameter", ()):
        if parameter["name"] == name:
            return parameter.get("resource")
    return None


def respond_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> FhirResponse:
    """Plain JSON."""
    return FhirResponse(status, orjson.dumps(value), {"content-type": FHIR_JSON, **(headers or {})})
