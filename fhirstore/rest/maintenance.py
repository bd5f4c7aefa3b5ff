"""What admins do to stored resources: remove them for good, give them to accounts, renew the names in their references."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from fhirstore import database, jobs
from fhirstore.definitions import registry
from fhirstore.errors import FhirError, all_ok, bad_request, forbidden
from fhirstore.identity import system_identity
from fhirstore.operations import Answer, OperationRequest, register_operation
from fhirstore.reindex import reindex as reindex_batches
from fhirstore.reindex import reindex_one
from fhirstore.repository import Repository, Stored
from fhirstore.rest.jobs import start, wants_async
from fhirstore.rest.parameters import output, read_input
from fhirstore.tables import Moment

Json = dict[str, Any]

EXPUNGE: Final = "expunge"
REINDEX: Final = "reindex"
SET_ACCOUNTS: Final = "set-accounts"

MAX_AT_ONCE: Final = 1000
"""Resources that are changed while the caller waits."""

BATCH: Final = 100
"""Resources of a job between two looks at whether it shall go on, and in one transaction."""

_BINARY = re.compile(rb'"Binary/([0-9a-f-]{36})"')


def register() -> None:
    """Register operations and jobs; called once at start-up."""
    register_operation("$expunge", expunge, instance=True, methods=["POST"])
    register_operation("$reindex", reindex, system=True, type=True, instance=True, methods=["POST"])
    register_operation("$set-accounts", set_accounts, instance=True, methods=["POST"])
    register_operation("$refresh-reference-display", refresh_display, instance=True, methods=["POST"])
    jobs.register_job(EXPUNGE, run_expunge)
    jobs.register_job(REINDEX, run_reindex)
    jobs.register_job(SET_ACCOUNTS, run_set_accounts)


def _require_admin(request: OperationRequest) -> None:
    identity = request.repository.identity
    if not identity.is_admin or identity.scopes is not None:  # these reach beyond what scopes let through
        raise forbidden()


# --- $expunge --------------------------------------------------------------------------------------------------------


def expunge(request: OperationRequest) -> Answer:
    """``POST /T/{id}/$expunge``: remove a resource for good. ``everything=true``: a Patient with the whole compartment, as a job.

    Each call leaves an AuditEvent that names what is gone, and nothing else of it.

    Raises:
        FhirError: as :meth:`Repository.expunge`; 400 for ``everything`` of another type.
    """
    assert request.type is not None
    assert request.id is not None
    _require_admin(request)
    repository = request.repository
    if read_input(request).boolean("everything"):
        if request.type != "Patient":
            raise bad_request("everything can be expunged of a Patient only")
        if repository.identity.policy is not None:
            raise forbidden(
                "Under an AccessPolicy not everything of a patient may be seen, so it cannot be expunged"
            )
        repository.read(request.type, request.id)
        return start(request, EXPUNGE, {"patient": request.id})
    with repository.transaction():
        repository.expunge(request.type, request.id)
        _record(repository, f"{request.type}/{request.id}", 1)
    return all_ok()


def run_expunge(job: jobs.Job) -> Iterable[Json]:
    """Expunge a Patient's compartment, deleted resources and their own Binaries included, the Patient last."""
    repository, patient = job.repository, f"Patient/{job.parameters['patient']}"
    count = 0
    types = [each for each in sorted(registry.resource_types()) if registry.patient_compartment(each)]
    for type in types:
        if type == "Patient":
            continue
        for stored in _of_patient(repository, type, patient):
            if count % BATCH == 0:
                job.check({"expunged": count})
            count += _expunge_with_binaries(repository, stored.type, stored.id)
    job.check()
    with repository.transaction():
        count += _expunge_with_binaries(repository, "Patient", job.parameters["patient"])
        _record(repository, patient, count)
    return [{"name": "resourcesExpunged", "valueInteger": count}]


def _of_patient(repository: Repository, type: str, patient: str) -> Iterator[Stored]:
    """The resources in a compartment. A deleted one is where its last version was, so all of them have to be looked at."""
    yield from repository.scan(type, patients=[patient])
    for deletion in repository.scan(type, deleted=True):
        live = next((each for each in repository.history(type, deletion.id)[0] if not each.deleted), None)
        compartment = (live.resource["meta"].get("compartment") or ()) if live else ()
        if any(each.get("reference") == patient for each in compartment):
            yield deletion


def _expunge_with_binaries(repository: Repository, type: str, id: str) -> int:
    """Expunge a resource and the Binaries it names that have it as their security context; returns how many."""
    count = 1
    with repository.transaction():
        for version in repository.history(type, id, count=1000)[0]:
            for binary in {found.decode() for found in _BINARY.findall(version.content)}:
                count += _expunge_binary(repository, binary, f"{type}/{id}")
        repository.expunge(type, id)
    return count


def _expunge_binary(repository: Repository, id: str, context: str) -> int:
    try:
        stored = repository.read("Binary", id)
    except FhirError as error:
        if error.status >= 500:
            raise
        return 0
    if stored.resource.get("securityContext", {}).get("reference") != context:
        return 0
    repository.expunge("Binary", id)
    return 1


def _record(repository: Repository, reference: str, count: int) -> None:
    """Write the AuditEvent, whatever the policy of whoever did it allows."""
    identity = repository.identity
    agent: Json = {"who": {"reference": identity.profile}, "requestor": True}
    Repository(system_identity(identity.project), trace_id=repository.trace_id).create(
        {
            "resourceType": "AuditEvent",
            "type": {"system": "http://terminology.hl7.org/CodeSystem/audit-event-type", "code": "object"},
            "subtype": [
                {"system": "http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle", "code": "destroy"}
            ],
            "action": "D",
            "recorded": Moment.now().text,
            "outcome": "0",
            "outcomeDesc": f"Expunged {reference}, {count} in all",
            "agent": [agent],
            "source": {"observer": {"reference": identity.profile}},
            "entity": [{"name": reference}],
        }
    )


# --- $reindex --------------------------------------------------------------------------------------------------------


def reindex(request: OperationRequest) -> Answer:
    """``POST /$reindex``, ``/T/$reindex`` and ``/T/{id}/$reindex``: bring up to date what resources are found by.

    One resource at once; a type, or those of ``_type`` or ``resourceType`` (all without them), as a job.

    Raises:
        FhirError: 403 for whoever is no admin, 400 for an unknown type, 404 for a resource that is not there.
    """
    _require_admin(request)
    project = request.repository.identity.project
    if request.type is not None and request.id is not None:
        request.repository.read(request.type, request.id)
        reindex_one(project, request.type, request.id)
        return all_ok()
    given = read_input(request)
    named = [*given.texts("_type"), *given.texts("resourceType")]
    types = [request.type] if request.type else [each for text in named for each in text.split(",")]
    for each in types:
        if not registry.is_resource_type(each):
            raise bad_request(f"Unknown resource type: {each}")
    return start(request, REINDEX, {"types": types or sorted(registry.resource_types())})


def run_reindex(job: jobs.Job) -> Iterable[Json]:
    """Reindex types one after the other; a later attempt goes on with the type it was at."""
    counts = {"type": "", "seen": 0, "changed": 0, **job.progress}
    types: list[str] = job.parameters["types"]
    if counts["type"] in types:
        types = types[types.index(counts["type"]) :]
    for type in types:
        counts["type"] = type
        job.check(counts)
        for done in reindex_batches(job.project, [type]):
            counts["seen"] += done.seen
            counts["changed"] += done.changed
            job.check(counts)
    return [
        {"name": "resourcesSeen", "valueInteger": counts["seen"]},
        {"name": "resourcesChanged", "valueInteger": counts["changed"]},
    ]


# --- $set-accounts -----------------------------------------------------------------------------------------------------


def set_accounts(request: OperationRequest) -> Answer:
    """``POST /T/{id}/$set-accounts``: replace ``meta.accounts``; with ``propagate`` those of a patient's whole compartment.

    Parameters: ``accounts`` (Reference, repeated, none to take all away), ``propagate`` (boolean). Answers ``resourcesUpdated``.
    In the rest of the compartment only what was taken away goes and what is new comes.

    Raises:
        FhirError: 403 for whoever is no admin, 400 for more than 1000 resources without ``Prefer: respond-async``.
    """
    assert request.type is not None
    assert request.id is not None
    _require_admin(request)
    given = read_input(request)
    accounts = []
    for each in given.all("accounts"):
        if not isinstance(each, dict) or not isinstance(each.get("reference"), str):
            raise bad_request("accounts must be References")
        accounts.append(each["reference"])
    parameters = {
        "type": request.type,
        "id": request.id,
        "accounts": list(dict.fromkeys(accounts)),
        "propagate": bool(given.boolean("propagate")),
    }
    if parameters["propagate"] and request.type != "Patient":
        raise bad_request("accounts can be propagated from a Patient only")
    request.repository.read(request.type, request.id)
    if wants_async(request):
        return start(request, SET_ACCOUNTS, parameters)

    def check(count: int) -> None:
        if count >= MAX_AT_ONCE:
            raise bad_request(f"More than {MAX_AT_ONCE} resources: send Prefer: respond-async")

    with request.repository.transaction():
        count = _set_accounts(request.repository, parameters, check)
    return output({"name": "resourcesUpdated", "valueInteger": count})


def run_set_accounts(job: jobs.Job) -> Iterable[Json]:
    """The same as a job."""
    count = _set_accounts(job.repository, job.parameters, lambda count: job.check({"updated": count}))
    return [{"name": "resourcesUpdated", "valueInteger": count}]


def _set_accounts(repository: Repository, parameters: Json, check: Callable[[int], None]) -> int:
    type, id = parameters["type"], parameters["id"]
    wanted: list[str] = parameters["accounts"]
    resource = repository.read(type, id).resource
    before = _accounts(resource)
    count = 0
    if parameters["propagate"]:
        # The patient comes last: a job that is cut off knows then what it was about.
        gone, new = set(before) - set(wanted), [each for each in wanted if each not in before]
        for other in sorted(registry.resource_types()):
            if other == type or not registry.patient_compartment(other) or not repository.may_search(other):
                continue
            for stored in list(repository.scan(other, patients=[f"{type}/{id}"])):
                check(count)
                found = stored.resource
                kept = [each for each in _accounts(found) if each not in gone]
                count += _give(repository, found, list(dict.fromkeys([*kept, *new])))
    check(count)
    return count + _give(repository, resource, wanted)


def _accounts(resource: Json) -> list[str]:
    return [each["reference"] for each in resource["meta"].get("accounts", ()) if "reference" in each]


def _give(repository: Repository, resource: Json, accounts: list[str]) -> bool:
    """Store the accounts of a resource; True if that makes a new version."""
    if accounts == _accounts(resource):
        return False
    references = [{"reference": each} for each in accounts]
    resource["meta"]["accounts"] = references
    resource["meta"]["account"] = references[0] if references else {}
    return repository.update(resource)[1]


# --- $refresh-reference-display ----------------------------------------------------------------------------------------


def refresh_display(request: OperationRequest) -> Stored:
    """``POST /T/{id}/$refresh-reference-display``: write into each reference what its target is called now."""
    assert request.type is not None
    assert request.id is not None
    repository = request.repository
    with database.transaction():
        repository.check_update(request.type, request.id)
        resource = repository.read(request.type, request.id).resource
        names: dict[str, str | None] = {}
        for reference in _references(resource):
            target = reference["reference"]
            if target not in names:
                names[target] = _name_of(repository, target)
            if (name := names[target]) is not None:
                reference["display"] = name
        return repository.update(resource)[0]


def _references(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield value
        for key, child in value.items():
            if key not in ("meta", "contained"):
                yield from _references(child)
    elif isinstance(value, list):
        for child in value:
            yield from _references(child)


def _name_of(repository: Repository, reference: str) -> str | None:
    """What the resource is called, None if it is not there or has no name."""
    type, _, id = reference.partition("/")
    if not registry.is_resource_type(type) or not id or "/" in id:
        return None
    try:
        return display_of(repository.read(type, id).resource)
    except FhirError as error:
        if error.status >= 500:
            raise
        return None


def display_of(resource: Json) -> str | None:
    """A name for people: of a person, a thing, a code or a device; None without any."""
    for key in ("name", "deviceName", "title", "code"):
        value = resource.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, dict):
            parts = [*value.get("prefix", ()), *value.get("given", ()), value.get("family")]
            codings = [each.get("display") for each in value.get("coding", ())]
            value = value.get("text") or " ".join(filter(None, parts)) or value.get("name")
            value = value or next(filter(None, codings), None)
        if isinstance(value, str) and value:
            return value
    return None
