"""Custom operations: an OperationDefinition that names a Bot makes ``$code`` callable (shared/medplum/custom-operations.md).

They are the fallback of the operations registry, so a built-in operation always comes first. Called with GET or POST on the
system, a type or an instance, also inside a batch. Which definition answers, when several have the same code, is settled: an
active one before others, then one whose flags and resource types fit the URL, then the newest. Whoever writes a definition that
will share its code hears of it in the ``Warning`` header. With ``Prefer: respond-async`` the Bot runs as a job, whose output is the same
answer.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO, Final

from bots.bot import bot_enqueue, bot_request, bot_run
from bots.operation_output import answer_of
from bots.results import type_of_binary
from fhirstore.api import (
    FhirError,
    FhirResponse,
    OperationRequest,
    Repository,
    Stored,
    bad_request,
    before_write,
    has_operation,
    method_not_allowed,
    register_fallback,
    request_url,
    respond_accepted,
    respond_resource,
    system_identity,
    wants_async,
)

Json = dict[str, Any]

IMPLEMENTATION: Final = "https://medplum.com/fhir/StructureDefinition/operationDefinition-implementation"
METHODS: Final = ("GET", "POST")


def register() -> None:
    """Hang custom operations on the store; called once at start-up."""
    register_fallback(resolve)
    before_write(["OperationDefinition"], warn_of_conflicts)


# --- call ------------------------------------------------------------------------------------------------------------


def resolve(request: OperationRequest) -> FhirResponse | None:
    """Carry out a custom operation; None if there is none of this name that the caller may see.

    Raises FhirError: 404, 410 or 403 when the caller may not read the Bot or the instance, 405 for a method other than GET and
    POST, 400 for a body that is not what its type says, or a result that does not fit the definition.
    """
    definition = find_definition(request.repository, request.name[1:], request.type, request.id)
    if definition is None:
        return None
    if request.method not in METHODS:
        raise method_not_allowed(METHODS)
    content_type = request.headers.get("content-type")
    on_instance = definition.get("instance") is True and request.type is not None and request.id is not None
    asked = bot_request(
        request.repository,
        bot_of(definition) or "",
        content_type=content_type,
        # the resource is the input, whatever else was sent
        body=b"" if on_instance else request.body,
        method="POST" if on_instance else request.method,
        query=request.query,
        headers=request.headers,
        value_only=True,
    )
    if on_instance:
        asked = asked.with_input(request.repository.read(request.type or "", request.id or "").resource)
    if wants_async(request):
        outputs = {"parameter": definition.get("parameter") or []}
        job_id = bot_enqueue(
            request.repository, replace(asked, definition=outputs), request_url(request), None, b""
        )
        return respond_accepted(request, f"job/{job_id}/status")
    answer = answer_of(definition, bot_run(asked))
    if answer["resourceType"] == "Binary" and _wants_bytes(request):
        return _raw(request.repository, answer)
    return respond_resource(request, answer)


def find_definition(repository: Repository, code: str, type_: str | None, id_: str | None) -> Json | None:
    """Return the OperationDefinition that answers ``$code`` at this place, as the caller may see it; None without any."""
    try:
        found = [stored for stored in _of_code(repository, code) if bot_of(stored.resource)]
    except FhirError as error:
        if error.status == 403:  # who may not read definitions at all knows none
            return None
        raise

    def rank(stored: Stored) -> tuple[Any, ...]:
        definition = stored.resource
        return (
            definition.get("status") == "active",
            fits(definition, type_, id_),
            stored.last_updated,
            stored.id,
        )

    best = max(found, key=rank, default=None)
    return best.resource if best else None


def fits(definition: Json, type_: str | None, id_: str | None) -> bool:
    """True if the flags and resource types of a definition say that it is called at this place."""
    if type_ is None:
        return definition.get("system") is True
    named = definition.get("resource") or []
    return definition.get("instance" if id_ else "type") is True and (
        not named or type_ in named or "Resource" in named
    )


def bot_of(definition: Json) -> str | None:
    """Id of the Bot that implements a definition; None if it names none."""
    for extension in definition.get("extension") or ():
        if extension.get("url") == IMPLEMENTATION:
            type_, _, id_ = ((extension.get("valueReference") or {}).get("reference") or "").partition("/")
            if type_ == "Bot" and id_:
                return str(id_)
    return None


def _of_code(repository: Repository, code: str) -> list[Stored]:
    escaped = code.replace("\\", "\\\\").replace(",", "\\,").replace("|", "\\|").replace("$", "\\$")
    found = repository.search_all("OperationDefinition", [("code", escaped)])
    return [stored for stored in found if stored.resource.get("code") == code]


def _wants_bytes(request: OperationRequest) -> bool:
    return request.method == "GET" and not request.headers.get("accept", "").startswith(
        "application/fhir+json"
    )


def _raw(repository: Repository, binary: Json) -> FhirResponse:
    """The bytes of a Binary: those it holds, or those that are stored under its id."""
    if "data" in binary:
        try:
            content = base64.b64decode(binary["data"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise bad_request("The Bot returned a Binary whose data is not base64") from None
    else:
        binary, stream = _stored_binary(repository, str(binary.get("id")))
        with stream:
            content = stream.read()
    return FhirResponse(200, content, {"content-type": type_of_binary(binary)})


def _stored_binary(repository: Repository, id_: str) -> tuple[Json, BinaryIO]:
    stored, stream = repository.open_binary(id_)
    return stored.resource, stream


# --- write -----------------------------------------------------------------------------------------------------------


def warn_of_conflicts(repository: Repository, definition: Json, _previous: Mapping[str, Any] | None) -> None:
    """Hook before an OperationDefinition is written: tell the writer of what will keep it from being called as expected."""
    code = definition.get("code")
    if bot_of(definition) is None or not isinstance(code, str):
        return
    if has_operation(f"${code}"):
        repository.warn(f"${code} is built in where it is defined: there this definition is never used")
    others = [
        stored.id
        for stored in _of_code(Repository(system_identity(repository.identity.project)), code)
        if stored.id != definition["id"] and bot_of(stored.resource)
    ]
    if others:
        named = ", ".join(f"OperationDefinition/{id_}" for id_ in sorted(others)[:5])
        repository.warn(
            f"${code} is also defined by {named}: an active definition answers first, then one that fits the URL, then the newest"
        )
