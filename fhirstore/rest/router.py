"""The FHIR API without a web framework: :func:`handle` takes a request and gives the answer.

Everything that speaks FHIR goes through here: the HTTP view, the entries of a batch, and the client inside a Bot.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from fhirstore.definitions import registry
from fhirstore.errors import FhirError, method_not_allowed, not_found, server_error
from fhirstore.operations import run_operation
from fhirstore.rest import batch, binary, bulk, interactions, jobs
from fhirstore.rest.messages import FhirRequest, FhirResponse
from fhirstore.rest.metadata import respond_metadata
from fhirstore.rest.negotiation import check_acceptable
from fhirstore.rest.response import respond_error, respond_resource

__all__ = ["FhirRequest", "FhirResponse", "handle", "route"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

TypeInteraction = Callable[[FhirRequest, str], FhirResponse]
InstanceInteraction = Callable[[FhirRequest, str, str], FhirResponse]

ON_TYPE: Final[Mapping[str, TypeInteraction]] = {
    "GET": interactions.search,
    "POST": interactions.create,
    "PUT": interactions.conditional_update,
    "PATCH": interactions.conditional_patch,
    "DELETE": interactions.conditional_delete,
}
ON_INSTANCE: Final[Mapping[str, InstanceInteraction]] = {
    "GET": interactions.read,
    "PUT": interactions.update,
    "PATCH": interactions.patch,
    "DELETE": interactions.delete,
}
ON_SYSTEM: Final[Mapping[str, Callable[[FhirRequest], FhirResponse]]] = {
    "GET": interactions.search_system,
    "POST": lambda request: batch.execute(request, route, handle),
}
ON_BINARY_TYPE: Final[Mapping[str, TypeInteraction]] = {**ON_TYPE, "POST": binary.create}
ON_BINARY: Final[Mapping[str, InstanceInteraction]] = {
    **ON_INSTANCE,
    "GET": binary.read,
    "PUT": binary.update,
}


def handle(request: FhirRequest) -> FhirResponse:
    """Carry out a FHIR interaction. Never raises: every failure is an OperationOutcome with its status."""
    trace_id = request.repository.trace_id
    try:
        check_acceptable(request)
        return route(request)
    except FhirError as error:
        return respond_error(error, request.request_id, trace_id)
    except Exception as error:  # noqa: BLE001  (the border of the API: a client never sees a bare failure)
        log_failure(request.request_id, error)
        return respond_error(server_error(request.request_id), request.request_id, trace_id)


def log_failure(request_id: str, error: Exception) -> None:
    """Log where something broke. Not its message: messages of drivers and parsers quote data."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("Request %s failed: %s\n%s", request_id, type(error).__name__, where)


def route(request: FhirRequest) -> FhirResponse:
    """Carry out a FHIR interaction.

    Raises:
        FhirError: the refusal, with the outcome to send.
    """
    match _segments(request):
        case [type] if registry.is_resource_type(type):
            return _pick(ON_BINARY_TYPE if type == "Binary" else ON_TYPE, request.method)(request, type)
        case [type, id] if registry.is_resource_type(type) and not id.startswith(("$", "_")):
            return _pick(ON_BINARY if type == "Binary" else ON_INSTANCE, request.method)(request, type, id)
        case [type, "_search"] if registry.is_resource_type(type):
            return _pick({"POST": interactions.search}, request.method)(request, type)
        case [type, "_history"] if registry.is_resource_type(type):
            return _pick({"GET": interactions.history_of_type}, request.method)(request, type)
        case [type, id, "_history"] if registry.is_resource_type(type):
            return _pick({"GET": interactions.history}, request.method)(request, type, id)
        case ["Binary", id, "_history", version]:
            return _pick({"GET": binary.read_version}, request.method)(request, id, version)
        case [type, id, "_history", version] if registry.is_resource_type(type):
            return _pick({"GET": interactions.read_version}, request.method)(request, type, id, version)
        case []:
            return _pick(ON_SYSTEM, request.method)(request)
        case ["_search" | "metadata" | "$versions" | "job" | "bulkdata", *_]:
            return _beside(request)
    return _operation(request)


def _beside(request: FhirRequest) -> FhirResponse:
    """The paths that are neither one of resources nor operations."""
    match _segments(request):
        case ["_search"]:
            return _pick({"POST": interactions.search_system}, request.method)(request)
        case ["metadata" | "$versions" as name]:
            return _pick({"GET": respond_metadata}, request.method)(request.base_url, name)
        case ["job", id, "status"]:
            return _pick({"GET": jobs.status, "DELETE": jobs.delete}, request.method)(request, id)
        case ["bulkdata", "export", id]:
            return _pick({"GET": bulk.status, "DELETE": bulk.delete}, request.method)(request, id)
    raise not_found()


def _segments(request: FhirRequest) -> list[str]:
    path = request.path.strip("/")
    return path.split("/") if path else []


def _operation(request: FhirRequest) -> FhirResponse:
    type: str | None = None
    id: str | None = None
    match _segments(request):
        case [name, *extra] if name.startswith("$"):
            pass
        case [type, name, *extra] if name.startswith("$") and registry.is_resource_type(type):
            pass
        case [type, id, name, *extra] if name.startswith("$") and registry.is_resource_type(type):
            pass
        case [type, *_] if type[:1].isupper() and not registry.is_resource_type(type):
            raise not_found(f"Unknown resource type: {type}")
        case _:
            raise not_found()
    answer = run_operation(request, type=type, id=id, name=name, extra_path="/".join(extra))
    return answer if isinstance(answer, FhirResponse) else respond_resource(request, answer)


def _pick(choices: Mapping[str, T], method: str) -> T:
    """Return the choice of a method; raises FhirError (405) with the methods there are."""
    if method not in choices:
        raise method_not_allowed(choices)
    return choices[method]
